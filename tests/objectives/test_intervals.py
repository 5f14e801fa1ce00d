"""Bootstrap intervals: what is drawn, how wide they are at a given confidence, and that comparisons pass all of it on."""

import numpy as np
import pytest

from handbook_ext.bench.measuring import PeakMemory
from handbook_ext.objectives import metrics
from handbook_ext.objectives.metrics import (
    Interval,
    Scores,
    compare_scores,
    hierarchical_interval,
    summarise_scores,
    word_verdict,
)


def test_a_side_is_taken_by_both_intervals_and_not_at_the_threshold() -> None:
    """Value 2 between 1 and 3: the bootstrap alone says above 0.5 and below 3.5; two seeds 1.8 apart say neither."""
    assert [Interval(2.0, 1.0, 3.0, seeds=0.0).side(threshold) for threshold in (0.5, 1.0, 2.0, 3.0, 3.5)] == [1, 0, 0, 0, -1]
    assert [Interval(2.0, 1.0, 3.0, seeds=1.8).side(threshold) for threshold in (0.1, 0.5, 3.5, 3.9)] == [1, 0, 0, -1]


def test_one_seed_never_takes_a_side() -> None:
    """130 wins of 300 are beyond chance for these two policies, and say nothing about those that another seed trains."""
    found = hierarchical_interval([[1.0] * 130 + [0.0] * 170])
    assert found.high < 0.5 and found.seeds is None
    assert (found.side(0.5), found.side_here(0.5)) == (0, -1)
    assert word_verdict("iter1", "the start", found).startswith(
        "iter1 against the start, one seed and so no verdict: wins 43.3 %"
    )
    two = hierarchical_interval([[1.0] * 130 + [0.0] * 170] * 2)
    assert (two.seeds, two.side(0.5), two.side_here(0.5)) == (0.0, -1, -1)


def test_the_confidence_is_the_share_between_the_ends() -> None:
    """80 % of a normal distribution lie within 1.282 standard errors; Student's t for one degree of freedom is 3.078 there."""
    values = np.random.default_rng(1).normal(3.0, 1.0, 400)
    found = hierarchical_interval([values], resamples=4000, confidence=0.8)
    assert found.high - found.low == pytest.approx(2 * 1.282 * values.std() / 20, rel=0.1)
    seeds = hierarchical_interval([[1.0, 1.0], [2.0, 2.0]], resamples=50, confidence=0.8)
    assert seeds.seeds == pytest.approx(3.0777 * 0.5**0.5 / 2**0.5, rel=1e-4)


def test_one_resample_is_enough_and_half_a_confidence_too() -> None:
    found = hierarchical_interval([[1.0, 2.0, 6.0]], resamples=1, confidence=0.01)
    assert found.low == found.high
    for wrong in ({"resamples": 0}, {"confidence": 0.0}, {"confidence": 1.0}, {"resamples": -1}):
        with pytest.raises(ValueError, match="out of range"):
            hierarchical_interval([[1.0]], **wrong)


@pytest.mark.parametrize("crossed", [False, True])
def test_every_resample_draws_seeds_and_then_prompts(crossed: bool) -> None:
    """Means of seeds 0 and 10, prompts alike: a resample has one seed twice or both, so 0, 5 or 10 in shares 1/4, 1/2, 1/4."""
    seeds = [np.zeros(4), np.full(4, 10.0)]
    ends = {
        confidence: hierarchical_interval(seeds, crossed=crossed, resamples=2000, confidence=confidence)
        for confidence in (0.4, 0.6)
    }
    assert (ends[0.4].low, ends[0.4].high) == (5.0, 5.0)
    assert (ends[0.6].low, ends[0.6].high) == (0.0, 10.0)


@pytest.mark.parametrize("crossed", [False, True])
def test_the_prompts_of_a_seed_are_drawn_from_all_of_them(crossed: bool) -> None:
    """Prompts -1 and 1 of two equal seeds: nested, the mean of four draws is at an end in 1 of 16; crossed, of two, in 1 of 4."""
    found = hierarchical_interval([[-1.0, 1.0]] * 2, crossed=crossed, resamples=4000, confidence=0.7)
    assert (found.low, found.high) == ((-1.0, 1.0) if crossed else (-0.5, 0.5))


def test_comparisons_pass_on_resamples_confidence_and_whether_prompts_are_shared() -> None:
    """Three copies of a seed: with shared prompts they are as uncertain as one; with other prompts each, less."""
    rng = np.random.default_rng(5)
    ours, theirs = (Scores(tuple(map(str, range(60))), rng.normal(0, 1, 60), np.ones(60)) for _ in range(2))
    one, three = (compare_scores([ours] * count, [theirs] * count, resamples=3000) for count in (1, 3))
    for name in ("win_rate", "gain"):
        assert three[name].high - three[name].low == pytest.approx(one[name].high - one[name].low, rel=0.1)
    moved = [Scores(tuple(f"{seed} {name}" for name in ours.prompt_ids), ours.rewards, ours.tokens) for seed in range(3)]
    other = [Scores(each.prompt_ids, theirs.rewards, theirs.tokens) for each in moved]
    apart = compare_scores(moved, other, resamples=3000)["gain"]
    assert apart.high - apart.low < 0.7 * (one["gain"].high - one["gain"].low)
    narrow = compare_scores([ours], [theirs], resamples=3000, confidence=0.5)["gain"]
    assert narrow.high - narrow.low < 0.5 * (one["gain"].high - one["gain"].low)
    assert compare_scores([ours], [theirs], resamples=10) != compare_scores([ours], [theirs], resamples=11)


def test_a_summary_passes_on_how_its_intervals_are_made() -> None:
    rng = np.random.default_rng(6)
    policies = [[Scores(tuple(map(str, range(40))), rng.normal(0, 1, 40), rng.normal(9, 2, 40))] * 3 for _ in range(2)]
    [_, wide], [_, narrow], [_, few] = (
        summarise_scores(policies, resamples=resamples, confidence=confidence)
        for resamples, confidence in ((2000, 0.95), (2000, 0.5), (20, 0.95))
    )
    alone = summarise_scores([each[:1] for each in policies])[1]
    for find in (lambda row: row["reward"], lambda row: row["tokens"], lambda row: row["vs_start"]["gain"]):
        width = find(wide).high - find(wide).low
        assert find(narrow).high - find(narrow).low < 0.5 * width
        assert find(few).low != find(wide).low
        # Three seeds with the same prompts and rewards know no more than one.
        assert find(alone).high - find(alone).low == pytest.approx(width, rel=0.15)


@pytest.mark.parametrize("crossed", [False, True], ids=["nested", "crossed"])
def test_the_interval_is_that_of_all_draws_at_once_to_the_bit(crossed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawn in parts, with the same random stream and the sums of the same draws; the formula here draws all at once."""
    groups = [np.random.default_rng(seed).normal(size=61) for seed in range(3)]
    rng = np.random.default_rng(9)
    drawn = rng.integers(3, size=(500, 3))
    if crossed:
        picks = rng.integers(61, size=(500, 61))
        by_seed = np.stack([group[picks].mean(axis=1) for group in groups], axis=1)
        means = np.take_along_axis(by_seed, drawn, axis=1).mean(axis=1)
    else:
        nested = np.empty(drawn.shape)
        for index, group in enumerate(groups):
            picks = rng.integers(61, size=(int((drawn == index).sum()), 61))
            nested[drawn == index] = group[picks].mean(axis=1)
        means = nested.mean(axis=1)
    for at_once in (1, 61 * 7, metrics.DRAWN_AT_ONCE):
        monkeypatch.setattr(metrics, "DRAWN_AT_ONCE", at_once)
        found = hierarchical_interval(groups, crossed=crossed, resamples=500, seed=9)
        assert [found.low, found.high] == np.quantile(means, [(1 - 0.95) / 2, 1 - (1 - 0.95) / 2]).tolist()


def test_an_interval_of_many_prompts_needs_no_memory_for_all_draws() -> None:
    """500 draws of 200,000 prompts are 0.8 GB, and as much again for their rewards."""
    rewards = np.zeros(200_000)
    with PeakMemory() as memory:
        hierarchical_interval([rewards], resamples=500)
    assert memory.bytes < 200 * 2**20
