"""The first sentence of a report, and what went with a fall: from rewards, health and logs made by hand."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from handbook_ext.objectives.metrics import Interval, Scores
from handbook_ext.reports.pages import concluded, render_report
from handbook_ext.reports.run_report import FinishedRun, summarise
from handbook_ext.reports.verdict import falls, verdict, verdict_words, went_with
from tests.reports.test_run_numbers import finished

NAMES = tuple(f"p{number}" for number in range(40))


def decoded(mean: float, tokens: float = 10.0) -> dict[str, Scores]:
    """Rewards around a mean, the same noise for every policy, under two decodings."""
    noise = np.random.default_rng(0).normal(0, 0.1, len(NAMES))
    lengths = np.full(len(NAMES), tokens)
    return {name: Scores(NAMES, mean + noise, lengths, t) for name, t in (("greedy", 0.0), ("sampled", 0.7))}


def run_of(*means: float, **changes: Any) -> FinishedRun:
    """A run whose policies have these mean rewards, the first of its start."""
    names = ["sft", *(f"iter{number}" for number in range(len(means) - 1))]
    policies = {name: decoded(mean) for name, mean in zip(names, means, strict=True)}
    return replace(finished(), policies=policies, history={}, health=[], **changes)


def numbers(*runs: FinishedRun, seeds: int = 1) -> dict[str, Any]:
    """The numbers of recipes of one run each, or of that many seeds that agree."""
    groups = [[replace(run, seed=seed) for seed in range(1, seeds + 1)] for run in runs]
    return summarise(groups, title="t", resamples=50, confidence=0.9)


@pytest.mark.parametrize(
    ("means", "sentence"),
    [
        ((0.0, 1.0), "iter0 beats the start: wins 100.0 % of prompts [100.0, 100.0], over 2 seeds, sampled at temperature 0.7."),
        (
            (1.0, 2.0, 0.0),
            "iter1 falls behind the start: wins 0.0 % of prompts [0.0, 0.0], over 2 seeds, sampled at temperature 0.7.",
        ),
        (
            (1.0, 1.0),
            "iter0 cannot be told apart from the start: wins 50.0 % of prompts [50.0, 50.0], over 2 seeds, "
            "sampled at temperature 0.7.",
        ),
        ((1.0,), "no iteration has been evaluated, so there is nothing to compare with the start."),
    ],
)
def test_the_last_policy_is_held_against_the_start(means: tuple[float, ...], sentence: str) -> None:
    assert verdict(numbers(run_of(*means), seeds=2)) == sentence


def test_another_decoding_that_says_otherwise_is_told() -> None:
    run = run_of(0.0, 1.0)
    run.policies["iter0"]["greedy"] = run.policies["sft"]["greedy"]
    assert verdict(numbers(run, seeds=2)).endswith("0.7; decoded greedily it cannot be told apart (wins 50.0 % [50.0, 50.0]).")
    run.policies["iter0"]["greedy"] = decoded(-1.0)["greedy"]
    assert verdict(numbers(run, seeds=2)).endswith("; decoded greedily it falls behind (wins 0.0 % [0.0, 0.0]).")


def test_one_seed_is_no_verdict() -> None:
    """However many prompts it won: the interval over them does not know what another seed would have trained."""
    run = run_of(0.0, 1.0)
    assert verdict(numbers(run)) == (
        "iter0 against the start: wins 100.0 % of prompts [100.0, 100.0], one seed and so no verdict, sampled at temperature 0.7."
    )
    run.policies["iter0"]["greedy"] = decoded(-1.0)["greedy"]
    assert verdict(numbers(run)).endswith("; decoded greedily it wins 0.0 % [0.0, 0.0].")


def test_several_recipes_are_named_and_seeds_counted() -> None:
    ours = [run_of(0.0, 1.0, seed=seed) for seed in (1, 2)]
    summary = summarise([ours, [run_of(0.0, -1.0, recipe="b")]], title="t", resamples=50, confidence=0.9)
    assert verdict(summary) == (
        "tiny-selm iter0 beats the start: wins 100.0 % of prompts [100.0, 100.0], over 2 seeds, sampled at temperature 0.7. "
        "b iter0 against the start: wins 0.0 % of prompts [0.0, 0.0], one seed and so no verdict, sampled at temperature 0.7."
    )


def test_several_seeds_say_what_they_could_have_told() -> None:
    """Two seeds, of which one wins all prompts and one half of them; then seeds with 21 and 23 of 40."""
    apart = [run_of(0.0, 1.0), run_of(0.0, 0.0, seed=2)]
    summary = summarise([apart], title="t", resamples=50, confidence=0.9)
    assert verdict(summary).endswith(
        "sampled at temperature 0.7; seeds differ so much that no difference, however large, would have been told in 80 of 100 "
        "such reports."
    )
    near = [run_of(0.0, 0.0, pairs=[]), run_of(0.0, 0.0, seed=2, pairs=[])]
    names = near[0].policies["iter0"]["sampled"].prompt_ids
    for run, wins in zip(near, (21, 23), strict=True):
        rewards = near[0].policies["sft"]["sampled"].rewards + np.where(np.arange(40) < wins, 1.0, -1.0)
        run.policies["iter0"] = {
            key: Scores(names, rewards, rewards, one.temperature) for key, one in run.policies["sft"].items()
        }
    words = verdict(summarise([near], title="t", resamples=50, confidence=0.9))
    [points] = re.findall(r"; a difference of (\d+\.\d) points would have been told in 80 of 100 such reports\.$", words)
    assert 20 < float(points) < 22  # 8.2 errors of 2.5 points.
    page = concluded([near], summarise([near], title="t", resamples=50, confidence=0.9))["conclusions"]
    assert f"(a difference of {points} points would have been told in 80 of 100 such reports)" in page[0]


def test_a_win_rate_is_called_as_both_of_its_intervals_have_it() -> None:
    assert verdict_words(Interval(0.7, 0.6, 0.8, seeds=0.1)) == "beats the start: wins 70.0 % of prompts [60.0, 80.0]"
    # Three seeds of which one disagrees: the bootstrap alone would say that it beats.
    assert verdict_words(Interval(0.7, 0.6, 0.8, seeds=0.3), "iter1").startswith("cannot be told apart from iter1: wins 70.0 %")


def test_an_iteration_that_fell_is_named_with_its_numbers() -> None:
    run = run_of(0.0, 1.0, 0.5, 0.7)
    (fall,) = falls([[run]], numbers(run))
    assert (fall["recipe"], fall["policy"], fall["went_with"]) == ("tiny-selm", "iter1", [])
    assert fall["sentence"] == (
        "iter1 fell against iter0, in this one seed: true reward -0.500 [-0.500, -0.500], "
        "wins 0.0 % [0.0, 0.0] of prompts, sampled at temperature "
        "0.7 and decoded greedily. Nothing that is measured here stands out beside it."
    )
    run.policies["iter1"]["sampled"] = decoded(1.5)["sampled"]
    (fall, after) = falls([[run]], numbers(run))
    assert "wins 0.0 % [0.0, 0.0] of prompts, decoded greedily." in fall["sentence"]
    assert after["policy"] == "iter2" and "sampled at temperature 0.7. " in after["sentence"]
    first = run_of(1.0, 0.0)
    assert falls([[first]], numbers(first))[0]["sentence"].startswith("iter0 fell against the start, in this one seed: ")
    assert falls([[first]], numbers(first, seeds=2))[0]["sentence"].startswith("iter0 fell against the start: ")
    both = falls([[run], [replace(first, recipe="b")]], numbers(run, replace(first, recipe="b")))
    assert [each["sentence"].split(" fell")[0] for each in both] == ["tiny-selm: iter1", "tiny-selm: iter2", "b: iter0"]


def signs(before: dict[str, float], now: dict[str, float], **changes: Any) -> list[str]:
    """What stands out in iter1 beside iter0 with this health."""
    health = [{"iteration": name, **values} for name, values in (("iter0", before), ("iter1", now))]
    run = replace(run_of(0.0, 1.0, 0.5), health=health, **changes)
    rows = numbers(run)["recipes"][0]["policies"]
    return went_with([run], rows[1], rows[2], "sampled")


@pytest.mark.parametrize(
    ("before", "now", "expected"),
    [
        (
            {"kl": 1.3},
            {"kl": 5.6},
            ["the mean log-ratio to the start, on answers sampled at temperature 0.7, jumped to 5.6 nats, from 1.3"],
        ),
        ({"kl": 5.0}, {"kl": 5.6}, []),  # No jump.
        ({"kl": 0.01}, {"kl": 0.5}, []),  # Fifty times as far, and still close by.
        ({"chosen_fall": 0.2}, {"chosen_fall": 3.0}, ["training lowered the log-prob of chosen by 3.0 nats, before by 0.2"]),
        ({"chosen_fall": 2.9}, {"chosen_fall": 3.0}, []),
        (
            {"length_correlation": 0.27},
            {"length_correlation": 0.42},
            ["chosen was more often the longer text (correlation of length and label 0.42, before 0.27)"],
        ),
        (
            {"length_correlation": 0.1},
            {"length_correlation": -0.4},
            ["chosen was more often the shorter text (correlation of length and label -0.40, before 0.10)"],
        ),
        ({"length_correlation": 0.4}, {"length_correlation": -0.4}, []),
        (
            {"distinct_completions": 0.9},
            {"distinct_completions": 0.5},
            ["samples of a prompt were more alike (50% distinct, before 90%)"],
        ),
        ({"distinct_completions": 0.5}, {"distinct_completions": 0.9}, []),
        (
            {"tied_prompts": 0.1},
            {"tied_prompts": 0.4},
            ["the ranker told fewer samples apart (all tied for 40% of prompts, before 10%)"],
        ),
        ({"cut_completions": 0.0}, {"cut_completions": 0.2}, ["more samples were cut at max_new_tokens (20%, before 0%)"]),
        ({}, {"tied_prompts": 0.4, "kl": 0.5}, []),  # Nothing to hold it against.
    ],
)  # fmt: skip
def test_what_stands_out_beside_the_iteration_before(before: Any, now: Any, expected: list[str]) -> None:
    assert signs(before, now) == expected


def test_a_report_says_in_words_what_its_kl_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measured at temperature 0.7 it is no KL divergence; a report without one says nothing of it."""
    monkeypatch.setattr("handbook_ext.reports.run_figures.draw_figures", lambda groups, summary: ({}, {}))

    def page(**health: float) -> str:
        run = replace(run_of(0.0, 1.0, pairs=[]), health=[{"iteration": "iter0", **health}])
        return render_report([[run]], numbers(run))["report.md"].decode()

    words = (
        "`kl` is the mean log-ratio of a policy to the start on its own held-out answers, in nats per answer, sampled at "
        "temperature 0.7: an unbiased estimate of the KL divergence only at temperature 1 and top_p 1, where no answer is cut."
    )
    assert page(kl=10.5).count(words) == 1
    assert "KL divergence" not in page(tied_prompts=0.1)


def test_answers_that_grew_or_shrank_by_a_tenth_stand_out() -> None:
    for tokens, words in (
        (12.0, ["answers grew to 12.0 tokens, from 10.0"]),
        (10.5, []),
        (8.0, ["answers shrank to 8.0 tokens, from 10.0"]),
    ):
        run = run_of(0.0, 1.0, 0.5)
        run.policies["iter1"] = decoded(0.5, tokens)
        rows = numbers(run)["recipes"][0]["policies"]
        assert went_with([run], rows[1], rows[2], "sampled") == words


def test_the_fall_of_rejected_is_from_the_first_third_of_the_log_to_the_last() -> None:
    """Nine lines, from the mean of the first three to that of the last: 3 nats in iter0, 12 in iter1."""
    log = {
        name: [{"step": n, "loss": 1.0, "logps/rejected": -step * n} for n in range(9)]
        for name, step in (("iter0", 0.5), ("iter1", 2.0))
    }
    assert signs({}, {}, history=log) == ["training lowered the log-prob of rejected by 12.0 nats, before by 3.0"]
    assert signs({}, {}, history={"iter1": log["iter1"]}) == ["training lowered the log-prob of rejected by 12.0 nats"]
    assert signs({}, {}, history={"iter1": log["iter1"][:1]}) == []
    # The health's own fall of chosen is exact, and goes before the log's.
    chosen = {"iter1": [{"step": n, "loss": 1.0, "logps/chosen": -4.0 * n} for n in range(9)]}
    assert signs({}, {"chosen_fall": 1.5}, history=chosen) == ["training lowered the log-prob of chosen by 1.5 nats"]
