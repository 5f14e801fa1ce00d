"""The settings files of a run: what they say, how they are read, and when they are written."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from handbook_ext.core.errors import UserError
from handbook_ext.core.stage import Stage
from handbook_ext.graph.makefile import write_run
from handbook_ext.graph.run_rules import StageRule, run_rules
from handbook_ext.graph.stages import TrainStage
from handbook_ext.recipes.run import Run, resolve
from tests.recipe_folder import ROOT, enter_folder, mine

SCRIPT = ROOT / "scripts" / "resolve_recipe.py"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder of a test."""
    return enter_folder(tmp_path, monkeypatch)


def rules_of(run: Run) -> dict[str, StageRule]:
    """The rules by settings file."""
    return {rule.settings_file: rule for rule in run_rules(run)}


def test_the_files_say_what_was_resolved_and_know_no_lines(folder: Path) -> None:
    run = resolve("tiny-selm")
    write_run(run, Path("runs"))
    for rule in run_rules(run):
        text = (Path("runs/tiny-selm") / rule.settings_file).read_text()
        assert text.splitlines()[0] == "# Resolved from recipe tiny-selm; edit the recipe, not this file."
        assert ".yaml:" not in text
        assert Stage.open(Path("runs/tiny-selm") / rule.folder, type(rule.settings)).settings == rule.settings
    with pytest.raises(UserError, match="settings of this stage are missing; run make"):
        Stage.open(Path("runs/tiny-selm/iter9"), TrainStage)
    Path("runs/tiny-selm/iter1/train.yaml").write_text("[")
    with pytest.raises(UserError, match="is damaged; run make, which writes it anew"):
        Stage.open(Path("runs/tiny-selm/iter1"), TrainStage)


@pytest.mark.parametrize("title", ["1e5", "2024-01-01", "0x10", "1_000", "no", "12:30", "=", "~", " a\nb: c", "ä"])
def test_text_that_looks_like_something_else_arrives_as_text(folder: Path, title: str) -> None:
    run = mine(f"report: {{title: {title!r}}}\n".replace("\\n", " ")) if "\n" not in title else resolve("tiny-selm")
    write_run(run, Path("runs"))
    from handbook_ext.graph.stages import ReportStage

    assert Stage.open(Path("runs") / run.name, ReportStage).settings.report.title == run.settings.report.title


def test_settings_are_rewritten_only_when_they_change(folder: Path) -> None:
    text = "train: {learning_rate: 1e-4}\n"
    first = write_run(mine(text), Path("runs"))
    assert {str(path.relative_to("runs/mine-selm")) for path in first} == {*rules_of(mine(text)), "run.mk"}
    stamps = {path: path.stat().st_mtime_ns for path in first}
    time.sleep(0.01)
    assert write_run(mine("# a comment moves every line\n" + text), Path("runs")) == []
    assert {path: path.stat().st_mtime_ns for path in first} == stamps
    again = write_run(mine(text + "iterations: {iter3: {train: {learning_rate: 2e-4}}}\n"), Path("runs"))
    assert again == [Path("runs/mine-selm/check.yaml"), Path("runs/mine-selm/iter3/train.yaml")]
    Path("runs/mine-selm/iter1/train.yaml").write_text("cut of")
    Path("runs/mine-selm/run.mk").write_bytes(b"\xff")
    write_run(mine(text + "iterations: {iter3: {train: {learning_rate: 2e-4}}}\n"), Path("runs"))
    assert Stage.open(Path("runs/mine-selm/iter1"), TrainStage).settings.train.learning_rate == 1e-4
    assert not list(Path("runs").rglob(".*.partial"))


def test_a_failed_write_leaves_the_old_file(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_run(mine("seed: 1\n"), Path("runs"))
    before = Path("runs/mine-selm/data/data.yaml").read_text()

    def full(path: Path, content: bytes) -> int:
        if path.name.endswith(".partial"):
            path.touch()
            raise OSError(28, "No space left on device")

    changed = mine("seed: 2\n")
    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space left"):
        write_run(changed, Path("runs"))
    assert Path("runs/mine-selm/data/data.yaml").read_text() == before
    assert not list(Path("runs").rglob(".*"))
