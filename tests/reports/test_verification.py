"""What `make <run>-verify` finds: every file is read, and each artifact is ok, changed, missing, stale, or was not made."""

from __future__ import annotations

import json
import os
import runpy
import shutil
from pathlib import Path

import pytest

from handbook_ext.core.errors import UserError
from handbook_ext.core.manifests import manifest_path
from handbook_ext.graph.goals import plan_goals
from handbook_ext.graph.makefile import write_run
from handbook_ext.graph.run_rules import run_rules
from handbook_ext.recipes.run import Run
from handbook_ext.reports.verification import verify_run
from tests.finished_run import FOLDER, RECIPE, finished_run
from tests.recipe_folder import ROOT, enter_folder, mine


@pytest.fixture
def finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    enter_folder(tmp_path, monkeypatch)
    return finished_run()


def found(run: Run) -> dict[str, tuple[str, str]]:
    """Word and reason of each artifact that is not ok."""
    return {each.artifact: (each.word, each.about) for each in verify_run(run_rules(run), FOLDER) if each.word != "ok"}


def test_a_run_as_it_was_made_is_ok_with_its_size(finished: Run) -> None:
    told = list(verify_run(run_rules(finished), FOLDER))
    assert [each.artifact for each in told] == [rule.artifact for rule in run_rules(finished)]
    assert found(finished) == {}
    assert told[0].about == "5 files, 0.0 MB"


def test_a_file_of_its_size_and_time_is_read_all_the_same(finished: Run) -> None:
    file = FOLDER / "iter3/policy/model.safetensors"
    time = file.stat().st_mtime_ns
    file.write_text("2")
    os.utime(file, ns=(time, time))
    told = found(finished)
    assert told["iter3/policy"] == ("changed", "model.safetensors is changed")
    assert told["iter3/eval.json"] == ("stale", "made from iter3/policy, not as it was made")
    assert told.keys() == {"iter3/policy", "iter3/eval.json", "iter3/health.json", "report"}


def test_missing_is_what_something_was_made_from_and_the_rest_was_not_made(finished: Run) -> None:
    shutil.rmtree(FOLDER / "report")
    (FOLDER / "iter2/rankings.jsonl").unlink()
    (FOLDER / "iter3/policy/config.json").unlink()
    shutil.rmtree(FOLDER / "iter2/logprobs")
    told = found(finished)
    assert told["report"] == ("not made", "")
    assert told["iter2/rankings.jsonl"] == ("missing", "its manifest is here")
    assert told["iter3/policy"] == ("missing", "config.json is missing")
    assert told["iter2/logprobs"] == ("missing", "what was made from it is here")


def test_other_settings_and_an_edited_manifest_are_told(finished: Run) -> None:
    before = finished.iterations[-1].settings.train.beta
    told = found(mine(RECIPE + "iterations: {iter3: {train: {beta: 0.9}}}\n"))
    assert told["iter3/policy"] == ("stale", f"made with train.beta {before}, now 0.9")
    path = manifest_path(FOLDER / "iter1/pairs.jsonl")
    manifest = json.loads(path.read_text())
    path.write_text(json.dumps(manifest | {"settings": manifest["settings"] | {"seed": 9}}))
    mine(RECIPE)
    assert found(finished)["iter1/pairs.jsonl"][0] == "changed"


def test_what_no_stage_makes_any_more_is_read_too(finished: Run) -> None:
    shutil.copytree(FOLDER / "iter3", FOLDER / "iter9")
    (FOLDER / "iter9/pairs.jsonl").write_text("2")
    told = {each.artifact: each for each in verify_run(run_rules(finished), FOLDER)}
    assert told["iter9/policy"].word == "ok"
    assert told["iter9/pairs.jsonl"].word == "changed"
    assert told["iter9/pairs.jsonl"].about.endswith("no stage of the recipe makes it")


def test_the_goal_makes_nothing(finished: Run) -> None:
    plan = plan_goals(["mine-selm-verify"], {"RUNS": "runs"})
    assert plan.wanted == {}
    assert plan.lines[:3] == [
        ".PHONY: mine-selm-verify", "mine-selm-verify:", "\t@$(PYTHON) scripts/verify_run.py $(said) -- mine-selm-verify",
    ]  # fmt: skip


def test_the_script_ends_with_an_error_where_an_artifact_is_not_as_it_was_made(
    finished: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    main = runpy.run_path(str(ROOT / "scripts/verify_run.py"))["main"]
    words = ["--variable=RUNS=runs", "--variable=THREADS=1", "--given=RUNS", "mine-selm-verify"]
    main(words)
    count = len(run_rules(finished))
    out = capsys.readouterr().out.splitlines()
    assert out[0].startswith(f"[  1/{count}] ok ") and len(out) == count + 1
    assert out[-1] == f"runs/mine-selm: all {count} artifacts are as they were made; 0 were not made yet"
    (FOLDER / "report/config.json").write_text("2")
    with pytest.raises(UserError, match=rf"runs/mine-selm: 1 of {count} artifacts are not as they were made, the first: report"):
        main(words)


def test_the_script_reads_what_a_policy_was_evaluated_on_at_whatever_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    enter_folder(tmp_path, monkeypatch)
    write_run(mine("benchmarks: {sets: {small: {source: test, measures: [single]}}}\n"), FOLDER.parent)
    with pytest.raises(UserError, match="nothing of this run was made yet, so there is nothing to verify"):
        runpy.run_path(str(ROOT / "scripts/verify_run.py"))["main"](["--variable=RUNS=runs", "mine-selm-verify"])
    assert " not made iter1/small/eval.json\n" in capsys.readouterr().out
