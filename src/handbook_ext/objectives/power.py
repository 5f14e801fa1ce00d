"""What an interval over seeds could have told: the p-value of a difference, and the smallest one that it would have found.

Both are of the rule by which `Interval.side` takes a side: Student's t over the means of the seeds, and the bootstrap over seeds
and prompts, must both say so.
"""

from __future__ import annotations

from scipy.special import nctdtrinc, ndtr, ndtri, stdtr, stdtrit

from handbook_ext.objectives.metrics import Interval

POWER = 0.8
"""In how large a share of such experiments a difference is to be found."""


def standard_errors(found: Interval, seeds: int, confidence: float) -> tuple[float, float]:
    """Returns the standard error between seeds (Student's) and that of the bootstrap, in the unit of what was averaged.

    found: an interval of coverage `confidence` over so many seeds; the bootstrap is read as a normal distribution. Raises
    ValueError for one seed, which has no spread.
    """
    if seeds < 2 or found.seeds is None:
        raise ValueError(f"{seeds} seed has no standard error between seeds; pass two or more")
    upper = (1 + confidence) / 2
    return found.seeds / float(stdtrit(seeds - 1, upper)), (found.high - found.low) / 2 / float(ndtri(upper))


def p_value(found: Interval, threshold: float, seeds: int, confidence: float) -> float:
    """Returns the two-sided p-value of a mean that equals `threshold`: of Student's t over seeds or of the bootstrap, the larger.

    Seeds that all lie on the same value tell for certain whether that is the threshold.
    """
    gap = abs(found.value - threshold)
    between, drawn = standard_errors(found, seeds, confidence)
    if gap == 0:
        return 1.0
    over_seeds = 2 * float(stdtr(seeds - 1, -gap / between)) if between else 0.0
    return max(over_seeds, 2 * float(ndtr(-gap / drawn)) if drawn else 0.0)


def detectable(found: Interval, seeds: int, confidence: float, *, tests: int = 1, power: float = POWER) -> float | None:
    """Returns the true difference that this many seeds would have told from none in the share `power` of such experiments.

    With n seeds whose means have the standard error s (measured, of their mean), Student's test at level a tells a difference
    where |mean| > t s, t being the quantile of n - 1 degrees of freedom at 1 - a / 2. Where the true difference is d, mean / s
    has the noncentral t distribution with the noncentrality d / s: so d = c s, with the c for which P(T > t; n - 1, c) = power.
    The verdict asks the bootstrap as well, whose error e is that of seeds and prompts: it tells (z(1 - a / 2) + z(power)) e, z
    being normal quantiles. The larger of the two is returned.

    a is (1 - confidence) / tests: Holm's first step, at which a difference is told whatever the other tests say. Assumed: means
    of seeds are normal and independent, and another experiment's spread is the one measured here; of few seeds that spread is
    itself uncertain (of five, by a third either way). None for one seed, and where no spread was measured.
    """
    if seeds < 2 or found.seeds is None:
        return None
    upper = 1 - (1 - confidence) / tests / 2
    between, drawn = standard_errors(found, seeds, confidence)
    smallest = max(
        float(nctdtrinc(seeds - 1, 1 - power, stdtrit(seeds - 1, upper))) * between,
        detectable_by_error(drawn, confidence, tests=tests, power=power),
    )
    return smallest or None


def detectable_by_error(error: float, confidence: float, *, tests: int = 1, power: float = POWER) -> float:
    """Returns what `detectable` does where a difference has a known standard error and a normal distribution."""
    return float(ndtri(1 - (1 - confidence) / tests / 2) + ndtri(power)) * error


def told_in_words(smallest: float | None, among: str = "tables", *, limit: float = 0.5) -> str:
    """Returns `a difference of 6.1 points would have been told in 80 of 100 such tables` of a share, "" where nothing is known.

    limit: how far a share can be from the value that it is held against; a half for a win rate.
    """
    if smallest is None:
        return ""
    share = f"{100 * POWER:g} of 100 such {among}"
    if smallest >= limit:
        return f"seeds differ so much that no difference, however large, would have been told in {share}"
    return f"a difference of {100 * smallest:.1f} points would have been told in {share}"
