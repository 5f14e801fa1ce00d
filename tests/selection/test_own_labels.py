"""Who labels SeRA's own pairs: which are exchanged by a ranker or a coin, and that nothing else of them changes."""

from __future__ import annotations

from typing import Any

import pytest

from handbook_ext.core.records import PreferencePair, Ranking
from handbook_ext.judging.ranker import Verdict, candidates_of, ranking
from handbook_ext.selection.rules import Selected
from tests.selection.rows import PROMPTS, explored_text, id_of, log_probs, offline, samples, selected, texts_of

# Implicit rewards 2, 1 and 0 of the samples a, b and c of each prompt: the margin chooses a over c.
REWARDS = {"a": 2.0, "b": 1.0, "c": 0.0}
ZERO = {(number, text): (-5.0, 2) for number in range(6) for text in REWARDS}
ONE = {(number, text): (-5.0 + REWARDS[text], 2) for number, text in ZERO}
STORED = log_probs({"zero": ZERO, "one": ONE}, (1.0, "one", "zero"))
NUMBERS = range(6)


def own(labels: str, scores: tuple[tuple[float | None, float | None], ...] = (), **settings: Any) -> Selected:
    """The own pairs of six prompts; scores: the ranker's of a and c, prompt by prompt."""
    rankings = [judged(number, *each) for number, each in enumerate(scores)]
    completions = [row for number in NUMBERS for row in samples(number, "a", "b", "c")]
    options = {"keep": 0, "bootstrap": 1, "bootstrap_labels": labels} | settings
    return selected(
        [offline(number) for number in NUMBERS], "sera", completions=completions, rankings=rankings, stored=STORED, **options
    )


def judged(number: int, first: float | None, last: float | None) -> Ranking:
    """A ranking of the samples alone; a score of None is a failed judgement."""
    verdicts = [Verdict(9.0, failed=True) if score is None else Verdict(score) for score in (first, 0.5, last)]
    rows = samples(number, "a", "b", "c")
    return ranking(f"p{number}", PROMPTS[number], list(zip(candidates_of(rows, None), verdicts, strict=True)))


def labels_of(pairs: list[PreferencePair]) -> list[tuple[str, str]]:
    return [texts_of(pair) for pair in pairs]


def test_the_margin_labels_unless_something_else_is_asked_for() -> None:
    found = own("margin")
    assert labels_of(found.pairs) == [("a", "c")] * 6
    assert "own_labels" not in found.facts


def test_a_ranker_exchanges_where_it_scores_rejected_higher_and_nowhere_else() -> None:
    """Wrong, right, tied, and three of which one side or both have no verdict, whatever score stands there."""
    found = own("ranker", ((0.1, 0.9), (0.9, 0.1), (0.4, 0.4), (None, 0.9), (0.1, None), (None, None)))
    assert labels_of(found.pairs) == [("c", "a"), *[("a", "c")] * 5]
    wrong, right = found.pairs[:2]
    assert (wrong.chosen_id, wrong.rejected_id, wrong.margin) == (id_of(0, "c"), id_of(0, "a"), -2.0)
    assert (right.chosen_id, right.rejected_id, right.margin) == (id_of(1, "a"), id_of(1, "c"), 2.0)
    assert found.facts["own_labels"] == {"exchanged": 1, "tied": 1, "unjudged": 3}
    # The margins told are those that selected.
    assert found.facts["margins"] == {"own_kept": 2.0}


def test_labels_come_after_the_choice_of_pairs() -> None:
    """Margins alone choose the pairs, so that labels are all that differs; and no offline label is touched."""
    scored = ((0.1, 0.9),) * 6
    names = [[pair.prompt_id for pair in own(labels, scored, bootstrap=0.5).pairs] for labels in ("margin", "ranker", "coin")]
    assert names == [["p0", "p1", "p2"]] * 3
    stored = log_probs(
        {name: values | {(0, "good 0"): (-1.0, 1), (0, "bad 0"): (-1.0, 1)} for name, values in (("zero", ZERO), ("one", ONE))},
        (1.0, "one", "zero"),
    )
    found = selected(
        [offline(0)], "sera", completions=samples(0, "a", "b", "c"), rankings=[judged(0, 0.1, 0.9)], stored=stored, keep=1,
        bootstrap=1, bootstrap_labels="ranker",
    )  # fmt: skip
    assert labels_of(found.pairs) == [("good 0", "bad 0"), ("c", "a")]
    assert [explored_text(pair) for pair in found.pairs] == ["a", "a"]


def test_a_coin_depends_on_seed_and_prompt_alone_and_falls_both_ways() -> None:
    draws = [labels_of(own("coin", seed=seed).pairs) for seed in range(20)]
    assert draws == [labels_of(own("coin", ((0.1, 0.9),) * 6, seed=seed).pairs) for seed in range(20)]
    exchanged = sum(pair == ("c", "a") for each in draws for pair in each)
    assert 40 <= exchanged <= 80  # Of 120; beyond by less than one chance in 5,000.
    assert len({tuple(each) for each in draws}) > 10
    facts = own("coin", seed=3).facts["own_labels"]
    assert facts == {"exchanged": draws[3].count(("c", "a"))}


@pytest.mark.parametrize("labels", ["ranker", "coin"])
def test_an_exchanged_pair_is_as_its_own_other_way_round(labels: str) -> None:
    before = {pair.prompt_id: pair for pair in own("margin").pairs}
    for pair in own(labels, ((0.1, 0.9),) * 6).pairs:
        old = before[pair.prompt_id]
        if pair.chosen_id != old.chosen_id:
            assert (pair.chosen, pair.chosen_id, pair.rejected, pair.rejected_id) == (
                old.rejected, old.rejected_id, old.chosen, old.chosen_id,
            )  # fmt: skip
            assert pair.margin == -(old.margin or 0.0)
        assert {pair.chosen_origin, pair.rejected_origin} == {"on_policy"}
