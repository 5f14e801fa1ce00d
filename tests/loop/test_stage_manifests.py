"""What each stage's manifest says it was made from: the inputs of its role, each with the hash that its producer published."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest

from tests.loop.plain import Json, manifest, rows, sha256
from tests.workspace import SELM, Workspace

TRAIN, TEST = "data/rows/train.jsonl", "data/rows/test.jsonl"
# What the artifacts of the two runs are made from, as paths in the run's folder.
SELM_INPUTS = {
    "data/rows": [],
    "check.json": [TRAIN, TEST, "data/rows/sft.jsonl"],
    "sft/policy": ["data/rows/sft.jsonl"],
    "sft/eval.json": [TEST, "sft/policy"],
    "iter0/pairs.jsonl": [TRAIN],
    "iter0/logprobs": ["iter0/pairs.jsonl", "sft/policy"],
    "iter0/policy": ["iter0/pairs.jsonl", "iter0/logprobs", "sft/policy"],
    "iter0/eval.json": [TEST, "iter0/policy", "sft/policy"],
    "iter1/completions.jsonl": [TRAIN, "iter0/policy"],
    "iter1/rankings.jsonl": ["iter1/completions.jsonl", TRAIN],
    "iter1/pairs.jsonl": [TRAIN, "iter1/rankings.jsonl"],
    "iter1/logprobs": ["iter1/pairs.jsonl", "iter0/policy"],
    "iter1/policy": ["iter1/pairs.jsonl", "iter1/logprobs", "iter0/policy"],
    "iter1/eval.json": [TEST, "iter1/policy", "sft/policy"],
    "report": [
        f"{name}/{part}" for name in ("sft", "iter0", "iter1") for part in ("eval.json", "policy", "pairs.jsonl")
        if name != "sft" or part == "eval.json"
    ],
}  # fmt: skip
WITH_MANIFEST_BESIDE = ("eval", "check")  # JSON, the others JSONL.
SERA_INPUTS = {
    "iter1/pairs.jsonl": [TRAIN],
    "iter2/completions.jsonl": [TRAIN, "iter1/policy"],
    "iter2/logprobs": [TRAIN, "iter2/completions.jsonl", "iter1/policy", "iter1/logprobs"],
    "iter2/pairs.jsonl": [TRAIN, "iter2/completions.jsonl", "iter1/logprobs", "iter2/logprobs"],
    "iter3/completions.jsonl": [TRAIN, "iter2/policy"],
    "iter3/logprobs": [TRAIN, "iter3/completions.jsonl", "iter2/policy", "iter1/logprobs", "iter2/logprobs"],
    "iter3/pairs.jsonl": [TRAIN, "iter3/completions.jsonl", "iter1/logprobs", "iter2/logprobs", "iter3/logprobs"],
    "iter3/policy": ["iter3/pairs.jsonl", "iter3/logprobs", "iter2/policy"],
}


def published(path: Path) -> str:
    """The hash of an artifact: of a file its content, of a folder what its manifest says."""
    return sha256(path) if path.is_file() else str(manifest(path)["sha256"])


def run_of(workspace: Workspace) -> Path:
    return workspace.folder / "runs/mine-micro"


def test_every_artifact_of_a_run_of_selm_is_made_from_its_inputs_and_nothing_else(selm: Workspace) -> None:
    run = run_of(selm)
    assert {str(path.parent.relative_to(run)) for path in run.rglob("*/manifest.json")} | {
        str(path.relative_to(run)).replace(".manifest", "") + suffix_of(path) for path in run.rglob("*.manifest.json")
    } == SELM_INPUTS.keys()
    for artifact, inputs in SELM_INPUTS.items():
        check_inputs(run, artifact, inputs)


@pytest.mark.parametrize("artifact", SERA_INPUTS)
def test_artifacts_of_a_run_of_sera_are_made_from_their_inputs_and_nothing_else(sera: Workspace, artifact: str) -> None:
    check_inputs(run_of(sera), artifact, SERA_INPUTS[artifact])


def suffix_of(path: Path) -> str:
    return "" if path.name.startswith(WITH_MANIFEST_BESIDE) else "l"


def check_inputs(run: Path, artifact: str, inputs: list[str]) -> None:
    about = manifest(run / artifact)
    here = (run / artifact).parent
    assert about["inputs"] == {os.path.relpath(run / name, here): published(run / name) for name in inputs}
    counts = about["counts"]
    assert counts["in"] == counts["out"] + sum(counts.get("dropped", {}).values())
    assert about["seed"] == 1
    iteration = artifact.split("/", maxsplit=1)[0]
    assert about["iteration"] == (iteration if iteration.startswith("iter") or artifact.endswith("eval.json") else None)


def test_a_policy_has_one_hash_wherever_it_is_named(selm: Workspace, sera: Workspace) -> None:
    for run, order in ((run_of(selm), ["sft", "iter0", "iter1"]), (run_of(sera), ["sft", "iter1", "iter2", "iter3"])):
        names = {each: str(manifest(run / each / "policy")["policy"]) for each in order}
        assert len(set(names.values())) == len(order)
        for before, each in pairwise(order):
            assert manifest(run / each / "policy")["start"] == names[before]
            assert manifest(run / each / "logprobs")["policy"] == names[before]
            if (run / each / "completions.jsonl").is_file():
                assert manifest(run / each / "completions.jsonl")["policy"] == names[before]
        for each in order:
            if (run / each / "eval.json").is_file():
                assert evaluation(run / each)["policy"] == {"name": each, "sha256": names[each]}


def test_only_the_scoring_of_candidates_reads_policies_that_are_no_input_and_it_names_them(
    selm: Workspace, sera: Workspace
) -> None:
    run = run_of(sera)
    for iteration, older in (("iter2", ["sft", "iter1"]), ("iter3", ["sft", "iter1", "iter2"])):
        stated = manifest(run / iteration / "logprobs")["external"]
        assert stated == {name: manifest(run / name / "policy")["policy"] for name in older}
        assert {row["policy"] for row in rows(run / iteration / "logprobs")} == set(stated.values())
    for artifact in SELM_INPUTS:
        assert manifest(run_of(selm) / artifact)["external"] == {}


def test_a_policy_that_judges_itself_is_the_one_that_made_the_samples(
    selm: Workspace, copy_of: Callable[[Workspace, str], Workspace]
) -> None:
    """So small a policy gives no points: every judgement failed, and is counted."""
    judge = "rank: {ranker: self, candidates: samples, rubric: tiny, max_new_tokens: 2, batch_size: 64}\n"
    workspace = copy_of(selm, SELM + judge)
    ranking = next(each for each in workspace.commands("mine-micro-iter1") if "rank_completions" in each)
    status, said = workspace.execute(ranking)
    assert status == 0, said
    run = run_of(workspace)
    check_inputs(run, "iter1/rankings.jsonl", ["iter1/completions.jsonl", TRAIN, "iter0/policy"])
    ranked = rows(run / "iter1/rankings.jsonl")
    assert [[each["text"] for each in row["candidates"]] for row in ranked] == samples_of(run)
    assert manifest(run / "iter1/rankings.jsonl")["failed"] == sum(each["failed"] for row in ranked for each in row["candidates"])


def samples_of(run: Path) -> list[list[str]]:
    """The texts of the samples, three to a prompt."""
    texts = [row["text"] for row in rows(run / "iter1/completions.jsonl")]
    return [texts[start : start + 3] for start in range(0, len(texts), 3)]


def evaluation(folder: Path) -> Json:
    return dict(json.loads((folder / "eval.json").read_text()))
