"""What a stage shows: a line, a bar, its log; on a terminal and elsewhere, alone and beside another."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from handbook_ext.core import bars, console
from handbook_ext.core.console import CLEAR, CONSOLE, Console
from handbook_ext.core.goal_progress import Expected, Place, first_to_note, human, write_expected

STAGE = """
import os, sys, time
from pathlib import Path
from handbook_ext.core import console
from handbook_ext.core.bars import progress, within
from handbook_ext.core.errors import UserError, run_main

def main(argv):
    artifact = Path(argv[0])
    console.log_to(artifact.with_suffix(".log"))
    console.begin("train", artifact)
    print("a library prints")
    os.write(2, b"a library in C writes\\n")
    for _ in progress(range(3), "", "steps"):
        time.sleep(float(argv[2]) if len(argv) > 2 else 0)
        within(1, 4)
    console.say("note: said")
    if argv[1] == "mistake":
        raise UserError("this is wrong")
    if argv[1] == "bug":
        raise RuntimeError("broken")
    console.end(artifact, "done", 2.0)

run_main(main)
"""


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A script that works as a stage does; the tests may themselves run under make, or where CI is set."""
    for name in ("HANDBOOK_PROGRESS", "CI", "NO_COLOR", "RANK", "HANDBOOK_SAID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    path = tmp_path / "train.py"
    path.write_text(STAGE)
    return path


def on_terminal(*commands: list[str]) -> str:
    """What commands, all at once, show on one terminal."""
    ours, theirs = pty.openpty()
    started = [subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs) for command in commands]
    os.close(theirs)
    shown = b""
    while True:
        try:
            part = os.read(ours, 4096)
        except OSError:  # All have ended.
            break
        shown += part
    for process in started:
        process.wait(timeout=60)
    os.close(ours)
    return shown.decode()


def elsewhere(script: Path, *words: str, **variables: str) -> tuple[int, str, str]:
    """The status, stdout and stderr of the script."""
    done = subprocess.run(
        [sys.executable, str(script), *words], capture_output=True, text=True, env={**os.environ, **variables}, check=False
    )
    return done.returncode, done.stdout, done.stderr


def test_what_libraries_say_goes_to_the_log_and_what_we_say_to_both(script: Path, tmp_path: Path) -> None:
    artifact = str(tmp_path / "policy")
    assert elsewhere(script, artifact, "end") == (0, "", f"note: said\ntrain: {artifact} is done (2 s)\n")
    log = (tmp_path / "policy.log").read_text()
    for line in ("a library prints", "a library in C writes", "note: said", f"train: {artifact} is done (2 s)"):
        assert f"\n{line}\n" in log


def test_a_failure_ends_with_the_place_of_its_log(script: Path, tmp_path: Path) -> None:
    status, out, err = elsewhere(script, str(tmp_path / "policy"), "mistake")
    closing = f"train has failed; log: {tmp_path / 'policy.log'}\n"
    assert (status, out, err) == (2, "", f"note: said\nerror: this is wrong\n{closing}")
    status, _, err = elsewhere(script, str(tmp_path / "policy"), "bug")
    assert status == 1 and err.startswith("note: said\nTraceback") and err.endswith(f"RuntimeError: broken\n{closing}")
    assert "RuntimeError: broken\n" in (tmp_path / "policy.log").read_text()


def test_a_log_on_a_full_disk_is_told_on_the_terminal(script: Path, tmp_path: Path) -> None:
    (tmp_path / "policy.log").symlink_to("/dev/full")
    status, out, err = elsewhere(script, str(tmp_path / "policy"), "end")
    first, closing = err.splitlines()
    assert status != 0 and out == "" and first.startswith("error: ") and "the disk is full" in first
    assert closing == f"it has failed; log: {tmp_path / 'policy.log'}"


def test_other_processes_than_the_first_show_their_tracebacks_alone(script: Path, tmp_path: Path) -> None:
    assert elsewhere(script, str(tmp_path / "policy"), "end", RANK="1") == (0, "", "")
    status, _, err = elsewhere(script, str(tmp_path / "policy"), "bug", RANK="1")
    assert status == 1 and err.startswith("Traceback") and err.endswith("RuntimeError: broken\n")


def test_under_make_a_stage_says_its_place_and_the_time_that_is_left(script: Path, tmp_path: Path) -> None:
    first, last, progress = tmp_path / "a", tmp_path / "b", tmp_path / "goal.progress"
    write_expected(progress, [Expected(str(first), "iter1 train", "train"), Expected(str(last), "iter2 train", "train")])
    said = [elsewhere(script, str(each), "end", HANDBOOK_PROGRESS=str(progress))[2] for each in (first, last)]
    assert re.sub("about [0-9]+ s", "about 2 s", said[0]) == (
        "[1/2] iter1 train\nnote: said\n[1/2] iter1 train: done in 2 s; about 2 s left in all\n"
    )
    assert said[1] == "[2/2] iter2 train: about 2 s\nnote: said\n[2/2] iter2 train: done in 2 s\n"


def test_a_terminal_has_one_line_a_stage_in_the_end(script: Path, tmp_path: Path) -> None:
    command = [sys.executable, str(script), str(tmp_path / "policy"), "end", "0.25"]
    shown = on_terminal(command)
    left = [line.rpartition(CLEAR)[2] for line in shown.split("\r\n")]
    assert left == ["\x1b[33mnote:\x1b[0m said", f"train: {tmp_path / 'policy'} is done (2 s)", ""]
    assert "0/3 steps and 25 % of the next, " in shown and "a library" not in shown


def test_a_step_of_minutes_shows_how_far_it_is(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """One batch of samples of a real checkpoint takes ten minutes on a CPU: nothing was shown until it was over."""
    monkeypatch.setattr(bars, "SELDOM", 0.0)
    monkeypatch.setattr(CONSOLE, "armed", True)
    monkeypatch.setenv("CI", "true")
    bars.within(1, 4)  # No bar: nothing to say it to.
    with bars.Bar("", 2, "batches") as bar:
        for _ in range(2):
            bars.within(1, 4)
            bars.within(3, 4)
            bar.update()
    said = [line.partition(": ")[2].partition(",")[0] for line in capsys.readouterr().err.splitlines()]
    one = ["0 of 2 batches and 25 % of the next", "0 of 2 batches and 75 % of the next", "1 of 2 batches"]
    two = ["1 of 2 batches and 25 % of the next", "1 of 2 batches and 75 % of the next", "2 of 2 batches"]
    assert said == one + two


def test_no_colour_and_no_bar_where_they_are_not_wanted(script: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command = [sys.executable, str(script), str(tmp_path / "policy"), "end", "0.25"]
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b[33m" not in on_terminal(command)
    monkeypatch.setenv("CI", "true")
    assert "\x1b" not in on_terminal(command)


def test_stages_beside_each_other_share_a_terminal(script: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    progress = tmp_path / "goal.progress"
    names = ["iter1 evaluate", "iter2 generate"]
    write_expected(progress, [Expected(str(tmp_path / str(at)), name, "x") for at, name in enumerate(names)])
    monkeypatch.setenv("HANDBOOK_PROGRESS", str(progress))
    shown = on_terminal(*([sys.executable, str(script), str(tmp_path / str(at)), "end", "0.3"] for at in range(2)))
    for line in shown.split("\r\n"):  # Whatever was drawn was drawn on a line that was cleared.
        assert all(part.count("iter") <= 1 for part in line.split(CLEAR)), shown
    assert sum("done in" in line for line in shown.split("\r\n")) == 2


def test_what_nobody_knows_is_not_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "goal.progress"
    stages = (("a", 5.0), ("b", None), ("c", 3.0))
    write_expected(file, [Expected(f"runs/{name}", name, name, seconds) for name, seconds in stages])
    monkeypatch.setenv("HANDBOOK_PROGRESS", str(file))
    place = Place.begin(Path("runs/a"))
    assert place is not None and (place.number, place.of, place.own_seconds()) == (1, 3, 5.0)
    assert place.seconds_of_others() is None and Place.begin(Path("runs/z")) is None
    other = Place.begin(Path("runs/b"))
    assert other is not None and other.number == 2 and other.own_seconds() is None
    assert other.seconds_of_others() == 8.0
    place.end(1.0)
    assert other.seconds_of_others() == 3.0
    assert first_to_note("interrupted") and not first_to_note("interrupted")
    file.write_text(file.read_text() + '{"half')
    assert Place.begin(Path("runs/c")) is None and place.seconds_of_others() is None
    assert json.loads(file.read_text().splitlines()[0])["name"] == "a"
    assert [human(each) for each in (0.2, 89, 200, 5000, 9000)] == ["1 s", "89 s", "3 min", "83 min", "2.5 h"]


def test_a_process_that_has_not_the_terminal_draws_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HANDBOOK_PROGRESS", str(tmp_path / "goal.progress"))
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setattr(Console, "drawn", True)
    one, other = Console(), Console()
    one.armed = other.armed = True
    assert [one.turn(), other.turn(), one.turn()] == [True, False, True]
    one.leave()
    assert [other.turn(), one.turn()] == [True, False]
    other.leave()


def test_only_the_place_of_a_stage_is_dimmed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Console, "drawn", True)
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert console._coloured("[1/2] iter1 train: done") == "\x1b[2m[1/2] \x1b[0miter1 train: done"
    assert console._coloured("train: data[3] is done") == "train: data[3] is done"


def test_the_time_that_is_left_follows_the_pace_within_bounds(tmp_path: Path) -> None:
    """A machine that slept, or a first stage of a moment, would tell of days."""
    file = tmp_path / "goal.progress"
    stages = [
        {"artifact": name, "name": name, "sort": name, "seconds": seconds} for name, seconds in (("a", 9), ("b", 9), ("c", 3))
    ]
    for took, left in ((10.0, 6.0), (0.5, 3.0)):
        rows = [*stages, {"since": time.time() - 1000}, {"done": "a", "seconds": took}]
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        assert Place(file, "b", "b", 2, 3).seconds_of_others() == left


def test_a_stage_takes_as_long_as_the_last_of_its_sort_that_was_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that was up to date took no time, and says nothing of the others."""
    file = tmp_path / "goal.progress"
    write_expected(file, [Expected(f"runs/{name}", name, "train", 60.0) for name in "abcd"])
    monkeypatch.setenv("HANDBOOK_PROGRESS", str(file))
    told = []
    for name, seconds in zip("abcd", (0.0, 20.0, 30.0, 0.0), strict=True):
        place = Place.begin(Path(f"runs/{name}"))
        assert place is not None
        told.append(place.own_seconds())
        place.end(seconds)
    assert told == [60.0, 60.0, 20.0, 30.0]


def test_a_caller_that_outlives_the_stage_is_told_where_its_log_lies(script: Path, tmp_path: Path) -> None:
    ours, theirs = os.pipe()
    command = [sys.executable, str(script), str(tmp_path / "policy"), "end"]
    environment = {**os.environ, "HANDBOOK_CALLER": str(theirs)}
    subprocess.run(command, env=environment, pass_fds=[theirs], capture_output=True, check=True)
    os.close(theirs)
    with os.fdopen(ours) as told:
        assert told.read() == f"log {tmp_path / 'policy.log'}\n"
