"""Rows in and out of scoring and selection under SeRA: log-probs by plain forwards, and the margins and pairs that follow."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.loop.plain import Json, PlainPolicy, Text, manifest, question, request_seed, rows, side
from tests.workspace import SELM, SERA, Workspace

PAIRS, KEPT, PART, LONGEST_PROMPT = 48, 34, 24, 18  # 34 is 0.7 of 48, rounded.
Copy = Callable[[Workspace, str], Workspace]
Sums = dict[tuple[str, str], float]


@pytest.fixture(scope="module")
def run(sera: Workspace) -> Path:
    return sera.folder / "runs/mine-micro"


def answers(run: Path, kind: str) -> dict[str, Text]:
    """The offline answers, or the samples of an iteration, by id."""
    if kind != "offline":
        return {row["completion_id"]: (question(row), row["text"]) for row in rows(run / kind / "completions.jsonl")}
    offline = rows(run / "data/rows/train.jsonl")
    return {row[f"{name}_id"]: (question(row), side(row, name)) for row in offline for name in ("chosen", "rejected")}


@pytest.fixture(scope="module")
def sums(run: Path) -> Sums:
    """Log-probs of offline answers and samples under each policy, by policy and id."""
    found: Sums = {}
    for name in ("sft", "iter1", "iter2"):
        policy = PlainPolicy(run / name / "policy")
        for kind in ("offline", "iter2", "iter3"):
            texts = answers(run, kind)
            found |= {(name, each): value for each, value in zip(texts, policy.sums(texts.values()), strict=True)}
    return found


@pytest.mark.parametrize(
    ("iteration", "wanted"),
    [
        ("iter1", {("sft", "offline")}),
        ("iter2", {("iter1", "offline"), ("iter1", "iter2"), ("sft", "iter2")}),
        ("iter3", {("iter2", "offline"), ("iter2", "iter3"), ("iter1", "iter3"), ("sft", "iter3")}),
    ],
)
def test_score_stores_what_each_policy_has_not_scored_before(
    run: Path, sums: Sums, iteration: str, wanted: set[tuple[str, str]]
) -> None:
    names = {manifest(run / name / "policy")["policy"]: name for name in ("sft", "iter1", "iter2")}
    stored = {(names[row["policy"]], row["completion"]): row["sum"] for row in rows(run / iteration / "logprobs")}
    assert stored.keys() == {(name, each) for name, kind in wanted for each in answers(run, kind)}
    assert stored == pytest.approx({key: sums[key] for key in stored}, abs=1e-4)
    about = manifest(run / iteration / "logprobs")
    if iteration != "iter1":  # There the pairs were scored, not candidates.
        assert about["scored"] == {name: sum(key[0] == name for key in stored) for name in about["scored"]}
        assert about["external"] == {name: sha for sha, name in names.items() if name in about["scored"]}


def best(values: dict[str, float], count: int) -> set[str]:
    """The names of the largest values."""
    return set(sorted(values, key=lambda name: -values[name])[:count])


def margins_by_hand(iteration: str, sums: Sums) -> Callable[[str], float]:
    """An answer's implicit reward: iter2 against iter1, in the last iteration mixed with iter1 against sft at 0.7 and 0.3."""
    if iteration == "iter2":
        return lambda name: sums["iter1", name] - sums["sft", name]
    return lambda name: 0.7 * (sums["iter2", name] - sums["iter1", name]) + 0.3 * (sums["iter1", name] - sums["sft", name])


@pytest.mark.parametrize("iteration", ["iter2", "iter3"])
def test_select_keeps_the_largest_margins_and_adds_the_widest_pairs_of_samples(run: Path, sums: Sums, iteration: str) -> None:
    reward = margins_by_hand(iteration, sums)
    offline = {
        row["prompt_id"]: reward(row["chosen_id"]) - reward(row["rejected_id"]) for row in rows(run / "data/rows/train.jsonl")
    }
    kept = best(offline, KEPT)
    own: dict[str, list[str]] = {}
    for row in rows(run / iteration / "completions.jsonl"):
        own.setdefault(row["prompt_id"], []).append(row["completion_id"])
    spans = {name: max(map(reward, ids)) - min(map(reward, ids)) for name, ids in own.items() if len(set(ids)) > 1}
    added = best(spans, PAIRS - KEPT)
    pairs = rows(run / iteration / "pairs.jsonl")
    first, second = pairs[:KEPT], pairs[KEPT:]
    assert {row["prompt_id"]: row["margin"] for row in first} == pytest.approx({name: offline[name] for name in kept}, abs=1e-3)
    assert {row["prompt_id"]: row["margin"] for row in second} == pytest.approx({name: spans[name] for name in added}, abs=1e-3)
    labels = {row["prompt_id"]: row for row in rows(run / "data/rows/train.jsonl")}
    columns = ("chosen", "rejected", "chosen_id", "rejected_id", "swapped")
    assert [[row[name] for name in columns] for row in first] == [
        [labels[row["prompt_id"]][name] for name in columns] for row in first
    ]
    for row in second:
        rewards = {each: reward(each) for each in own[row["prompt_id"]]}
        assert rewards[row["chosen_id"]] == max(rewards.values())
        assert rewards[row["rejected_id"]] == min(rewards.values())


def selected_anew(sera: Workspace, copy_of: Copy, changes: str, iteration: str = "iter2") -> tuple[list[str], Path]:
    """The stages that score and select anew in an iteration after changes of its selection, and the run's folder."""
    workspace = copy_of(
        sera, SERA.replace("iter1: {select: {rule: dataset}}", f"iter1: {{select: {{rule: dataset}}}}, {changes}")
    )
    # Those of other iterations are not run: nothing in this test changes what they make.
    stages = [each for each in workspace.commands(f"mine-micro-{iteration}") if each.endswith(iteration) and "train" not in each]
    for each in stages:
        status, said = workspace.execute(each)
        assert status == 0, said
    return [each.split("scripts/")[1].split(".")[0] for each in stages], workspace.folder / "runs/mine-micro"


@pytest.mark.parametrize(("keep_by", "sides"), [("log_prob", {"chosen": 1, "rejected": -1}), ("chosen_log_prob", {"chosen": 1})])
def test_selection_by_log_prob_reads_the_policy_that_starts_the_iteration(
    sera: Workspace, copy_of: Copy, sums: Sums, keep_by: str, sides: dict[str, int]
) -> None:
    """In the second iteration the store has the offline answers under `sft` too; `iter1` decides."""
    select = f"select: {{keep: 0.25, keep_by: {keep_by}, bootstrap: 0}}"
    stages, run = selected_anew(sera, copy_of, f"iter2: {{{select}}}")
    assert stages == ["score_candidates", "select_pairs"]
    values = {
        policy: {
            row["prompt_id"]: sum(sign * sums[policy, row[f"{name}_id"]] for name, sign in sides.items())
            for row in rows(run / "data/rows/train.jsonl")
        }
        for policy in ("sft", "iter1")
    }
    kept = {row["prompt_id"] for row in rows(run / "iter2/pairs.jsonl")}
    assert kept == best(values["iter1"], 12) != best(values["sft"], 12)


def test_margins_are_per_token_where_the_loss_of_the_iteration_is(sera: Workspace, copy_of: Copy, sums: Sums) -> None:
    """IPO as TRL has it."""
    _, run = selected_anew(sera, copy_of, "iter2: {train: {loss_type: ipo, beta: 1.0}, select: {bootstrap: 0}}")
    tokens = {row["completion"]: row["tokens"] for row in rows(run / "iter1/logprobs")}

    def reward(name: str) -> float:
        return (sums["iter1", name] - sums["sft", name]) / tokens[name]

    margins = {
        row["prompt_id"]: reward(row["chosen_id"]) - reward(row["rejected_id"]) for row in rows(run / "data/rows/train.jsonl")
    }
    found = {row["prompt_id"]: row["margin"] for row in rows(run / "iter2/pairs.jsonl")}
    assert found == pytest.approx({name: margins[name] for name in best(margins, KEPT)}, abs=1e-4)


@pytest.mark.parametrize("iteration", ["iter2", "iter3"])
def test_a_random_selection_depends_on_seed_iteration_and_prompt_alone(sera: Workspace, copy_of: Copy, iteration: str) -> None:
    stages, run = selected_anew(sera, copy_of, f"{iteration}: {{select: {{keep_by: random, bootstrap: 0}}}}", iteration)
    assert "score_candidates" not in stages
    drawn = {
        row["prompt_id"]: request_seed("keep", 1, iteration, row["prompt_id"]) for row in rows(run / "data/rows/train.jsonl")
    }
    assert {row["prompt_id"] for row in rows(run / f"{iteration}/pairs.jsonl")} == best(drawn, KEPT)


@pytest.mark.parametrize(("keep_by", "scorers"), [("log_prob", ["iter0"]), ("margin", ["iter0", "sft"])])
def test_candidates_of_the_second_part_are_scored_under_each_policy_that_the_selection_compares(
    selm: Workspace, copy_of: Copy, keep_by: str, scorers: list[str]
) -> None:
    """Neither has met the second part before, though both have scores of the first in the store."""
    rule = f"iterations: {{iter1: {{select: {{rule: sera, keep_by: {keep_by}, bootstrap: 0, keep: 0.5}}, train: {{alpha: 0}}}}, "
    workspace = copy_of(selm, SELM.replace("iterations: {", rule))
    for each in workspace.commands("mine-micro-iter1")[:3]:
        assert workspace.execute(each)[0] == 0
    run = workspace.folder / "runs/mine-micro"
    policies = {name: PlainPolicy(run / name / "policy") for name in scorers}
    part: list[Json] = rows(run / "data/rows/train.jsonl")[PART : 2 * PART]
    short = [row for row in part if len(policies["iter0"].prompt_ids(question(row))) <= LONGEST_PROMPT]
    texts = {row[f"{name}_id"]: (question(row), side(row, name)) for row in short for name in ("chosen", "rejected")}
    expected = {
        (manifest(run / name / "policy")["policy"], each): value
        for name, policy in policies.items()
        for each, value in zip(texts, policy.sums(texts.values()), strict=True)
    }
    stored = {(row["policy"], row["completion"]): row["sum"] for row in rows(run / "iter1/logprobs")}
    assert stored == pytest.approx(expected, abs=1e-4)
    signs = dict(zip((manifest(run / name / "policy")["policy"] for name in scorers), (1, -1), strict=False))

    def reward(name: str) -> float:
        return sum(sign * expected[policy, name] for policy, sign in signs.items())

    values = {row["prompt_id"]: reward(row["chosen_id"]) - reward(row["rejected_id"]) for row in short}
    assert {row["prompt_id"] for row in rows(run / "iter1/pairs.jsonl")} == best(values, PART // 2)
    left_out = len(part) - len(short)
    assert manifest(run / "iter1/logprobs")["counts"]["dropped"] == {"prompt too long": left_out}
    counts = manifest(run / "iter1/pairs.jsonl")["counts"]
    assert (counts["in"], counts["out"], counts["dropped"]["prompt too long"]) == (PART, PART // 2, left_out)
