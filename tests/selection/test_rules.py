"""SELM's two label-update rules and the data set's own labels, on cases worked out by hand."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from handbook_ext.core.records import Completion, Messages, OfflinePair, PreferencePair, Ranking, assistant
from handbook_ext.judging.rankers import Verdict, candidates_of, ranking
from handbook_ext.selection.rules import dataset_pairs, judged_pairs, skip_explored_chosen

PROMPT: Messages = [{"role": "user", "content": "q"}]
WIN, LOSE = "offline winner", "offline loser"


def offline(swapped: bool = False, rejected: str = LOSE) -> OfflinePair:
    return OfflinePair(prompt_id="p", prompt=PROMPT, chosen=assistant(WIN), rejected=assistant(rejected), swapped=swapped)


def judged(scores: list[float], texts: list[str] | None = None) -> Ranking:
    """A ranking of samples, then y_w, then y_l, by their scores."""
    samples = texts or [f"sample {number}" for number in range(len(scores) - 2)]
    rows = [
        Completion(
            prompt_id="p", sample=number, prompt=PROMPT, text=text, finish_reason="stop", seed=0, prompt_tokens=1,
            completion_tokens=1,
        )
        for number, text in enumerate(samples)
    ]  # fmt: skip
    judged_texts = zip(candidates_of(rows, offline()), scores, strict=True)
    return ranking("p", PROMPT, [(*candidate, Verdict(score)) for candidate, score in judged_texts])


def select(scores: list[float], rule: str, **changes: Any) -> tuple[PreferencePair | None, Counter[str]]:
    dropped: Counter[str] = Counter()
    pair = changes.pop("pair", offline())
    options = {"rule": rule, "explore": True} | changes
    pairs = judged_pairs([judged(scores)], {"p": pair}, dropped, **options)
    return (pairs[0] if pairs else None), dropped


def texts_of(pair: PreferencePair | None) -> tuple[str, str] | None:
    return None if pair is None else (pair.chosen[0]["content"], pair.rejected[0]["content"])


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        ([3, 2, 1], ("sample 0", LOSE)),
        ([2, 3, 1], (WIN, LOSE)),
        ([1, 3, 2], (WIN, "sample 0")),
        ([1, 2, 3], (LOSE, "sample 0")),
        ([2, 1, 3], (LOSE, WIN)),
        ([3, 3, 1], ("sample 0", LOSE)),  # ties prefer the sample, as chosen ...
        ([1, 3, 1], (WIN, "sample 0")),  # ... and as rejected
        ([1, 3, 3], (WIN, "sample 0")),
        ([3, 1, 1], ("sample 0", WIN)),
        ([2, 5, 1, 3, 4], ("sample 1", "sample 2")),
    ],
)
def test_rule_a_takes_best_and_worst(scores: list[float], expected: tuple[str, str]) -> None:
    pair, dropped = select(scores, "best_and_worst")
    assert texts_of(pair) == expected
    assert dropped["chosen equals rejected"] == 0


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        ([3, 2, 1], ("sample 0", LOSE)),
        ([2, 3, 1], (WIN, "sample 0")),
        ([1, 3, 2], (WIN, "sample 0")),
        ([1, 2, 3], (WIN, "sample 0")),  # only y and y_w are compared
        ([2, 1, 3], ("sample 0", LOSE)),
        ([3, 3, 1], ("sample 0", LOSE)),
        ([2, 2, 2], ("sample 0", LOSE)),
    ],
)
def test_rule_b_puts_the_sample_in_the_place_of_the_winner_or_of_the_loser(
    scores: list[float], expected: tuple[str, str]
) -> None:
    assert texts_of(select(scores, "against_chosen")[0]) == expected


def test_a_prompt_whose_candidates_all_tie_is_dropped_and_counted() -> None:
    pair, dropped = select([2, 2, 2], "best_and_worst")
    assert pair is None
    assert dropped == {"chosen equals rejected": 1}


def test_equal_texts_are_dropped_and_counted() -> None:
    dropped: Counter[str] = Counter()
    rows = [judged([2, 3, 1], [WIN]), judged([3, 2, 1], [LOSE])]
    pairs = judged_pairs(rows, {"p": offline()}, dropped, rule="against_chosen", explore=True)
    assert pairs == []
    assert dropped == {"chosen equals rejected": 2}


def test_origins_say_who_wrote_each_side() -> None:
    pair, _ = select([1, 3, 2], "best_and_worst")
    assert pair is not None
    assert (pair.chosen_origin, pair.rejected_origin) == ("offline", "on_policy")


def test_the_explored_sample_is_kept_where_the_pair_drops_it() -> None:
    pair, _ = select([2, 3, 1], "best_and_worst")
    assert texts_of(pair) == (WIN, LOSE)
    assert pair is not None
    assert pair.explore == assistant("sample 0")


def test_the_explored_sample_is_the_first_of_several() -> None:
    pair, _ = select([2, 5, 1, 3, 4], "best_and_worst")
    assert pair is not None
    assert pair.explore == assistant("sample 0")


def test_explore_off_keeps_no_sample() -> None:
    pair, _ = select([3, 2, 1], "best_and_worst", explore=False)
    assert pair is not None
    assert pair.explore is None


@pytest.mark.parametrize(("scores", "kept"), [([3, 2, 1], False), ([1, 3, 2], True), ([2, 3, 1], True)])
def test_skip_leaves_out_the_term_only_where_the_sample_is_chosen(scores: list[float], kept: bool) -> None:
    pair, _ = select(scores, "best_and_worst")
    assert pair is not None
    assert pair.explore is not None
    [left] = skip_explored_chosen([pair])
    assert (left.explore is not None) is kept


@pytest.mark.parametrize(
    ("scores", "rule", "swapped"),
    [
        ([2, 3, 1], "best_and_worst", True),  # the flipped label stands
        ([2, 1, 3], "best_and_worst", False),  # the ranker turned it back
        ([3, 2, 1], "best_and_worst", False),  # the sample is in the pair
        ([2, 3, 1], "against_chosen", False),
    ],
)
def test_swapped_stays_only_where_the_flipped_label_does(scores: list[float], rule: str, swapped: bool) -> None:
    pair, _ = select(scores, rule, pair=offline(swapped=True))
    assert pair is not None
    assert pair.swapped is swapped
    unflipped, _ = select(scores, rule)
    assert unflipped is not None
    assert not unflipped.swapped


def test_the_data_sets_labels_are_kept_as_they_are() -> None:
    dropped: Counter[str] = Counter()
    pairs = dataset_pairs([offline(swapped=True), offline(rejected=WIN)], dropped)
    assert [texts_of(pair) for pair in pairs] == [(WIN, LOSE)]
    assert pairs[0].swapped
    assert pairs[0].explore is None
    assert dropped == {"chosen equals rejected": 1}
