"""SELM's two label-update rules and the data set's own labels, on cases worked out by hand."""

from __future__ import annotations

from typing import Any

import pytest

from handbook_ext.core.records import PreferencePair
from handbook_ext.selection.rules import Selected
from tests.selection.rows import explored_text, id_of, judged, offline, selected, texts_of

WIN, LOSE = "good 0", "bad 0"


def select(scores: list[float | None], rule: str, *, swapped: bool = False, **settings: Any) -> Selected:
    """What a rule makes of one prompt whose candidates, samples, then y_w and y_l, have these scores."""
    pair = offline(swapped=swapped)
    texts = [f"sample {number}" for number in range(len(scores) - 2)]
    return selected([pair], rule, rankings=[judged(pair, texts, scores)], **settings)


def only(scores: list[float | None], rule: str, **settings: Any) -> PreferencePair:
    [pair] = select(scores, rule, **settings).pairs
    return pair


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
        ([None, 3, 1], (WIN, LOSE)),  # a candidate without a verdict is neither best nor worst
    ],
)
def test_rule_a_takes_best_and_worst(scores: list[float | None], expected: tuple[str, str]) -> None:
    found = select(scores, "best_and_worst")
    assert [texts_of(pair) for pair in found.pairs] == [expected]
    assert found.dropped.total() == 0


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
    scores: list[float | None], expected: tuple[str, str]
) -> None:
    assert texts_of(only(scores, "against_chosen")) == expected


@pytest.mark.parametrize("scores", [[None, 2, 1], [3, None, 1]])
def test_rule_b_makes_no_pair_where_sample_or_chosen_was_not_judged(scores: list[float | None]) -> None:
    found = select(scores, "against_chosen")
    assert found.pairs == []
    assert found.dropped["chosen equals rejected"] == 1


def test_a_prompt_whose_candidates_all_tie_is_dropped_and_counted() -> None:
    found = select([2, 2, 2], "best_and_worst")
    assert found.pairs == []
    assert found.dropped == {"prompt without completions": 0, "chosen equals rejected": 1}
    assert select([None, None, None], "best_and_worst").pairs == []


def test_equal_texts_are_dropped_and_counted() -> None:
    rows = [offline(0), offline(1)]
    rankings = [judged(rows[0], [WIN], [2, 3, 1]), judged(rows[1], ["bad 1"], [3, 2, 1])]
    found = selected(rows, "against_chosen", rankings=rankings)
    assert found.pairs == []
    assert found.dropped["chosen equals rejected"] == 2


def test_prompts_without_a_ranking_are_counted() -> None:
    found = selected([offline(0), offline(1)], "best_and_worst", rankings=[judged(offline(1), ["x"], [3, 2, 1])])
    assert [pair.prompt_id for pair in found.pairs] == ["p1"]
    assert (found.rows_in, found.dropped["prompt without completions"]) == (2, 1)


def test_origins_and_ids_say_who_wrote_which_text() -> None:
    pair = only([1, 3, 2], "best_and_worst")
    assert (pair.chosen_origin, pair.rejected_origin) == ("offline", "on_policy")
    assert (pair.chosen_id, pair.rejected_id, pair.explore_id) == (id_of(0, WIN), id_of(0, "sample 0"), id_of(0, "sample 0"))


def test_the_explored_sample_is_kept_where_the_pair_drops_it() -> None:
    pair = only([2, 3, 1], "best_and_worst")
    assert texts_of(pair) == (WIN, LOSE)
    assert explored_text(pair) == "sample 0"


def test_the_explored_sample_is_the_first_of_several() -> None:
    assert explored_text(only([2, 5, 1, 3, 4], "best_and_worst")) == "sample 0"


def test_explore_off_keeps_no_sample() -> None:
    pair = only([3, 2, 1], "best_and_worst", explore=False)
    assert (pair.explore, pair.explore_id) == (None, None)


@pytest.mark.parametrize(("scores", "kept"), [([3, 2, 1], False), ([1, 3, 2], True), ([2, 3, 1], True)])
def test_skip_leaves_out_the_term_only_where_the_sample_is_chosen(scores: list[float | None], kept: bool) -> None:
    pair = only(scores, "best_and_worst", explore_as_chosen="skip")
    assert (explored_text(pair), pair.explore_id) == (("sample 0", id_of(0, "sample 0")) if kept else (None, None))
    assert explored_text(only(scores, "best_and_worst", explore_as_chosen="keep")) == "sample 0"


@pytest.mark.parametrize(
    ("scores", "rule", "swapped"),
    [
        ([2, 3, 1], "best_and_worst", True),  # the flipped label stands
        ([2, 1, 3], "best_and_worst", False),  # the ranker turned it back
        ([3, 2, 1], "best_and_worst", False),  # the sample is in the pair
        ([2, 3, 1], "against_chosen", False),
    ],
)
def test_swapped_stays_only_where_the_flipped_label_does(scores: list[float | None], rule: str, swapped: bool) -> None:
    assert only(scores, rule, swapped=True).swapped is swapped
    assert not only(scores, rule).swapped


def test_the_data_sets_labels_are_kept_as_they_are() -> None:
    found = selected([offline(swapped=True), offline(1, "same", "same")], "dataset")
    assert [texts_of(pair) for pair in found.pairs] == [(WIN, LOSE)]
    assert found.pairs[0].swapped
    assert found.pairs[0].explore is None
    assert found.dropped == {"chosen equals rejected": 1}


def test_the_facts_count_origins_flipped_labels_and_explored_samples() -> None:
    rows = [offline(0, swapped=True), offline(1), offline(2)]
    scores = ([2, 3, 1], [3, 2, 1], [1, 3, 2])
    rankings = [judged(row, ["x"], each) for row, each in zip(rows, scores, strict=True)]
    assert selected(rows, "best_and_worst", rankings=rankings).facts == {
        "origins": {"offline over offline": 1, "on_policy over offline": 1, "offline over on_policy": 1},
        "swapped": 1, "explored": 3, "explore_is_chosen": 1,
    }  # fmt: skip
