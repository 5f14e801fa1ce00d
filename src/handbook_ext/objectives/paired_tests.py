"""Paired tests over prompts: whether one policy wins more than half of them, and what remains after several such questions."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats


def sign_test(outcomes: ArrayLike) -> float:
    """Returns the two-sided p-value of the exact sign test (Dixon and Mood 1946): wins against losses, ties left out.

    outcomes: (prompts,) in [0, 1], above a half where ours wins, below where it loses. 1 where all tie. Raises ValueError
    where there are none.
    """
    values = np.asarray(outcomes, dtype=np.float64)
    if values.ndim != 1 or values.size == 0:
        raise ValueError(f"outcomes of shape {values.shape} cannot be tested; pass one per prompt")
    wins, losses = int((values > 0.5).sum()), int((values < 0.5).sum())
    return float(stats.binomtest(wins, wins + losses).pvalue) if wins + losses else 1.0


def win_rate_test(groups: Sequence[ArrayLike], *, crossed: bool) -> float:
    """Returns the p-value of a win rate of one half: over the prompts, and where there are several seeds over these as well.

    groups: one array of outcomes (prompts,) per seed. crossed: all seeds share their prompts, of which each then counts once,
    by its mean over seeds; else every prompt of every seed counts. Both questions must be answered, as in `Interval.side`, so
    the larger p-value holds: prompts alone ignore that another seed trains another policy, seeds alone are few (Student's t).
    """
    arrays = [np.asarray(group, dtype=np.float64) for group in groups]
    over_prompts = sign_test(np.mean(arrays, axis=0) if crossed else np.concatenate(arrays))
    means = np.array([array.mean() for array in arrays])
    if len(means) < 2:
        return over_prompts
    # Equal means have no spread, by which t would divide.
    over_seeds = float(means[0] == 0.5) if np.ptp(means) == 0 else float(stats.ttest_1samp(means, 0.5).pvalue)
    return max(over_prompts, over_seeds)


def holm(p_values: Sequence[float]) -> list[float]:
    """Returns the p-values after Holm's correction (1979), in their order: the chance of any false finding stays below them."""
    adjusted = [0.0] * len(p_values)
    least = 0.0
    for place, index in enumerate(sorted(range(len(p_values)), key=lambda each: p_values[each])):
        # The smallest of m is held against all m, the next against the m - 1 that are left; never below one before it.
        least = max(least, min(1.0, (len(p_values) - place) * p_values[index]))
        adjusted[index] = least
    return adjusted
