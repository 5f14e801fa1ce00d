"""What `make <run>-why` says: of each stage that would run, why; of nothing else that it would."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from handbook_ext.core.artifacts import manifest_path, recorded_hash
from handbook_ext.core.integrity import Damage
from handbook_ext.graph.makefile import write_run
from handbook_ext.graph.run_rules import run_rules
from handbook_ext.graph.why import remedy, states, why_text
from handbook_ext.recipes.run import Run
from tests.finished_run import FOLDER, RECIPE, finished_run, make
from tests.recipe_folder import enter_folder, mine


@pytest.fixture
def finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """A run of which every stage is done, the check of the last iteration's health among them."""
    enter_folder(tmp_path, monkeypatch)
    return finished_run()


def told(run: Run) -> dict[str, list[str]]:
    """The reasons, of the artifacts that have one."""
    return {each.artifact: each.told for each in states(run_rules(run), FOLDER) if each.told}


def told_of_rows(run: Run) -> list[str]:
    """What is told of the rows of data."""
    return states(run_rules(run)[:1], FOLDER)[0].told


def test_a_finished_run_is_up_to_date_and_each_of_its_stages_is_needed_by_the_report(finished: Run) -> None:
    rules = run_rules(finished)
    assert why_text(finished, FOLDER) == f"{len(rules)} of {len(rules)} stages of mine-selm are up to date\n"
    needed = {name for rule in rules for each in (*rule.inputs, *rule.after) for name in (each, os.path.dirname(each))}
    assert {rule.artifact for rule in rules} - needed == {"report"}


@pytest.mark.parametrize(("path", "reason"), [
    ("iter3/pairs.jsonl", "it was deleted"),
    ("iter3/pairs.manifest.json", "its manifest is missing"),
    ("iter3/policy", "it is not there: never made, or deleted"),
])  # fmt: skip
def test_what_was_deleted_is_made_and_then_what_reads_it(finished: Run, path: str, reason: str) -> None:
    shutil.rmtree(FOLDER / path) if (FOLDER / path).is_dir() else (FOLDER / path).unlink()
    artifact = path.replace(".manifest.json", ".jsonl")
    found = told(finished)
    assert found[artifact] == [reason]
    readers = {rule.artifact for rule in run_rules(finished) if artifact in rule.inputs}
    assert readers
    assert all(f"{artifact} will be made first" in found[each] for each in readers)
    assert {artifact, *readers, "report"} <= found.keys()
    assert {each.split("/")[0] for each in found} == {"iter3", "report"}


def test_a_changed_setting_is_told_with_both_values(finished: Run) -> None:
    changed = mine(RECIPE + "iterations: {iter3: {train: {beta: 0.9}}}\n")
    old = finished.iterations[-1].settings.train.beta
    lines = why_text(changed, FOLDER).splitlines()
    assert lines[0] == f"iter3/policy: train.beta: {old} -> 0.9"
    assert lines[1:-1] == [
        "iter3/eval.json: iter3/policy will be made first",
        "iter3/health.json: iter3/policy will be made first",
        "report: iter3/eval.json will be made first; iter3/policy will be made first",
    ]
    count = len(run_rules(finished))
    assert lines[-1] == f"{count - 4} of {count} stages of mine-selm are up to date"


def test_an_input_that_is_another_one_is_told_with_both_hashes(finished: Run) -> None:
    (rule,) = [each for each in run_rules(finished) if each.artifact == "iter3/pairs.jsonl"]
    before = str(recorded_hash(FOLDER / rule.artifact))
    (FOLDER / rule.artifact).unlink()
    make(finished, rule, "2")
    after = str(recorded_hash(FOLDER / rule.artifact))
    found = told(finished)
    reason = f"iter3/pairs.jsonl is another one: sha256 {before[:12]} -> {after[:12]}"
    assert found["iter3/logprobs"] == [reason]
    assert found["iter3/policy"] == [reason, "iter3/logprobs will be made first"]
    assert "iter3/pairs.jsonl" not in found


@pytest.mark.parametrize("path", ["iter1/pairs.jsonl", "data/rows/train.jsonl"])
def test_what_was_changed_by_hand_is_told_and_nothing_waits_for_it(finished: Run, path: str) -> None:
    (FOLDER / path).write_text("by hand")
    count, artifact = len(run_rules(finished)), path.removesuffix("/train.jsonl")
    manifest = manifest_path(FOLDER / artifact)
    first, last = why_text(finished, FOLDER).splitlines()
    assert first == (
        f"{artifact}: is not what its stage made: {Path(path).name} is changed; what reads it refuses: restore it, or delete "
        f"{manifest}, and make makes it again"
    )
    assert last == f"{count - 1} of {count} stages of mine-selm are up to date"


def test_a_stage_whose_input_was_changed_by_hand_makes_nothing(finished: Run) -> None:
    """And what would run anyway makes an artifact that was changed by hand anew."""
    (FOLDER / "iter3/pairs.jsonl").write_text("by hand")
    trains = told(mine(RECIPE + "iterations: {iter3: {train: {beta: 0.9}}}\n"))
    assert trains.keys() == {"iter3/pairs.jsonl", "iter3/policy"}
    assert trains["iter3/policy"][1:] == ["but iter3/pairs.jsonl was changed by hand, so it will refuse"]
    selects = told(mine(RECIPE + "iterations: {iter3: {select: {explore_as_chosen: skip}}}\n"))
    assert selects["iter3/pairs.jsonl"] == ['select.explore_as_chosen: "keep" -> "skip"']
    assert selects["iter3/logprobs"] == ["iter3/pairs.jsonl will be made first"]


def test_a_file_outside_the_run_that_changed_since_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    enter_folder(tmp_path, monkeypatch)
    for name in ("train", "test"):
        (tmp_path / f"{name}.jsonl").write_text("{}")
    run = mine(f"data: {{train: {tmp_path}/train.jsonl, test: {tmp_path}/test.jsonl}}\n")
    make(run, run_rules(run)[0])
    assert told_of_rows(run) == []
    os.utime(tmp_path / "train.jsonl", ns=(1, 1))  # Older than the rows, as a copy with its times kept: make goes by the stamp.
    write_run(run, FOLDER.parent)
    why = "a file outside the run changed, of: train.jsonl, test.jsonl; its content decides"
    assert told_of_rows(run) == [why]


def test_files_of_ones_own_beside_changed_ones_are_not_all_there_is_to_do() -> None:
    artifact = Path("runs/x/iter1/policy")
    assert remedy(artifact, Damage((), (), ("notes",))) == "move that elsewhere"
    for damage in (Damage((), ("config.json",), ("notes",)), Damage(("config.json",), (), ("notes",)), Damage((), ("a",), ())):
        assert remedy(artifact, damage).startswith("what reads it refuses: restore it, or delete ")
