"""Tortures a small run: `make torture MINUTES=20`, or `python -m tests.torture --help`.

One run of three iterations is left alone. Every other one is struck at random moments by the blows of blows.py, begun again with
the same command until it is done, and then held to the first: every file of every artifact must have the same bytes. The exit
status is 1 where one differs, fails without a blow, prints a traceback, or is not done after a plain repeat.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from handbook_ext.core.artifacts import UNHASHED
from tests.torture.blows import BLOWS, Victim, kill, processes_of, servers_of, strike
from tests.workspace import SELM, SERA, Workspace

GOALS = {"selm": SELM, "sera": SERA}
MOST_BLOWS, PATIENCE = 6, 300
# What two equal makes may write differently: times, places, processes.
VARYING = re.compile(r"(manifest\.json|trainer_state\.json|report\.(md|html)|summary\.json|check\.json|run\.mk)$")


@dataclass
class Tally:
    """What has happened so far."""

    runs: int = 0
    identical: int = 0
    blows: Counter[str] = field(default_factory=Counter)
    missed: int = 0
    faults: list[str] = field(default_factory=list)

    def line(self) -> str:
        """Returns the counts in a line."""
        told = ", ".join(f"{count} {name}" for name, count in sorted(self.blows.items())) or "none"
        return (
            f"{self.runs} runs, {self.identical} identical, {len(self.faults)} faults; "
            f"{sum(self.blows.values())} blows that struck ({told}), {self.missed} that came too late"
        )


def main(argv: Sequence[str]) -> int:
    """Returns the exit status, after the counts are printed and written."""
    args = _arguments(argv)
    dice, tally, until = random.Random(args.seed), Tally(), time.monotonic() + 60 * args.minutes
    with tempfile.TemporaryDirectory(prefix="torture-") as name, _small_disk(Path(name) / "disk", args.megabytes) as disk:
        blows = [each for each in BLOWS if each != "full disk" or disk is not None]
        place = disk or Path(name) / "disk"
        place.mkdir(exist_ok=True)
        references, seconds = {}, {}
        for goal, recipe in GOALS.items():
            workspace, started = Workspace(Path(name) / goal, recipe), time.monotonic()
            _, status, said = _make(workspace, place / f"{goal}-alone", place / "tmp")
            if status:
                sys.stderr.write(f"error: the run that is left alone fails: {said[-2000:]}\n")
                return 2
            references[goal], seconds[goal] = hashes(place / f"{goal}-alone"), time.monotonic() - started
            shutil.rmtree(place / f"{goal}-alone")
            sys.stdout.write(f"{goal}: {len(references[goal])} files in {seconds[goal]:.0f} s when left alone\n")
        while time.monotonic() < until:
            goal = dice.choice([*GOALS])
            torture_one(
                Workspace(Path(name) / f"{goal}-{tally.runs}", GOALS[goal]),
                goal,
                place,
                references[goal],
                seconds[goal],
                blows,
                dice,
                tally,
            )
            sys.stdout.write(f"{tally.line()}\n")
            sys.stdout.flush()
        kill([*servers_of(place / "tmp")])
    args.out.mkdir(parents=True, exist_ok=True)
    found = {"seed": args.seed, "minutes": args.minutes, "runs": tally.runs, "identical": tally.identical,
             "blows": dict(tally.blows), "missed": tally.missed, "faults": tally.faults}  # fmt: skip
    (args.out / "torture.json").write_text(json.dumps(found, indent=1) + "\n")
    sys.stdout.write("".join(f"fault: {each}\n" for each in tally.faults) + f"{args.out / 'torture.json'}\n")
    return 1 if tally.faults or not tally.runs else 0


def torture_one(
    workspace: Workspace, goal: str, place: Path, reference: dict[str, str], seconds: float, blows: Sequence[str],
    dice: random.Random, tally: Tally,
) -> None:  # fmt: skip
    """Strikes one run up to MOST_BLOWS times, lets it end, and holds it to the reference."""
    runs = place / f"{goal}-{tally.runs}"
    tally.runs += 1
    struck = []
    for _ in range(dice.randint(1, MOST_BLOWS)):
        name, after = dice.choice(blows), dice.uniform(0, seconds / 3)
        hit, status, said = _make(workspace, runs, place / "tmp", blow=(name, after, dice))
        tally.blows[name] += hit
        tally.missed += not hit
        struck += [f"{name} after {after:.2f} s"] if hit else []
        if "Traceback" in said:
            tally.faults.append(f"{runs.name}: a traceback after {struck}: {said[-1500:]}")
        if status and not hit:
            tally.faults.append(f"{runs.name}: fails without a blow, after {struck}: {said[-1500:]}")
            break
    _, status, said = _make(workspace, runs, place / "tmp")
    if status or "Traceback" in said:
        tally.faults.append(f"{runs.name}: is not done by a repeat, after {struck}: {said[-1500:]}")
    found = hashes(runs)
    different = sorted(name for name in reference.keys() | found.keys() if reference.get(name) != found.get(name))
    if different:
        tally.faults.append(f"{runs.name}: other bytes after {struck}: {different[:10]}")
    else:
        tally.identical += not status
    shutil.rmtree(runs, ignore_errors=True)
    shutil.rmtree(workspace.folder)


def _make(
    workspace: Workspace, runs: Path, temporary: Path, blow: tuple[str, float, random.Random] | None = None
) -> tuple[bool, int, str]:
    """Runs make in a session of its own; returns whether the blow struck, its exit status, and what it said."""
    temporary.mkdir(parents=True, exist_ok=True)
    environment = {name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MFLAGS", "MAKELEVEL")}
    environment["TMPDIR"] = str(temporary)
    # Beside the small disk: a full one must not take away what make says.
    log = workspace.folder / "said.log"
    with log.open("wb") as said:
        make = subprocess.Popen(
            ["make", "mine-micro", f"RUNS={runs}"], cwd=workspace.folder, env=environment, stdin=subprocess.DEVNULL, stdout=said,
            stderr=said, start_new_session=True,
            # Whoever starts a campaign in the background has interrupts ignored.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509 - nothing else is done between
        )  # fmt: skip
        victim = Victim(make, runs, temporary)
        hit = blow is not None and strike(victim, *blow[:2], blow[2])
        try:
            make.wait(timeout=PATIENCE)
        except subprocess.TimeoutExpired:
            kill([*processes_of(make.pid)])
            make.wait()
            return hit, 124, f"still at work after {PATIENCE} s: {log.read_text(errors='replace')}"
    return hit, make.returncode, log.read_text(errors="replace")


def hashes(runs: Path) -> dict[str, str]:
    """Returns the hash of every file of every artifact of a folder of runs that two equal makes write alike.

    Of pages and summaries, which name times and places, their being there alone counts.
    """
    found = {}
    for path in sorted(runs.rglob("*")):
        name = str(path.relative_to(runs))
        if not path.is_file() or any(part.startswith(".") for part in path.relative_to(runs).parts):
            continue
        varying = path.name in UNHASHED or VARYING.search(name)
        found[name] = "" if varying else hashlib.sha256(path.read_bytes()).hexdigest()
    return {name: value for name, value in found.items() if not name.endswith((".log", ".lock", ".cut"))}


@contextlib.contextmanager
def _small_disk(folder: Path, megabytes: int) -> Iterator[Path | None]:
    """Yields a small file system of its own; None where it cannot be mounted, which wants root: no disk is then full."""
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if mounted.returncode:
        sys.stdout.write("note: no small disk can be mounted here (that wants root), so none will be full\n")
        yield None
        return
    try:
        yield folder
    finally:
        kill([*servers_of(folder / "tmp")])
        time.sleep(0.5)
        subprocess.run(["umount", "--lazy", str(folder)], check=False)


def _arguments(argv: Sequence[str]) -> argparse.Namespace:
    """Returns the arguments."""
    parser = argparse.ArgumentParser(prog="tests.torture", description=__doc__)
    parser.add_argument("--minutes", type=float, default=20, help="how long runs are begun")
    parser.add_argument("--seed", type=int, default=0, help="of blows and moments")
    parser.add_argument("--megabytes", type=int, default=256, help="size of the small disk")
    parser.add_argument("--out", type=Path, default=Path("runs/torture"), help="where torture.json goes")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
