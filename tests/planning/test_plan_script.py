"""What planning leaves for make besides rules: how a goal ends, what is noted, and why a plan cannot be written."""

from __future__ import annotations

import json
import runpy
from pathlib import Path
from typing import Any

import pytest

from handbook_ext.planning import preflight
from tests.finished_run import finished_run
from tests.recipe_folder import ROOT, enter_folder, mine

GOALS = Path("runs/.goals")


@pytest.fixture(autouse=True)
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The names of the script, in a working folder of its own, on a machine with memory and disk enough."""
    enter_folder(tmp_path, monkeypatch)
    monkeypatch.setattr(preflight, "free_memory", lambda: None)
    return runpy.run_path(str(ROOT / "scripts/plan_goals.py"))


def test_what_goes_on_from_a_goal_has_the_same_words_in_quotes(script: dict[str, Any]) -> None:
    mine("seed: 1\n")
    words = ["--variable=SET=train.beta=0.5 select.keep=0.5", "--given=SET", "--variable=RUNS=runs"]
    script["main"](["--preflight", *words, "--", "mine-selm-iter1"])
    [ending] = GOALS.glob("*.json")
    assert json.loads(ending.read_text())["next"] == "make mine-selm-report 'SET=train.beta=0.5 select.keep=0.5'"


def test_a_finished_goal_is_shown_by_its_text_unless_its_report_looks_again(script: dict[str, Any]) -> None:
    finished_run()
    script["main"](["--preflight", "--", "mine-selm"])
    assert [path.suffix for path in GOALS.glob("*.[jt]*")] == [".txt"]
    [text] = GOALS.glob("*.txt")
    text.unlink()
    Path("runs/mine-selm/iter1/small").mkdir()
    Path("runs/mine-selm/iter1/small/eval.json").touch()  # The report shows it, whoever has made it.
    script["main"](["--preflight", "--", "mine-selm"])
    assert [path.suffix for path in GOALS.glob("*.[jt]*")] == [".json"]


@pytest.mark.parametrize(("goal", "told"), [("mine-selm-check", True), ("mine-selm-iter1", False)])
def test_a_check_notes_what_could_not_be_compared_and_other_goals_only_beside_a_lack(
    goal: str, told: bool, script: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    mine("seed: 1\n")
    script["main"](["--preflight", "--", goal])
    assert ("note: mine-selm: how large its policies are is not known" in capsys.readouterr().err) is told


def test_why_a_plan_cannot_be_written_is_told(script: dict[str, Any]) -> None:
    Path("runs/mine-selm/run.mk").mkdir(parents=True)
    Path("file").touch()
    for place, said in (
        ("runs", "runs: cannot be written (denied); check RUNS and the disk"),
        ("runs/mine-selm/run.mk", "runs/mine-selm/run.mk: is a folder, and a file is needed there; move it away"),
        ("file/a/run.mk", "file: is a file, and a folder is needed there; move it away, or give another RUNS"),
    ):
        assert script["not_written"](OSError(13, "denied", place), Path("runs")) == said
