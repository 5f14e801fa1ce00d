"""Whether a value of ours reproduces a paper's: the rule, as a function of numbers alone, and the constants that it takes."""

from __future__ import annotations

import math
from dataclasses import dataclass

from handbook_ext.objectives.metrics import CONFIDENCE
from handbook_ext.reports.measurements import normal_quantile

REPRODUCED, WITHIN_NOISE, NOT_REPRODUCED = "reproduced", "within noise", "not reproduced"
NOT_COMPARABLE, NOT_RUN = "not comparable", "not run"
VERDICTS = (REPRODUCED, WITHIN_NOISE, NOT_REPRODUCED, NOT_COMPARABLE, NOT_RUN)
MARGIN = 0.05
"""How far off a reproduced value may be: this share of the scale, or of the paper's value where the scale has no end."""


@dataclass(frozen=True)
class Noise:
    """The standard errors of a difference: of our value, of the paper's, and between two runs of one recipe."""

    ours: float
    paper: float = 0.0
    runs: float = 0.0

    @property
    def error(self) -> float:
        """The standard error of the difference: the root of the sum of the squares."""
        return math.hypot(self.ours, self.paper, self.runs)


@dataclass(frozen=True)
class Verdict:
    """A verdict in a word, with the difference that it is about and that one's interval; `why` where it is not comparable."""

    word: str
    difference: float | None = None
    low: float | None = None
    high: float | None = None
    margin: float | None = None
    why: str = ""


def verdict_of(difference: float, noise: Noise, margin: float, confidence: float = CONFIDENCE) -> Verdict:
    """Returns the verdict about a difference d of two values, of ours less the paper's, exactly by this rule.

    s is the root of the sum of the squares of three standard errors: of our value, of the paper's value, and of the difference
    between two runs of one recipe (training, judge and pipeline). The interval of the difference is d - z s to d + z s,
    z being the two-sided normal quantile of `confidence`. Then it is

    - *reproduced* where the whole interval lies within -margin and margin, the ends included;
    - else *not reproduced* where the interval does not hold 0;
    - else *within noise*: no difference is shown, and none of the size of the margin is excluded.

    So a value with a wide interval is never reproduced, however near it lies. Raises ValueError for a negative margin or error.
    """
    if margin < 0 or min(noise.ours, noise.paper, noise.runs) < 0:
        raise ValueError(f"margin {margin} and errors {noise} must not be negative")
    half = normal_quantile(confidence) * noise.error
    low, high = difference - half, difference + half
    if -margin <= low and high <= margin:
        word = REPRODUCED
    elif low > 0 or high < 0:
        word = NOT_REPRODUCED
    else:
        word = WITHIN_NOISE
    return Verdict(word, difference, low, high, margin)


def beats(difference: float, error: float, confidence: float = CONFIDENCE, p: float = 0.0) -> str:
    """Returns what two values of ours say about a claim that the first is better: yes, no, or that they cannot tell.

    difference: the first less the second, positive where it is better; yes and no ask that its interval hold no 0, and that p,
    corrected for other claims of the table, be below the level as well.
    """
    half = normal_quantile(confidence) * error
    if abs(difference) <= half:
        return "cannot tell"
    answer = "yes" if difference > 0 else "no"
    return f"cannot tell, {answer} if it were alone" if p >= 1 - confidence else answer
