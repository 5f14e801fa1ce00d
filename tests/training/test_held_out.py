"""Held-out pairs: drawn by prompt and seed, and how often a ranker or the longer answer is right on them, by hand."""

from __future__ import annotations

import pytest

from handbook_ext.core.records import OfflinePair, assistant
from handbook_ext.training.held_out import agreement, agreement_line, split_by_prompt


def pair(prompt: str, chosen: int, rejected: int) -> OfflinePair:
    """A pair of answers of so many words."""
    return OfflinePair.of(prompt, [{"role": "user", "content": prompt}], assistant("w " * chosen), assistant("v " * rejected))


def test_prompts_are_split_whole_by_seed_and_purpose() -> None:
    pairs = [pair(f"p{number % 10}", 1, number + 2) for number in range(20)]
    rest, held = split_by_prompt(pairs, 0.3, seed=1, purpose="test")
    assert (len(rest), len(held)) == (14, 6)
    assert not {each.prompt_id for each in rest} & {each.prompt_id for each in held}
    assert [each for each in pairs if each in held] == held
    assert split_by_prompt(pairs, 0.3, seed=1, purpose="test") == (rest, held)
    others = [split_by_prompt(pairs, 0.3, seed=2, purpose="test"), split_by_prompt(pairs, 0.3, seed=1, purpose="judge")]
    assert all(each != (rest, held) for each in others)
    assert split_by_prompt(pairs, 0.0, seed=1, purpose="test") == (pairs, [])


def test_agreement_by_hand() -> None:
    # Lengths: longer wins, loses, ties, near (10 and 9), near by exactly 10 %, and not near (8 and 9: 1 > 0.9).
    pairs = [pair("a", 20, 5), pair("b", 5, 20), pair("c", 7, 7), pair("d", 10, 9), pair("e", 8, 9)]
    found = agreement(pairs, [1.0, -1.0, 0.0, -2.0, 3.0])
    assert found == {
        "pairs": 5, "accuracy": pytest.approx(2.5 / 5), "longer": pytest.approx(2.5 / 5),
        "near_pairs": 2, "near_accuracy": pytest.approx(0.25), "near_longer": pytest.approx(0.75),
    }  # fmt: skip
    assert agreement(pairs[:1], [1.0])["near_accuracy"] is None


def test_the_line_says_where_a_ranker_is_no_better_than_length() -> None:
    found = agreement([pair("a", 20, 5), pair("b", 9, 9)], [1.0, 1.0])
    line = agreement_line(found)
    assert line == (
        "right on 100.0 % of 2 held-out pairs, the longer answer on 75.0 %; "
        "right on 100.0 % of 1 of them of near-equal length, the longer answer on 50.0 %"
    )
    assert "no better than length" in agreement_line(found | {"accuracy": 0.75})
    assert "\n" not in line
    assert "- of 0 of them" in agreement_line(agreement([pair("a", 20, 5)], [1.0]))


def test_rows_that_repeat_a_prompt_stay_together_whatever_their_ids() -> None:
    """The data stage gives a repeated prompt ids of its own: x, x#2."""
    pairs = [pair(f"p{number % 5}", 1, 2) for number in range(15)]
    named = [each.model_copy(update={"prompt_id": f"{each.prompt_id}#{number}"}) for number, each in enumerate(pairs)]
    rest, held = split_by_prompt(named, 0.4, seed=1, purpose="judge")
    assert (len(rest), len(held)) == (9, 6)
    assert not {each.prompt[0]["content"] for each in rest} & {each.prompt[0]["content"] for each in held}
