"""Win rates, means and bootstrap intervals of per-prompt rewards: numbers in, numbers out.

An array of rewards holds one number per prompt, and two arrays that are compared are aligned by prompt. Several seeds
of one recipe are a list of such arrays. Intervals are percentile bootstrap intervals (Efron and Tibshirani 1993).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import stdtrit

FloatArray = NDArray[np.float64]

RESAMPLES = 2000
CONFIDENCE = 0.95
DRAWN_AT_ONCE = 2**20
"""Prompts that are drawn before their means are taken: 8 MiB, and as much again for their rewards."""


@dataclass(frozen=True)
class Interval:
    """A mean with the two ends of its bootstrap interval, all in the unit of what was averaged.

    `seeds` is half the width of Student's t interval over the means of the seeds; None of one seed, which says nothing
    about how much another one differs.
    """

    value: float
    low: float
    high: float
    seeds: float | None = None

    def side(self, threshold: float) -> int:
        """Returns 1 where both intervals lie above `threshold`, -1 where both lie below, else 0; with one seed always 0.

        With few seeds the bootstrap alone is too narrow: it draws from the seeds at hand, as if there were no others.
        """
        if self.seeds is None:
            return 0
        low, high = min(self.low, self.value - self.seeds), max(self.high, self.value + self.seeds)
        return int(low > threshold) - int(high < threshold)

    def side_here(self, threshold: float) -> int:
        """Returns what `side` does, of these very policies where there is one seed: what another seed would say is left open."""
        return int(self.low > threshold) - int(self.high < threshold) if self.seeds is None else self.side(threshold)


@dataclass(frozen=True, eq=False)
class Scores:
    """What one policy got under one decoding: rewards and tokens, both (prompts,), in the order of `prompt_ids`."""

    prompt_ids: tuple[str, ...]
    rewards: FloatArray
    tokens: FloatArray
    temperature: float = 0.0


def aligned(ours: ArrayLike, theirs: ArrayLike) -> tuple[FloatArray, FloatArray]:
    """Returns the two arrays as float64, both (prompts,).

    Raises ValueError when they are empty, not one-dimensional, of different length, or not finite.
    """
    first, second = np.asarray(ours, dtype=np.float64), np.asarray(theirs, dtype=np.float64)
    if first.ndim != 1 or first.shape != second.shape or first.size == 0:
        raise ValueError(
            f"rewards of shapes {first.shape} and {second.shape} cannot be compared; pass one per prompt, for the same prompts"
        )
    if not (np.isfinite(first).all() and np.isfinite(second).all()):
        raise ValueError("rewards hold nan or inf; score those prompts again or leave them out of both arrays")
    return first, second


def outcomes(ours: ArrayLike, theirs: ArrayLike) -> FloatArray:
    """Returns 1 where ours has the higher reward, 0.5 where the two are equal, 0 elsewhere, (prompts,)."""
    first, second = aligned(ours, theirs)
    return np.where(first > second, 1.0, np.where(first == second, 0.5, 0.0))


def correlation(first: ArrayLike, second: ArrayLike) -> float | None:
    """Returns the Pearson correlation over prompts, or None where it is undefined because one side is constant."""
    left, right = aligned(first, second)
    if np.ptp(left) == 0 or np.ptp(right) == 0:
        return None
    return float(np.corrcoef(left, right)[0, 1])


def rank_correlation(first: ArrayLike, second: ArrayLike) -> float | None:
    """Returns the Spearman correlation: that of the ranks, ties sharing their mean rank; None where one side is constant."""
    left, right = aligned(first, second)
    return correlation(_mean_ranks(left), _mean_ranks(right))


def _mean_ranks(values: FloatArray) -> FloatArray:
    """Returns the rank of each value from 0, equal values sharing the mean of theirs."""
    _, indices, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    # n equal values whose ranks end before `last` have the ranks last - n .. last - 1, of mean last - (n + 1) / 2.
    return np.asarray((last - (counts + 1) / 2)[indices], dtype=np.float64)


def hierarchical_interval(
    groups: Sequence[ArrayLike], *, crossed: bool = False, resamples: int = RESAMPLES, confidence: float = CONFIDENCE,
    seed: int = 0,
) -> Interval:  # fmt: skip
    """Returns the mean over seeds of the means over prompts, with its interval over seeds and then prompts.

    `groups` has one array (prompts,) per seed. `crossed` says that all seeds share their prompts, in the same order:
    one draw of prompts then serves every seed (the pigeonhole bootstrap, Owen 2007), because independent draws would
    average the difficulty of the prompts away and make the interval too narrow. With few seeds it is still optimistic.

    Raises ValueError when there is no group, a group is unusable, or `resamples` or `confidence` is out of range.
    """
    if not groups:
        raise ValueError("no rewards to average; pass one array per seed")
    if resamples < 1 or not 0 < confidence < 1:
        raise ValueError(f"resamples {resamples} and confidence {confidence} are out of range; at least 1, and between 0 and 1")
    arrays = [aligned(group, group)[0] for group in groups]
    rng = np.random.default_rng(seed)
    # One seed has nothing to share; both ways then draw the same distribution.
    draw = _crossed_means if crossed and len(arrays) > 1 else _nested_means
    means = draw(arrays, resamples, rng)
    tail = (1 - confidence) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    of_seeds = np.array([array.mean() for array in arrays])
    count = len(arrays)
    # Student's t, since the spread is estimated from the same few means: for three seeds it is 4.30 standard errors, not 1.96.
    spread = float(stdtrit(count - 1, 1 - tail) * of_seeds.std(ddof=1) / count**0.5) if count > 1 else None
    return Interval(float(of_seeds.mean()), float(low), float(high), spread)


def _nested_means(arrays: Sequence[FloatArray], resamples: int, rng: np.random.Generator) -> FloatArray:
    """Returns means (resamples,) with seeds drawn first, then prompts anew for each drawn seed."""
    drawn = rng.integers(len(arrays), size=(resamples, len(arrays)))
    means = np.empty(drawn.shape)
    for index, array in enumerate(arrays):
        here = drawn == index
        [means[here]] = _means_of_draws([array], int(here.sum()), rng)
    return np.asarray(means.mean(axis=1))


def _crossed_means(arrays: Sequence[FloatArray], resamples: int, rng: np.random.Generator) -> FloatArray:
    """Returns means (resamples,) with seeds drawn, and one draw of prompts for all of them.

    Raises ValueError when the arrays differ in length, and so cannot share their prompts.
    """
    if len({array.size for array in arrays}) > 1:
        sizes = [array.size for array in arrays]
        raise ValueError(f"seeds with {sizes} prompts do not share them; pass crossed=False or the same prompts")
    drawn = rng.integers(len(arrays), size=(resamples, len(arrays)))
    # The same prompts for every seed of a resample, so that a hard prompt is hard in all of them, as it is in the data.
    by_seed = np.ascontiguousarray(_means_of_draws(arrays, resamples, rng).T)
    return np.asarray(np.take_along_axis(by_seed, drawn, axis=1).mean(axis=1))


def _means_of_draws(arrays: Sequence[FloatArray], draws: int, rng: np.random.Generator) -> FloatArray:
    """Returns the mean of each array over the prompts of each draw, (arrays, draws): a draw serves all arrays.

    All draws at once would take gigabytes at tens of thousands of prompts. The random stream is the same in parts, and so are
    the sums, each of one draw.
    """
    size = arrays[0].size
    means = np.empty((len(arrays), draws))
    step = max(1, DRAWN_AT_ONCE // size)
    for start in range(0, draws, step):
        picks = rng.integers(size, size=(min(step, draws - start), size))
        for index, array in enumerate(arrays):
            means[index, start : start + step] = array[picks].mean(axis=1)
    return means


def share_prompts(scores: Sequence[Scores]) -> bool:
    """Returns whether all of them were made on the same prompts in the same order."""
    return all(one.prompt_ids == scores[0].prompt_ids for one in scores)


def comparable(ours: Mapping[str, Scores], theirs: Mapping[str, Scores]) -> bool:
    """Returns whether two policies were scored under the same decodings and temperatures, on the same prompts."""
    our_decodings, their_decodings = (
        {name: (one.temperature, one.prompt_ids) for name, one in scores.items()} for scores in (ours, theirs)
    )
    return our_decodings == their_decodings


def compare_scores(
    ours: Sequence[Scores], theirs: Sequence[Scores], *, resamples: int = RESAMPLES, confidence: float = CONFIDENCE
) -> dict[str, Interval]:
    """Returns `win_rate` in [0, 1] and `gain` (mean difference of reward) of ours over theirs, matched by seed and by prompt.

    Raises ValueError when the seeds do not pair up, or the two of a seed were made on different prompts.
    """
    if len(ours) != len(theirs):
        raise ValueError(f"{len(ours)} and {len(theirs)} seeds cannot be compared; pass the same seeds on both sides")
    if not all(share_prompts(pair) for pair in zip(ours, theirs, strict=True)):
        raise ValueError("the two policies were scored on different prompts; evaluate both on the same ones")
    crossed = share_prompts(ours)
    # Differences first, then their interval: matched prompts cancel most of the variance that both sides share.
    pairs = list(zip(ours, theirs, strict=True))
    columns = {
        "win_rate": [outcomes(our.rewards, their.rewards) for our, their in pairs],
        "gain": [our.rewards - their.rewards for our, their in pairs],
    }
    return {
        name: hierarchical_interval(column, crossed=crossed, resamples=resamples, confidence=confidence)
        for name, column in columns.items()
    }


def summarise_scores(
    policies: Sequence[Sequence[Scores]], *, resamples: int = RESAMPLES, confidence: float = CONFIDENCE
) -> list[dict[str, Any]]:
    """Returns for each policy under one decoding its means, and comparisons with the initial policy and the one before.

    `policies[i][s]` is policy i of seed s. A comparison is None for the initial policy. Rewards are in the ranker's
    unit, lengths in tokens, win rates in [0, 1].
    """
    summary = []
    for index, scores in enumerate(policies):
        mean = partial(hierarchical_interval, crossed=share_prompts(scores), resamples=resamples, confidence=confidence)
        compare = partial(compare_scores, scores, resamples=resamples, confidence=confidence)
        correlations = [correlation(one.rewards, one.tokens) for one in scores]
        defined = [value for value in correlations if value is not None]
        summary.append(
            {
                "reward": mean([one.rewards for one in scores]),
                "tokens": mean([one.tokens for one in scores]),
                "reward_by_seed": [float(one.rewards.mean()) for one in scores],
                "reward_tokens_correlation": float(np.mean(defined)) if defined else None,
                "vs_start": compare(policies[0]) if index else None,
                "vs_previous": compare(policies[index - 1]) if index else None,
            }
        )
    return summary


def word_verdict(ours: str, theirs: str, won: Interval) -> str:
    """Returns a clause that names the better policy, but only where both intervals of the win rate agree (`Interval.side`)."""
    share = f"{100 * won.value:.1f} % [{100 * won.low:.1f}, {100 * won.high:.1f}]"
    if won.seeds is None:
        return f"{ours} against {theirs}, one seed and so no verdict: wins {share}"
    if won.side(0.5) > 0:
        return f"{ours} beats {theirs} in {share}"
    if won.side(0.5) < 0:
        return f"{ours} falls behind {theirs}, winning only {share}"
    return f"{ours} cannot be told apart from {theirs}, winning {share}"
