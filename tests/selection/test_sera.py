"""SeRA's selection by hand: which offline pairs stay, which pairs of own samples come, ties, ensemble, references."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from handbook_ext.core.errors import UserError
from handbook_ext.core.records import OfflinePair
from handbook_ext.objectives.reward_form import RewardForm, ipo_log_ratios, mean_log_probs, summed_log_ratios
from handbook_ext.selection.ensemble import EnsembleTerm, StoredLogProbs, ensemble, read_log_probs
from handbook_ext.selection.log_prob_store import store_row
from handbook_ext.selection.rules import Selected
from handbook_ext.selection.sera import counts, jaccard, top_k_indices
from tests.manifests import BARE
from tests.selection.rows import explored_text, id_of, log_probs, offline, samples, selected, texts_of

# Six offline pairs with log-ratio margins 3, -1, 2, 2, 0.5, 2 under `one` against `zero`.
MARGINS = [3.0, -1.0, 2.0, 2.0, 0.5, 2.0]
PAIRS = [offline(number) for number in range(6)]
ZERO = {(n, text): (-10.0, 4) for n in range(6) for text in (f"good {n}", f"bad {n}")}
ONE = ZERO | {(n, f"good {n}"): (-10.0 + MARGINS[n], 4) for n in range(6)}
# Two prompts with four samples; rewards by hand: p0: a 1, b 4, c -2, d 4; p1: a 0, b 0, c 0 (b is said twice).
SAMPLES = [*samples(0, "a", "b", "c", "d"), *samples(1, "a", "b", "b", "c")]
ZERO_OWN = {(0, t): (-5.0, 2) for t in "abcd"} | {(1, t): (-7.0, 2) for t in "abc"}
ONE_OWN = ZERO_OWN | {(0, "a"): (-4.0, 2), (0, "b"): (-1.0, 2), (0, "c"): (-7.0, 2), (0, "d"): (-1.0, 2)}
STORED = log_probs({"zero": ZERO | ZERO_OWN, "one": ONE | ONE_OWN}, (1.0, "one", "zero"))


def sera(pairs: list[OfflinePair] = PAIRS, stored: StoredLogProbs | None = STORED, **settings: Any) -> Selected:
    options = {"completions": SAMPLES, "keep": 0.7, "bootstrap": 0.3} | settings
    return selected(pairs, "sera", stored=stored, **options)


def kept(keep_by: str, pairs: list[OfflinePair], stored: StoredLogProbs | None = None, seed: int = 0) -> list[str]:
    """The prompts of two thirds of the offline pairs, kept by a selector."""
    found = sera(pairs, stored, keep=0.67, bootstrap=0, keep_by=keep_by, seed=seed)
    assert {pair.margin is None for pair in found.pairs} == {keep_by != "margin"}
    return [pair.prompt_id for pair in found.pairs]


def test_six_pairs_and_two_prompts_as_on_paper() -> None:
    found = sera()
    # The largest four of 3, -1, 2, 2, 0.5, 2 are 3, 2, 2 and 2.
    assert [(pair.prompt_id, *texts_of(pair), pair.margin) for pair in found.pairs[:4]] == [
        (f"p{number}", f"good {number}", f"bad {number}", MARGINS[number]) for number in (0, 2, 3, 5)
    ]
    # p0: b and d tie at the top, the first is chosen; c is worst. p1: all rewards are equal: the first over the next.
    own = [(pair.prompt_id, *texts_of(pair), pair.margin) for pair in found.pairs[4:]]
    assert own == [("p0", "b", "c", 6.0), ("p1", "a", "b", 0.0)]
    assert [(pair.chosen_id, pair.rejected_id) for pair in found.pairs[4:]] == [
        (id_of(0, "b"), id_of(0, "c")), (id_of(1, "a"), id_of(1, "b")),
    ]  # fmt: skip
    assert found.dropped == {
        "prompt too long": 0, "chosen equals rejected": 0, "offline pair not kept": 2, "own pair of low margin": 0,
    }  # fmt: skip
    assert found.rows_in == 8
    assert found.facts == {
        "origins": {"offline over offline": 4, "on_policy over on_policy": 2},
        "swapped": 0, "explored": 3, "explore_is_chosen": 1,
        "margins": {"offline_kept": 2.25, "own_kept": 3.0, "offline_dropped": -0.25},
        "kept": 4, "bootstrapped": 2, "wanted": [4, 2], "store_entries": 38,
    }  # fmt: skip


def test_sera_explores_sample_0_in_kept_and_in_bootstrapped_pairs() -> None:
    found = sera()
    assert [(pair.prompt_id, explored_text(pair)) for pair in found.pairs] == [
        ("p0", "a"), ("p2", None), ("p3", None), ("p5", None), ("p0", "a"), ("p1", "a"),
    ]  # fmt: skip
    assert found.pairs[4].explore_id == id_of(0, "a")
    assert not any(pair.explore for pair in sera(explore=False).pairs)


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
    found = sera(PAIRS[:2], completions=[*samples(0, "a", "a"), *samples(1, "a", "b")], keep=0, bootstrap=1)
    assert [pair.prompt_id for pair in found.pairs] == ["p1"]
    assert found.dropped["all samples are equal"] == 1


def test_own_pairs_of_low_margin_are_rejected_over_all_prompts() -> None:
    found = sera(PAIRS[:2], keep=0, bootstrap=0.5)
    assert [pair.prompt_id for pair in found.pairs] == ["p0"]
    assert found.dropped["own pair of low margin"] == 1
    assert found.facts["margins"] == {"own_kept": 6.0, "own_dropped": 0.0}
    assert found.rows_in == 2  # Prompts with samples; no offline pair is kept, so none is read.


def test_labels_are_kept_whatever_the_sign_of_the_margin() -> None:
    [only] = sera([offline(1, swapped=True)], keep=1, bootstrap=0).pairs
    assert (only.margin, texts_of(only), only.swapped) == (-1.0, ("good 1", "bad 1"), True)


def test_offline_pairs_that_the_policy_could_not_score_are_left_out_and_counted() -> None:
    short = {key: value for key, value in ONE.items() if key[0] != 0}
    stored = log_probs({"zero": ZERO, "one": short}, (1.0, "one", "zero"))
    found = sera(PAIRS[:3], stored, keep=1, bootstrap=0)
    assert [pair.prompt_id for pair in found.pairs] == ["p1", "p2"]
    assert found.dropped["prompt too long"] == 1


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
    policies = {"sft": {(0, "x"): (-9.0, 3)}, "iter1": {(0, "x"): (-7.5, 3)}, "iter2": {(0, "x"): (-4.0, 3)}}

    def mixed(gamma: float, against: str) -> float:
        terms = ensemble(["sft", "iter1", "iter2"], gamma=gamma, against=against, with_reference=True)
        stored = log_probs(policies, *((each.weight, each.policy, each.reference) for each in terms), start="iter2")
        return stored.implicit_reward(id_of(0, "x"))

    assert 2 * mixed(0.5, "previous") == pytest.approx(mixed(0.0, "start"))


def test_a_kept_pairs_margin_mixes_the_ensemble() -> None:
    good, bad = (0, "good 0"), (0, "bad 0")
    policies = {
        "sft": {good: (-9.0, 3), bad: (-9.0, 3)}, "iter1": {good: (-8.0, 3), bad: (-9.0, 3)},
        "iter2": {good: (-8.0, 3), bad: (-12.0, 3)},
    }  # fmt: skip
    stored = log_probs(policies, (0.7, "iter2", "iter1"), (0.3, "iter1", "sft"), start="iter2")
    [pair] = sera([offline(0)], stored, keep=1, bootstrap=0).pairs
    assert pair.margin == pytest.approx(0.7 * 3 + 0.3 * 1)


def test_rewards_of_dpo_ipo_and_simpo() -> None:
    policies = {"one": {(0, "a"): (-4.0, 2)}, "zero": {(0, "a"): (-5.0, 2)}}

    def reward(form: RewardForm) -> float:
        return log_probs(policies, (1.0, "one", "zero" if form.reference else None), form=form).implicit_reward(id_of(0, "a"))

    assert [reward(form) for form in (summed_log_ratios(), ipo_log_ratios(), mean_log_probs())] == [1.0, 0.5, -2.0]


def test_score_gap_keeps_the_largest_gaps_of_the_datas_scores() -> None:
    scores = [(9.0, 8.5), (4.0, 1.0), (3.0, 2.0)]
    rated = [offline(n, score_chosen=chosen, score_rejected=rejected) for n, (chosen, rejected) in enumerate(scores)]
    assert kept("score_gap", rated) == ["p1", "p2"]
    with pytest.raises(UserError, match=r"p0: the selection needs score_chosen and score_rejected, which this row"):
        kept("score_gap", [offline(0)])


def test_chosen_length_keeps_what_is_longer_by_most_words() -> None:
    pairs = [offline(0), offline(1, "good and long 1", "bad and also long 1"), offline(2, "very good and long 2")]
    assert kept("chosen_length", pairs) == ["p0", "p2"]


def test_a_random_draw_depends_on_seed_and_prompt_alone() -> None:
    draws = [kept("random", PAIRS[:3], seed=seed) for seed in range(8)]
    assert draws == [kept("random", PAIRS[2::-1], seed=seed)[::-1] for seed in range(8)]
    assert len(set(map(tuple, draws))) > 1


def three_policies() -> dict[str, dict[tuple[int, str], tuple[float, int]]]:
    """Log-probs of three pairs: no two policies agree on the pair of smallest gap, nor on that of the least likely chosen."""
    chosen = {"sft": (-9, -1, -2), "iter1": (-2, -1, -9), "iter2": (-1, -9, -2)}
    rejected = {"sft": (-17, -11, -2), "iter1": (-3, -1, -19), "iter2": (-1, -17, -3)}
    return {
        policy: {(n, f"good {n}"): (float(chosen[policy][n]), 3) for n in range(3)}
        | {(n, f"bad {n}"): (float(rejected[policy][n]), 3) for n in range(3)}
        for policy in chosen
    }


@pytest.mark.parametrize(
    ("start", "margins", "likely"),
    [("sft", ["p0", "p1"], ["p1", "p2"]), ("iter1", ["p0", "p2"], ["p0", "p1"]), ("iter2", ["p1", "p2"], ["p0", "p2"])],
)
def test_log_prob_selectors_read_the_policy_that_starts_the_iteration(
    start: str, margins: list[str], likely: list[str], tmp_path: Path
) -> None:
    hashes = {policy: f"hash of {policy}" for policy in three_policies()}
    for policy, texts in three_policies().items():
        folder = tmp_path / policy / "logprobs"
        folder.mkdir(parents=True)
        lines = [json.dumps(store_row(hashes[policy], id_of(*text), *value)) for text, value in texts.items()]
        (folder / "0.jsonl").write_text("\n".join(lines))
        manifest = {**BARE, "external": hashes if policy == "iter2" else {}}
        (folder / "manifest.json").write_text(json.dumps(manifest))
    folders = [tmp_path / policy / "logprobs" for policy in ("sft", "iter1", "iter2")]
    terms = [EnsembleTerm(0.7, "iter2", "iter1"), EnsembleTerm(0.3, "iter1", "sft")]
    stored = read_log_probs(folders, starts_from=start, form=RewardForm(), terms=terms)
    assert kept("log_prob", PAIRS[:3], stored) == margins
    assert kept("chosen_log_prob", PAIRS[:3], stored) == likely


def test_log_prob_keeps_the_largest_gap_and_not_the_most_likely_chosen() -> None:
    stored = log_probs(three_policies(), start="iter2")
    assert kept("log_prob", PAIRS[:3], stored) == ["p1", "p2"]
    assert kept("chosen_log_prob", PAIRS[:3], stored) == ["p0", "p2"]


def test_a_completion_that_was_never_scored_is_named() -> None:
    with pytest.raises(UserError, match=f"the score store lacks completion {id_of(0, 'b')} under policy hash of one"):
        sera(PAIRS[:1], log_probs({"zero": {}, "one": {(0, "a"): (-1.0, 1)}}, (1.0, "one", None)), keep=0, bootstrap=1)
    with pytest.raises(UserError, match=r"the selection needs log-probs of the completions, and none are given"):
        sera(stored=None)


def test_jaccard() -> None:
    assert jaccard({"a", "b", "c"}, {"b", "c", "d"}) == 0.5
    assert jaccard(set(), set()) == 1.0
