"""Curry-DPO and SPIN: the data's best or golden answer over a worse one, or over the policy's own."""

from __future__ import annotations

import pytest

from handbook_ext.core.errors import UserError
from handbook_ext.core.records import OfflinePair
from tests.selection.rows import explored_text, id_of, offline, samples, selected, texts_of

FOUR = [("best", 9.0), ("fine", 7.0), ("poor", 4.0), ("worst", 1.0)]


def rated(number: int = 0, answers: list[tuple[str, float]] = FOUR, *, swapped: bool = False) -> OfflinePair:
    return offline(number, answers[0][0], answers[-1][0], answers=answers, swapped=swapped)


@pytest.mark.parametrize(("rank", "rejected"), [(1, "worst"), (2, "poor"), (3, "fine")])
def test_curry_dpo_goes_from_the_easiest_pair_to_the_hardest(rank: int, rejected: str) -> None:
    [pair] = selected([rated()], "curriculum", rejected_rank=rank).pairs
    assert texts_of(pair) == ("best", rejected)
    assert (pair.chosen_id, pair.rejected_id) == (id_of(0, "best"), id_of(0, rejected))


def test_curry_dpo_makes_no_pair_of_equal_scores() -> None:
    tied = rated(1, [("best", 9.0), ("as good", 9.0), ("worst", 1.0)])
    found = selected([rated(0), tied], "curriculum", rejected_rank=2)
    assert [(pair.prompt_id, texts_of(pair)) for pair in found.pairs] == [("p0", ("best", "poor"))]
    assert found.dropped["no completion of this rank"] == 1


def test_curry_dpo_leaves_out_a_prompt_with_too_few_answers() -> None:
    found = selected([rated(0, FOUR[:2]), rated(1)], "curriculum", rejected_rank=2)
    assert [pair.prompt_id for pair in found.pairs] == ["p1"]
    assert (found.rows_in, found.dropped["no completion of this rank"]) == (2, 1)


def test_curry_dpo_keeps_label_noise() -> None:
    noisy, clean = selected([rated(0, swapped=True), rated(1)], "curriculum").pairs
    assert (texts_of(noisy), noisy.swapped) == (("worst", "best"), True)
    assert (texts_of(clean), clean.swapped) == (("best", "worst"), False)


def test_curry_dpo_refuses_data_without_rated_answers() -> None:
    with pytest.raises(UserError, match=r"p0: the selection needs several rated answers per prompt; use data of"):
        selected([offline(0)], "curriculum")


def test_spin_puts_the_golden_answer_over_the_first_sample() -> None:
    found = selected([offline(0)], "gold_over_sample", completions=samples(0, "first", "second", "third"))
    [pair] = found.pairs
    assert texts_of(pair) == ("good 0", "first")
    assert (pair.chosen_origin, pair.rejected_origin, pair.rejected_id) == ("offline", "on_policy", id_of(0, "first"))


def test_spin_drops_prompts_without_samples_and_samples_that_repeat_the_golden_answer() -> None:
    completions = [*samples(1, "good 1"), *samples(2, "own")]
    found = selected([offline(0), offline(1), offline(2)], "gold_over_sample", completions=completions)
    assert [pair.prompt_id for pair in found.pairs] == ["p2"]
    assert found.dropped == {"prompt without completions": 1, "chosen equals rejected": 1}


def test_spin_explores_the_rejected_sample_where_the_recipe_explores() -> None:
    rows, completions = [offline(0, swapped=True)], samples(0, "first", "second")
    [pair] = selected(rows, "gold_over_sample", completions=completions).pairs
    assert (explored_text(pair), pair.explore_id, pair.swapped) == ("first", id_of(0, "first"), True)
    [pair] = selected(rows, "gold_over_sample", completions=completions, explore=False).pairs
    assert (pair.explore, pair.explore_id) == (None, None)
