"""The statistics of the papers' figures against values worked out by hand or by another library."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.stats import pearsonr, spearmanr

from handbook_ext.objectives.metrics import hierarchical_interval
from handbook_ext.reports.figure_numbers import (
    RIDGE,
    bootstrap,
    correlations,
    in_bins,
    jaccard_of_marks,
    length_controlled,
    means,
    ranks_of,
    sorted_values,
)

FLAT = np.zeros(4)


def test_a_histogram_is_the_share_of_each_bin_with_its_interval() -> None:
    edges = [0.0, 1.0, 2.0, 3.0]
    seeds = [np.array([0.0, 0.5, 1.0, 3.0]), np.array([0.0, 2.5, 2.5, 2.5])]
    assert in_bins(seeds[0], edges).tolist() == [[100, 0, 0], [100, 0, 0], [0, 100, 0], [0, 0, 100]]
    assert in_bins(np.array([-0.1, 3.1]), edges).sum() == 0
    found = bootstrap([in_bins(one, edges) for one in seeds], means)
    assert found.value.tolist() == [(50 + 25) / 2, 12.5, (25 + 75) / 2]
    assert (found.low <= found.value).all() and (found.value <= found.high).all()
    assert found.low[0] < found.high[0]


@pytest.mark.parametrize("crossed", [True, False])
def test_intervals_are_as_wide_as_those_of_means_elsewhere(crossed: bool) -> None:
    rng = np.random.default_rng(0)
    seeds = [rng.normal(size=60) + shift for shift in (0.0, 0.3)]
    ours, theirs = bootstrap(seeds, means, crossed=crossed, resamples=4000), hierarchical_interval(seeds, crossed=crossed)
    assert float(ours.value) == pytest.approx(theirs.value)
    assert float(ours.high - ours.low) == pytest.approx(theirs.high - theirs.low, rel=0.1)


def test_seeds_that_share_prompts_draw_them_together() -> None:
    """Two equal seeds: drawn together they are as uncertain as one, drawn apart their errors would average out."""
    one = np.random.default_rng(1).normal(size=80)
    alone, together, apart = (
        bootstrap(groups, means, crossed=crossed) for groups, crossed in (([one], False), ([one, one], True), ([one, one], False))
    )
    width = [float(each.high - each.low) for each in (alone, together, apart)]
    assert width[1] == pytest.approx(width[0], rel=0.1)
    assert width[2] < 0.9 * width[0]


@pytest.mark.parametrize("groups", [[], [np.zeros(0)]])
def test_nothing_cannot_be_resampled(groups: list[np.ndarray]) -> None:
    with pytest.raises(ValueError, match="a seed needs prompts"):
        bootstrap(groups, means)


def test_sorted_values_are_of_all_seeds() -> None:
    seeds = [np.array([0.3, -0.1]), np.array([0.2, 0.0])]
    assert sorted_values(seeds)(seeds) == pytest.approx([-0.1, 0.0, 0.2, 0.3])
    assert ranks_of(seeds).tolist() == [0.125, 0.375, 0.625, 0.875]
    assert bootstrap([*seeds, np.array([1.0])], sorted_values(seeds)).value.shape == (4,)  # Seeds may lack prompts of others.


def test_correlations_are_pearsons_and_spearmans_over_all_completions() -> None:
    rng = np.random.default_rng(2)
    pairs = rng.normal(size=(30, 2, 2))
    pairs[..., 1] += np.exp(pairs[..., 0])
    x, y = pairs.reshape(-1, 2).T
    assert correlations([pairs]) == pytest.approx([pearsonr(x, y).statistic, spearmanr(x, y).statistic])
    gap = pairs.copy()
    gap[0, 0, 1] = np.nan  # A completion without a verdict counts for nothing.
    assert correlations([gap])[0] == pytest.approx(pearsonr(x[1:], y[1:]).statistic)
    assert np.isnan(correlations([np.stack([FLAT, np.arange(4.0)], axis=1)])).all()


def test_without_a_gap_of_lengths_the_lc_win_rate_is_the_win_rate() -> None:
    table = np.stack([np.array([1.0, 1.0, 0.5, 0.0] * 50), np.zeros(200)], axis=1)
    assert length_controlled([table]) == pytest.approx(62.5, abs=0.01)


def test_the_lc_win_rate_is_the_optimum_of_alpaca_evals_regression() -> None:
    rng = np.random.default_rng(3)
    gap = rng.normal(3, 10, size=300)
    outcome = (rng.random(300) < 1 / (1 + np.exp(-(0.4 + 1.2 * np.tanh(gap / gap.std()))))).astype(float)
    features = np.stack([np.ones(300), np.tanh(gap / gap.std())], axis=1)

    def loss(weights: np.ndarray) -> float:
        margin = features @ weights
        return float(np.logaddexp(0, margin).sum() - outcome @ margin + RIDGE / 2 * weights @ weights)

    theta = minimize(loss, np.zeros(2), tol=1e-12).x[0]
    table = np.stack([outcome, gap], axis=1)
    assert length_controlled([table[:100], table[100:]]) == pytest.approx(100 / (1 + np.exp(-theta)), abs=1e-3)
    # Wins that length alone explains are taken away.
    assert length_controlled([table]) < 100 * outcome.mean()


def test_lc_win_rates_of_the_two_sides_add_up_and_one_who_always_wins_stays_below_100() -> None:
    rng = np.random.default_rng(4)
    table = np.stack([rng.choice([0.0, 0.5, 1.0], 100), rng.normal(size=100)], axis=1)
    turned = np.stack([1 - table[:, 0], -table[:, 1]], axis=1)
    assert length_controlled([table]) + length_controlled([turned]) == pytest.approx(100)
    assert 99 < length_controlled([np.stack([np.ones(50), rng.normal(size=50)], axis=1)]) < 100


def test_jaccard_is_what_two_sets_share_of_their_union() -> None:
    marks = np.array([[1, 1], [1, 0], [0, 1], [1, 1]], dtype=float)
    assert jaccard_of_marks([marks, np.ones((3, 2))]) == (0.5 + 1.0) / 2
