"""SeRA's selection by hand: which offline pairs stay, which pairs of own samples come, ties, ensemble, references."""

from __future__ import annotations

from collections import Counter

import pytest

from handbook_ext.core.errors import UserError
from handbook_ext.core.records import Completion, Messages, OfflinePair, assistant, completion_id
from handbook_ext.objectives.losses import LOSSES
from handbook_ext.objectives.reward_form import RewardForm
from handbook_ext.selection.ensemble import EnsembleTerm, ensemble
from handbook_ext.selection.log_prob_store import LogProb, ScoreStore
from handbook_ext.selection.sera import counts, jaccard, kept_pairs, on_policy_pairs, reward_of, selection_value, top_k_indices

PROMPTS: list[Messages] = [[{"role": "user", "content": f"question {number}"}] for number in range(6)]


def pair(number: int, **changes: object) -> OfflinePair:
    values = {
        "prompt_id": f"p{number}", "prompt": PROMPTS[number], "chosen": assistant(f"good {number}"),
        "rejected": assistant(f"bad {number}"), **changes,
    }  # fmt: skip
    return OfflinePair(**values)


def samples(number: int, *texts: str) -> list[Completion]:
    return [
        Completion(
            prompt_id=f"p{number}", sample=index, prompt=PROMPTS[number], text=text, finish_reason="stop", seed=0,
            prompt_tokens=1, completion_tokens=1,
        )
        for index, text in enumerate(texts)
    ]  # fmt: skip


def store_of(**policies: dict[tuple[int, str], tuple[float, int]]) -> ScoreStore:
    """Log-probs by policy, then by (prompt, text): (sum, tokens)."""
    return ScoreStore(
        {
            policy: {
                completion_id(f"p{number}", PROMPTS[number], assistant(text)): LogProb(*value)
                for (number, text), value in values.items()
            }
            for policy, values in policies.items()
        }
    )


def quality(store: ScoreStore, *terms: tuple[float, str, str | None], measure: RewardForm = RewardForm()):  # noqa: B008
    names = {name: name for name in store.values}
    return reward_of(store, measure, [EnsembleTerm(*term) for term in terms], names)


# Six offline pairs with log-ratio margins 3, -1, 2, 2, 0.5, 2 under `one` against `zero`.
MARGINS = [3.0, -1.0, 2.0, 2.0, 0.5, 2.0]
OFFLINE = {(n, text): (-10.0, 4) for n in range(6) for text in (f"good {n}", f"bad {n}")}
ONE = {(n, f"good {n}"): (-10.0 + MARGINS[n], 4) for n in range(6)} | {(n, f"bad {n}"): (-10.0, 4) for n in range(6)}
# Two prompts with four samples; rewards by hand: p0: a 1, b 4, c -2, d 4; p1: a 0, b 0, c 0 (b is said twice).
SAMPLES = [samples(0, "a", "b", "c", "d"), samples(1, "a", "b", "b", "c")]
ZERO_OWN = {(0, t): (-5.0, 2) for t in "abcd"} | {(1, t): (-7.0, 2) for t in "abc"}
ONE_OWN = {(0, "a"): (-4.0, 2), (0, "b"): (-1.0, 2), (0, "c"): (-7.0, 2), (0, "d"): (-1.0, 2)} | {
    (1, t): (-7.0, 2) for t in "abc"
}
STORE = store_of(zero=OFFLINE | ZERO_OWN, one=ONE | ONE_OWN)


def test_six_pairs_and_two_prompts_as_on_paper() -> None:
    reward = quality(STORE, (1.0, "one", "zero"))
    dropped: Counter[str] = Counter()
    value = selection_value("margin", quality=reward, under={}, seed=0, iteration="iter2")
    keep, add = counts(6, 0.7, 0.3)
    assert (keep, add) == (4, 2)
    kept, left = kept_pairs([pair(n) for n in range(6)], keep, value, dropped, margins=True)
    # The largest four of 3, -1, 2, 2, 0.5, 2 are 3, 2, 2 and 2.
    assert [(each.prompt_id, each.margin) for each in kept] == [("p0", 3.0), ("p2", 2.0), ("p3", 2.0), ("p5", 2.0)]
    assert left == [-1.0, 0.5]
    own, _ = on_policy_pairs(SAMPLES, add, reward, dropped)
    # p0: b and d tie at the top, the first is chosen; c is worst. p1: all measure the same: the first over the next.
    told = [(each.prompt_id, each.chosen[0]["content"], each.rejected[0]["content"], each.margin) for each in own]
    assert told == [("p0", "b", "c", 6.0), ("p1", "a", "b", 0.0)]
    assert {(each.chosen_origin, each.rejected_origin) for each in own} == {("on_policy", "on_policy")}
    assert dropped == {"chosen equals rejected": 0, "offline pair not kept": 2, "own pair of low margin": 0}


def test_of_equal_margins_the_first_stay() -> None:
    assert top_k_indices([2.0, 5.0, 2.0, 2.0], 2) == [0, 1]
    assert top_k_indices([2.0, 5.0], 9) == [0, 1]
    assert top_k_indices([2.0, 5.0], 0) == []
    with pytest.raises(UserError, match="1 margins are not finite, the first at pair 2"):
        top_k_indices([2.0, float("nan")], 1)


@pytest.mark.parametrize(("pairs", "keep", "bootstrap", "expected"), [
    (1000, 0.7, 0.3, (700, 300)), (48, 0.7, 0.3, (34, 14)), (5, 0.5, 0.5, (2, 3)), (10, 0.7, 1.0, (7, 10)),
    (10, 0.0, 1.0, (0, 10)), (10, 0.7, 0.0, (7, 0)),
])  # fmt: skip
def test_k_is_rounded_and_the_rest_is_bootstrapped(pairs: int, keep: float, bootstrap: float, expected: tuple[int, int]) -> None:
    assert counts(pairs, keep, bootstrap) == expected


def test_a_prompt_whose_samples_are_all_equal_is_left_out_and_counted() -> None:
    dropped: Counter[str] = Counter()
    own, _ = on_policy_pairs([samples(0, "a", "a"), samples(1, "a", "b")], 2, quality(STORE, (1.0, "one", "zero")), dropped)
    assert [each.prompt_id for each in own] == ["p1"]
    assert dropped["all samples are equal"] == 1


def test_own_pairs_of_low_margin_are_rejected_over_all_prompts() -> None:
    dropped: Counter[str] = Counter()
    own, left = on_policy_pairs(SAMPLES, 1, quality(STORE, (1.0, "one", "zero")), dropped)
    assert [each.prompt_id for each in own] == ["p0"]
    assert left == [0.0]
    assert dropped["own pair of low margin"] == 1


def test_labels_are_kept_whatever_the_sign_of_the_margin() -> None:
    reward = quality(STORE, (1.0, "one", "zero"))
    value = selection_value("margin", quality=reward, under={}, seed=0, iteration="iter2")
    [only], _ = kept_pairs([pair(1, swapped=True)], 1, value, Counter(), margins=True)
    assert (only.margin, only.chosen, only.swapped) == (-1.0, assistant("good 1"), True)


def test_the_ensemble_has_the_older_margin_at_weight_gamma() -> None:
    named = ["sft", "iter1", "iter2", "iter3"]
    assert ensemble(named[:2], gamma=0.3, against="previous", with_reference=True) == [EnsembleTerm(1.0, "iter1", "sft")]
    third = ensemble(named[:3], gamma=0.3, against="previous", with_reference=True)
    assert third == [EnsembleTerm(0.7, "iter2", "iter1"), EnsembleTerm(0.3, "iter1", "sft")]
    assert ensemble(named[:3], gamma=0.0, against="previous", with_reference=True) == [EnsembleTerm(1.0, "iter2", "iter1")]
    later = ensemble(named, gamma=0.3, against="start", with_reference=True)
    assert later == [EnsembleTerm(0.7, "iter3", "sft"), EnsembleTerm(0.3, "iter2", "sft")]
    assert ensemble(named[:3], gamma=0.3, against="previous", with_reference=False)[1] == EnsembleTerm(0.3, "iter1", None)
    with pytest.raises(UserError, match=r"let the first iteration use select.rule: dataset"):
        ensemble(named[:1], gamma=0.3, against="previous", with_reference=True)


def test_an_even_ensemble_ranks_as_margins_against_the_first_policy() -> None:
    store = store_of(
        sft={(0, "x"): (-9.0, 3)}, iter1={(0, "x"): (-7.5, 3)}, iter2={(0, "x"): (-4.0, 3)},
    )  # fmt: skip
    name = completion_id("p0", PROMPTS[0], assistant("x"))
    names = {each: each for each in store.values}

    def mixed(gamma: float, against: str) -> float:
        terms = ensemble(["sft", "iter1", "iter2"], gamma=gamma, against=against, with_reference=True)
        return reward_of(store, RewardForm(), terms, names)(name)

    assert 2 * mixed(0.5, "previous") == pytest.approx(mixed(0.0, "start"))


def test_measures_of_ipo_and_simpo() -> None:
    store = store_of(one={(0, "a"): (-4.0, 2)}, zero={(0, "a"): (-5.0, 2)})
    name = completion_id("p0", PROMPTS[0], assistant("a"))
    told = {
        loss: quality(store, (1.0, "one", "zero" if (form := LOSSES[loss].reward_form({})).reference else None), measure=form)(name)
        for loss in ("sigmoid", "hinge", "ipo", "simpo")
    }
    assert told == {"sigmoid": 1.0, "hinge": 1.0, "ipo": 0.5, "simpo": -2.0}


def test_other_selectors() -> None:
    rated = [pair(n, score_chosen=s, score_rejected=1.0) for n, s in enumerate((1.5, 4.0, 2.0))]
    under = STORE.under("one")

    def chosen_by(keep_by: str, rows: list[OfflinePair] = rated) -> list[str]:
        value = selection_value(keep_by, quality=lambda _: 0.0, under=under, seed=7, iteration="iter2")
        return [each.prompt_id for each in kept_pairs(rows, 2, value, Counter(), margins=False)[0]]

    assert chosen_by("score_gap") == ["p1", "p2"]
    assert chosen_by("log_prob") == ["p0", "p2"]
    assert chosen_by("chosen_log_prob") == ["p0", "p2"]
    long = [pair(0), pair(1, chosen=assistant("good and long 1")), pair(2, chosen=assistant("very good and long 2"))]
    assert chosen_by("chosen_length", long) == ["p1", "p2"]
    assert chosen_by("random") == chosen_by("random")
    with pytest.raises(UserError, match=r"select.keep_by score_gap needs score_chosen and score_rejected"):
        chosen_by("score_gap", [pair(0)])


def test_jaccard() -> None:
    assert jaccard({"a", "b", "c"}, {"b", "c", "d"}) == 0.5
    assert jaccard(set(), set()) == 1.0
