"""Rows in and out of evaluate, health and report: rewards, divergence and limits computed again from policies and rows."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from statistics import correlation, fmean

import pytest

from handbook_ext.data.tiny_world import true_reward
from tests.loop.plain import Json, PlainPolicy, id_of, logged_steps, manifest, question, request_seed, rows, side
from tests.workspace import SELM, Workspace

HELD_OUT, LONGEST_PROMPT, NEW_TOKENS = 7, 18, 12
Copy = Callable[[Workspace, str], Workspace]


@pytest.fixture(scope="module")
def run(selm: Workspace) -> Path:
    return selm.folder / "runs/mine-micro"


@pytest.fixture(scope="module")
def policies(run: Path) -> dict[str, PlainPolicy]:
    return {name: PlainPolicy(run / name / "policy") for name in ("sft", "iter0", "iter1")}


@pytest.fixture(scope="module")
def held_out(run: Path, policies: dict[str, PlainPolicy]) -> list[Json]:
    """The first seven test rows, less those whose prompt is too long."""
    read = rows(run / "data/rows/test.jsonl")
    assert len(read) > HELD_OUT
    found = [row for row in read[:HELD_OUT] if len(policies["sft"].prompt_ids(question(row))) <= LONGEST_PROMPT]
    assert len(found) < HELD_OUT
    return found


def evaluation(run: Path, name: str) -> Json:
    return dict(json.loads((run / name / "eval.json").read_text()))


@pytest.mark.parametrize("name", ["sft", "iter0", "iter1"])
def test_evaluate_answers_each_held_out_prompt_once_per_temperature_and_judges_by_the_true_reward(
    run: Path, held_out: list[Json], policies: dict[str, PlainPolicy], name: str
) -> None:
    found = evaluation(run, name)
    assert found["policy"] == {"name": name, "sha256": manifest(run / name / "policy")["policy"]}
    assert {each: decoding["temperature"] for each, decoding in found["decodings"].items()} == {
        "greedy": 0.0, "sampled at 0.9": 0.9
    }  # fmt: skip
    for decoding in found["decodings"].values():
        assert [row["prompt_id"] for row in decoding["rows"]] == [row["prompt_id"] for row in held_out]
        for row, asked in zip(decoding["rows"], held_out, strict=True):
            temperature = decoding["temperature"]
            drawn = policies[name].sample(
                question(asked), seed=request_seed(1, "evaluate", temperature, asked["prompt_id"]), temperature=temperature,
                top_p=0.95, tokens=NEW_TOKENS,
            )  # fmt: skip
            assert (row["text"], row["tokens"], row["finish_reason"]) == drawn
            assert row["reward"] == pytest.approx(true_reward(question(asked), row["text"]))
            assert row["completion_id"] == id_of(asked, row["text"])
        assert decoding["mean_reward"] == pytest.approx(fmean(row["reward"] for row in decoding["rows"]))
        assert decoding["mean_tokens"] == pytest.approx(fmean(row["tokens"] for row in decoding["rows"]))
    assert manifest(run / name / "eval.json")["counts"] == {
        "in": HELD_OUT, "out": len(held_out), "dropped": {"prompt too long": HELD_OUT - len(held_out)}
    }  # fmt: skip


@pytest.mark.parametrize("name", ["iter0", "iter1"])
def test_implicit_rewards_and_kl_are_relative_to_the_policy_that_started_the_loop(
    run: Path, held_out: list[Json], policies: dict[str, PlainPolicy], name: str
) -> None:
    found = evaluation(run, name)
    own = [row["text"] for row in found["decodings"]["sampled at 0.9"]["rows"]]
    texts = [(question(row), side(row, each)) for row in held_out for each in ("chosen", "rejected")]
    texts += [(question(row), text) for row, text in zip(held_out, own, strict=True)]
    after, first = (policies[each].sums(texts) for each in (name, "sft"))
    ratios = [ours - theirs for ours, theirs in zip(after, first, strict=True)]
    implicit = found["implicit"]
    assert implicit["initial_policy"] == "sft"
    assert [row["side"] for row in implicit["rows"]] == ["chosen", "rejected"] * len(held_out) + ["sample"] * len(held_out)
    assert [row["log_ratio"] for row in implicit["rows"]] == pytest.approx(ratios, abs=2e-4)
    offline, samples = ratios[: 2 * len(held_out)], ratios[2 * len(held_out) :]
    assert implicit["kl"] == pytest.approx(fmean(samples), abs=2e-4)
    assert abs(fmean(samples) - fmean(offline)) > 0.01
    assert implicit["accuracy"] == fmean(better > worse for better, worse in zip(offline[::2], offline[1::2], strict=True))
    rewards = [true_reward(*each) for each in texts[: len(offline)]]
    assert implicit["correlation_reward"] == pytest.approx(correlation(offline, rewards), abs=1e-3)


def test_the_policy_that_starts_the_loop_has_no_implicit_rewards(run: Path) -> None:
    assert "implicit" not in evaluation(run, "sft")


LOOSE = (
    "max_tied_prompts: 1, max_identical_pairs: 1, max_empty_completions: 1, min_distinct_completions: 0, max_length_gap: 99, "
    "max_length_correlation: 1, max_chosen_fall: 999, max_kl: 999"
)

# Of the last iteration, which the report alone waits for.
CHECK = ".venv/bin/python scripts/check_health.py runs/mine-micro/iter1"


def words(row: Json, name: str) -> int:
    return len(side(row, name).split())


def test_health_measures_the_iterations_own_rows_and_stops_at_each_limit(selm: Workspace, copy_of: Copy) -> None:
    workspace = copy_of(selm, SELM + f"health: {{{LOOSE}}}\n")
    commands = workspace.commands("mine-micro")
    assert [each.split()[-1] for each in commands if "check_health.py" in each] == [f"runs/mine-micro/iter{n}" for n in range(2)]
    # The report reads no health, and is not written again where limits are new.
    assert not any("write_report.py" in each for each in commands)
    assert workspace.execute(CHECK)[0] == 0
    run = workspace.folder / "runs/mine-micro"
    health = json.loads((run / "iter1/health.json").read_text())
    pairs, samples = rows(run / "iter1/pairs.jsonl"), rows(run / "iter1/completions.jsonl")
    chosen, rejected = ([words(row, name) for row in pairs] for name in ("chosen", "rejected"))
    texts = [[row["text"] for row in samples[start : start + 3]] for start in range(0, len(samples), 3)]
    log = logged_steps(run / "iter1")
    expected = {
        "pairs": len(pairs), "length_gap": fmean(chosen) - fmean(rejected),
        "length_correlation": correlation([1.0] * len(pairs) + [0.0] * len(pairs), [*chosen, *rejected]),
        "distinct_completions": fmean(len(set(each)) / 3 for each in texts),
        "empty_completions": fmean(not row["text"] for row in samples),
        "tied_prompts": 0.0, "identical_pairs": 0.0, "kl": evaluation(run, "iter1")["implicit"]["kl"],
        "chosen_fall": log[-1]["logps/chosen_fall"], "reward_margin": log[-1]["rewards/margins"],
    }  # fmt: skip
    assert {name: health[name] for name in expected} == pytest.approx(expected)
    assert manifest(run / "iter1/health.json")["counts"] == {"in": 1, "out": 1}
    # Without a limit of it the KL is no input: it is not among the metrics, though the evaluation ran before.
    workspace.write(SELM + "health: {max_length_gap: 99}\n")
    workspace.commands("mine-micro")
    assert workspace.execute(CHECK)[0] == 0
    assert json.loads((run / "iter1/health.json").read_text()) == {
        name: health[name] for name in health if name not in ("kl", "surprisal")
    }  # fmt: skip
    tight = {f"max_{name}": abs(health[name]) / 2 for name in ("length_gap", "length_correlation")}
    for limit, bound in tight.items():
        assert bound > 0
        workspace.write(SELM + f"health: {{{limit}: {bound:.6f}}}\n")
        workspace.commands("mine-micro")
        status, said = workspace.execute(CHECK)
        assert (status, said.count("error:")) == (2, 1)
        metric = limit.removeprefix("max_")
        stopped = f"error: runs/mine-micro/iter1: the run stops here: {metric} is {health[metric]:.3g}, health.{limit} is "
        assert said.splitlines()[-2].startswith(stopped)


def test_report_gives_the_mean_rewards_of_the_evaluations_in_their_order(run: Path) -> None:
    summary = json.loads((run / "report/summary.json").read_text())
    (recipe,) = summary["recipes"]
    assert [each["policy"] for each in recipe["policies"]] == ["sft", "iter0", "iter1"]
    for each in recipe["policies"]:
        for name, decoding in evaluation(run, each["policy"])["decodings"].items():
            means = [decoding["mean_reward"], decoding["mean_tokens"]]
            assert [each[name][column]["value"] for column in ("reward", "tokens")] == pytest.approx(means)
    assert recipe["prompts"] == [len(evaluation(run, "sft")["decodings"]["greedy"]["rows"])]
    assert [(row["iteration"], row["pairs"]) for row in recipe["pairs"]] == [
        (name, len(rows(run / name / "pairs.jsonl"))) for name in ("iter0", "iter1")
    ]
    assert summary["reward"] == "true reward"
