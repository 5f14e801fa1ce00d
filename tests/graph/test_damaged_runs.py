"""Files of a finished run that a full disk, a kill or a hand has damaged: planning tells of them, or has them made again."""

from __future__ import annotations

import runpy
from collections.abc import Callable
from pathlib import Path

import pytest

from handbook_ext.core import artifacts
from handbook_ext.core.errors import UserError
from handbook_ext.core.manifests import manifest_path
from handbook_ext.core.stage import Stage
from handbook_ext.graph.makefile import write_run
from handbook_ext.graph.run_rules import StageRule, run_rules
from handbook_ext.graph.why import states
from handbook_ext.recipes.run import Run
from tests.finished_run import FOLDER, finished_run
from tests.recipe_folder import ROOT, enter_folder, mine

plan: Callable[[list[str]], None] = runpy.run_path(str(ROOT / "scripts" / "plan_goals.py"))["main"]
GOALS = ["--variable=RUNS=runs", "--", "mine-selm", "mine-selm-why", "mine-selm-plan"]


@pytest.fixture
def finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    enter_folder(tmp_path, monkeypatch)
    return finished_run()


def starts(rule: StageRule) -> bool:
    """Whether make would start the stage, by the times."""
    made = min(path.stat().st_mtime_ns for path in (FOLDER / rule.artifact, manifest_path(FOLDER / rule.artifact)))
    return (FOLDER / rule.settings_file).stat().st_mtime_ns > made


def test_a_damaged_manifest_of_any_stage_has_the_stage_started_again(finished: Run) -> None:
    """It was a traceback, and so the stage itself never ran again; or it was newer than the settings, and nothing ran."""
    rules = run_rules(finished)
    whole = {path: path.read_text() for path in (manifest_path(FOLDER / rule.artifact) for rule in rules)}
    for damage in ("", "[]", "null", "{", "\0\0\0", '"files": 3}', '"inputs": null}', '"sha256": null}'):
        for path, text in whole.items():
            path.write_text(text.rstrip().removesuffix("}") + f", {damage}" if damage.endswith("}") else damage)
        write_run(finished, FOLDER.parent)
        assert [rule.artifact for rule in rules if not starts(rule)] == []
        assert all("its manifest is damaged" in state.why for state in states(rules, FOLDER))
        for rule in rules:
            stage = Stage.open(FOLDER / rule.folder, type(rule.settings))
            if rule.inputs:
                with pytest.raises(UserError, match="is damaged; delete it, and run make"):
                    stage.finished()
            else:
                assert not stage.finished()
            stage.release()


def test_a_deleted_file_is_made_again_where_nothing_computes_and_told_elsewhere(finished: Run) -> None:
    by_name = {rule.artifact: rule for rule in run_rules(finished)}
    for name in ("report/train.jsonl", "iter1/policy/config.json"):
        (FOLDER / name).unlink()
    write_run(finished, FOLDER.parent)
    assert {name for name, rule in by_name.items() if starts(rule)} == {"report"}
    told = {state.artifact: state for state in states(run_rules(finished), FOLDER) if state.told}
    assert told["report"].why == ("train.jsonl is missing", "but iter1/policy was changed by hand, so it will refuse")
    assert str(told["iter1/policy"].edited).startswith(
        "is not what its stage made: config.json is missing; what reads it refuses"
    )
    with pytest.raises(UserError, match=r"iter1/policy is not what its stage made: config.json is missing; .*manifest.json, and"):
        plan(["--preflight", *GOALS])


def test_a_changed_weights_file_is_refused_by_name_before_anything_starts(
    finished: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    """make said that there was nothing to be done."""
    (FOLDER / "sft/policy/model.safetensors").write_text("2")
    with pytest.raises(UserError, match=r"^runs/mine-selm/sft/policy is not what its stage made: model.safetensors is changed;"):
        plan(["--preflight", *GOALS])
    plan(GOALS)
    assert "note: runs/mine-selm/sft/policy is not what its stage made" in capsys.readouterr().err


def test_planning_reads_no_file_of_a_finished_run(finished: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(artifacts, "sha256_of", lambda path: pytest.fail(f"{path} was read"))
    assert [state.told for state in states(run_rules(finished), FOLDER) if state.told] == []


@pytest.mark.parametrize("damage", [lambda text: b"", lambda text: text[: len(text) // 2], lambda text: b"\0" * len(text)])
def test_every_derived_file_that_is_cut_off_is_written_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: Callable[[bytes], bytes]
) -> None:
    enter_folder(tmp_path, monkeypatch)
    for name in ("train", "test"):
        (tmp_path / f"{name}.jsonl").write_text("{}")
    mine("data: {train: ../../train.jsonl, test: ../../test.jsonl}\n")
    plan(GOALS)
    before = {path: path.read_bytes() for path in Path("runs").rglob("*") if path.is_file()}
    kinds = {path.suffix for path in before}
    assert kinds == {".yaml", ".mk", ".files", ".txt", ".json"}
    for path, text in before.items():
        path.write_bytes(damage(text))
    plan(GOALS)
    assert {path: path.read_bytes() for path in Path("runs").rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(("place", "message"), [
    ("runs", "^runs: is a file, and a folder is needed there"), ("runs/mine-selm", "^runs/mine-selm: is a file, and a folder"),
    ("runs/mine-selm/iter1", "^runs/mine-selm/iter1: is a file, and a folder is needed there; move it away"),
])  # fmt: skip
def test_a_file_where_a_folder_is_needed_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str, message: str
) -> None:
    enter_folder(tmp_path, monkeypatch)
    mine("seed: 1\n")
    Path(place).parent.mkdir(parents=True, exist_ok=True)
    Path(place).touch()
    with pytest.raises(UserError, match=message):
        plan(GOALS)


def test_runs_that_cannot_be_written_are_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    enter_folder(tmp_path, monkeypatch)
    mine("seed: 1\n")

    def refused(path: Path, *args: object, **words: object) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "mkdir", refused)
    with pytest.raises(UserError, match=r"^runs/mine-selm.*: cannot be written \(Permission denied\); check RUNS and the disk$"):
        plan(GOALS)
