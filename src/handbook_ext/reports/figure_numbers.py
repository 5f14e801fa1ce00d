"""The statistics of the papers' figures with their intervals: arrays of a prompt's numbers in, numbers out.

A statistic is of several seeds, each an array whose first axis are the prompts. Its interval is a percentile bootstrap over
seeds and prompts, drawn as `objectives.metrics.hierarchical_interval` draws it for means.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from handbook_ext.objectives.metrics import CONFIDENCE, correlation, rank_correlation

Array = NDArray[np.float64]
Groups = Sequence[Array]
RESAMPLES = 1000
RIDGE = 0.01
NEWTON_STEPS = 25


class Estimate(NamedTuple):
    """The values of a statistic, any shape, and the two ends of their intervals."""

    value: Array
    low: Array
    high: Array


def bootstrap(
    groups: Groups, statistic: Callable[[list[Array]], Array | float], *, crossed: bool = False,
    resamples: int = RESAMPLES, confidence: float = CONFIDENCE, seed: int = 0,
) -> Estimate:  # fmt: skip
    """Returns a statistic of all seeds with its interval; `crossed`: the seeds share their prompts, in the same order.

    Raises ValueError where there is no seed, or one without prompts.
    """
    if not groups or any(len(group) == 0 for group in groups):
        raise ValueError("nothing to resample: a seed needs prompts")
    rng = np.random.default_rng(seed)
    drawn = []
    for _ in range(resamples):
        seeds = rng.integers(len(groups), size=len(groups))
        # One draw of prompts for all seeds that share them: a hard prompt is hard in each.
        shared = rng.integers(len(groups[0]), size=len(groups[0])) if crossed else None
        drawn.append(
            statistic([
                groups[at][rng.integers(len(groups[at]), size=len(groups[at])) if shared is None else shared] for at in seeds
            ])
        )  # fmt: skip
    tail = (1 - confidence) / 2
    low, high = np.nanquantile(np.array(drawn, dtype=np.float64), [tail, 1 - tail], axis=0)
    return Estimate(np.asarray(statistic(list(groups)), dtype=np.float64), low, high)


def in_bins(values: Array, edges: Sequence[float]) -> Array:
    """Returns 100 where a value lies in a bin, else 0, (values, bins): its mean is the histogram in %; the last bin is closed."""
    places = np.clip(np.searchsorted(edges, values, side="right") - 1, 0, len(edges) - 2)
    inside = (values >= edges[0]) & (values <= edges[-1])
    return np.where(inside[:, None] & (places[:, None] == np.arange(len(edges) - 1)), 100.0, 0.0)


def means(drawn: list[Array]) -> Array:
    """Returns the mean over seeds of the means over prompts."""
    return np.mean([one.mean(axis=0) for one in drawn], axis=0)


def ranks_of(groups: Groups) -> Array:
    """Returns the ranks of the values of all seeds, from 0 to 1, the middle of each value's own share."""
    count = sum(map(len, groups))
    return (np.arange(count) + 0.5) / count


def sorted_values(groups: Groups) -> Callable[[list[Array]], Array]:
    """Returns the statistic of a sorted curve: values of all seeds at the ranks of `groups`, of which it is the sorted values."""
    ranks = ranks_of(groups)
    # Hazen's quantiles are the sorted values at these ranks; a draw of seeds with other numbers of prompts has them in between.
    return lambda drawn: np.quantile(np.concatenate(drawn), ranks, method="hazen")


def correlations(drawn: list[Array]) -> Array:
    """Returns Pearson's and Spearman's correlation (2,), means over seeds; nan where a side is constant.

    An array is (prompts, 2) or (prompts, completions, 2): what the two last numbers have in common over all the rest.
    """
    found = []
    for one in drawn:
        pairs = one.reshape(-1, 2)
        pairs = pairs[np.isfinite(pairs).all(axis=1)]
        both = [way(pairs[:, 0], pairs[:, 1]) if len(pairs) else None for way in (correlation, rank_correlation)]
        found.append([np.nan if each is None else each for each in both])
    return np.mean(found, axis=0)


def length_controlled(drawn: list[Array]) -> float:
    """Returns the length-controlled win rate, in %, of all seeds together; an array is (prompts, 2): outcome and length gap.

    The outcome is 1 for a win, 0.5 for a tie, 0 for a loss; the gap is our length less theirs. As AlpacaEval 2 has it (Dubois et
    al. 2024), less its term for the difficulty of an instruction, which needs many judged models: a logistic regression of
    the outcome on a constant theta and on tanh(gap / its standard deviation), read off where the gap is 0: sigmoid(theta).
    """
    table = np.concatenate(drawn)
    outcome, gap = table[:, 0], table[:, 1]
    spread = gap.std()
    features = np.stack([np.ones_like(gap), np.tanh(gap / spread) if spread > 0 else np.zeros_like(gap)], axis=1)
    weights = np.zeros(2)
    # Newton's method. The ridge is a prior worth a hundredth of a prompt: without it a policy that always wins has no optimum.
    for _ in range(NEWTON_STEPS):
        likely = 1 / (1 + np.exp(-features @ weights))
        slope = features.T @ (outcome - likely) - RIDGE * weights
        curvature = (features * (likely * (1 - likely))[:, None]).T @ features + RIDGE * np.eye(2)
        # A step of one at most, since full steps overshoot where nearly all are won.
        step = np.clip(np.linalg.solve(curvature, slope), -1, 1)
        weights = weights + step
        if np.abs(step).max() < 1e-10:
            break
    return float(100 / (1 + np.exp(-weights[0])))


def jaccard_of_marks(drawn: list[Array]) -> float:
    """Returns the Jaccard similarity of two sets, a mean over seeds; an array is (pairs, 2): whether each set has the pair."""
    return float(np.mean([(one.min(axis=1)).sum() / max(one.max(axis=1).sum(), 1) for one in drawn]))
