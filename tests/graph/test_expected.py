"""The stages that a call of make has to make: their names, and how long each takes by what others of its sort took."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from handbook_ext.core.artifacts import manifest_path
from handbook_ext.graph.expected import expected_stages
from handbook_ext.graph.run_rules import run_rules
from handbook_ext.recipes.run import resolve
from tests.recipe_folder import enter_folder, mine


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder of a test."""
    return enter_folder(tmp_path, monkeypatch)


def finish(artifact: Path, seconds: float, **more: str) -> None:
    """Leaves the manifest of a finished artifact."""
    path = manifest_path(artifact)
    path.parent.mkdir(parents=True, exist_ok=True)
    facts: dict[str, object] = {key: {} for key in ("files", "inputs", "external", "settings", "counts")}
    words = dict.fromkeys(("sha256", "key", "policy"), "")
    path.write_text(json.dumps({**facts, **words, "stage": "x", "seconds": seconds, **more}))


def test_seconds_are_those_of_the_same_stage_here_or_under_another_seed(folder: Path) -> None:
    mine("data: {dataset: some/pairs}\n")
    run, other = resolve("mine-selm"), resolve("mine-selm-seed2")
    runs = Path("runs")
    finish(runs / "mine-selm/iter1/policy", 60)
    finish(runs / "mine-selm/iter2/policy", 1, shared_from="another run, in a moment")
    finish(runs / "mine-selm-seed2/iter3/policy", 80)
    finish(runs / "mine-selm-seed2/report", 4)
    finish(runs / "tiny-selm/iter1/completions.jsonl", 9)
    found = {each.name: each.seconds for each in expected_stages([(run, run_rules(run))], runs)}
    assert (found["iter1 train"], found["iter2 train"], found["iter3 train"], found["report"]) == (60, 60, 80, 4)
    assert found["iter1 generate"] is None and found["data"] is None
    first = {each.name: each.seconds for each in expected_stages([(run, run_rules(run))], Path("elsewhere"))}
    assert first["report"] == 5 and first["iter3 train"] is None  # Or a first run could never say what is left in all.
    both = expected_stages([(run, run_rules(run)[:1]), (other, run_rules(other)[:1]), (run, run_rules(run)[:2])], runs)
    assert [each.name for each in both] == ["mine-selm data", "mine-selm check", "mine-selm-seed2 data"]
    assert both[0].sort == both[2].sort and both[0].artifact == "runs/mine-selm/data/rows"


def test_three_runs_beside_are_looked_at_and_no_more(folder: Path) -> None:
    run, runs = mine("seed: 1\n"), Path("runs")
    (runs / "mine-selm").mkdir(parents=True)
    for seed, stage in ((2, "iter0"), (3, "iter1"), (4, "iter2"), (5, "iter3")):
        finish(runs / f"mine-selm-seed{seed}/{stage}/pairs.jsonl", seed)
    found = {each.artifact: each.seconds for each in expected_stages([(run, run_rules(run))], runs)}
    assert found["runs/mine-selm/iter2/pairs.jsonl"] == 4
    assert found["runs/mine-selm/iter3/pairs.jsonl"] != 5
