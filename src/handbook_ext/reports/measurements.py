"""Values of ours beside the papers': a number with its interval, who judged it and on what, or why there is none."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean, stdev

from scipy.special import ndtri, stdtrit

from handbook_ext.evaluation.set_evaluation import Decoding, Grader
from handbook_ext.objectives.metrics import CONFIDENCE
from handbook_ext.reports.paper_headings import Stand

Key = tuple[str, str, str]
"""A cell of a printed table: its group, row and column."""

WAYS = {
    "normal": "normal intervals from the standard error over prompts",
    "bootstrap": "bootstrap intervals over prompts",
    "wilson": "Wilson intervals of a share of prompts",
    "seeds": "Student's t over seeds, never narrower than over the prompts of one",
    "none": "no interval",
}


@dataclass(frozen=True)
class Measurement:
    """A value of ours with its interval of coverage `confidence`, in the unit of the paper's cell, and how it was made.

    `way` is one of WAYS. `over_prompts` is the standard error over the prompts of one evaluation, None where none is known. `n`
    verdicts were read and `missing` not, on `prompts` of the `of` prompts of the set, of which training had seen `seen`.
    """

    value: float
    low: float
    high: float
    confidence: float = CONFIDENCE
    way: str = "normal"
    over_prompts: float | None = None
    n: int = 0
    missing: int = 0
    prompts: int = 0
    of: int = 0
    seen: int = 0
    seeds: int = 1
    judge: Grader | None = None
    judge_runs: int = 1
    decoding: Decoding | None = None
    checkpoint: str | None = None

    @property
    def error(self) -> float | None:
        """The standard error that a normal interval of this width has; None where there is no interval."""
        return None if self.way == "none" else (self.high - self.low) / 2 / normal_quantile(self.confidence)


@dataclass(frozen=True)
class Lack:
    """Why a cell has no value of ours; where the evaluation itself is missing, of which recipe and policy, and on which set."""

    reason: str = ""
    recipe: str = ""
    policy: str = ""
    set: str = ""


@dataclass(frozen=True)
class Filling:
    """What is known of ours for the cells of a table; a cell that is in neither `ours` nor `lacks` is quoted alone.

    `ours` has values; `lacks` says of the other cells why there is none. `released` and `released_lacks` are the same of released
    checkpoints, None where these are not asked for. `stands` are the recipe and policy of each cell. `model` is whose runs these
    are, where they are not those of the paper's own model; `notes` are remarks on the runs.
    """

    ours: Mapping[Key, Measurement] = field(default_factory=dict)
    lacks: Mapping[Key, Lack] = field(default_factory=dict)
    released: Mapping[Key, Measurement] | None = None
    released_lacks: Mapping[Key, Lack] = field(default_factory=dict)
    stands: Mapping[Key, Stand] = field(default_factory=dict)
    model: str | None = None
    notes: Sequence[str] = ()


def normal_quantile(confidence: float) -> float:
    """Returns how many standard errors a two-sided normal interval of this coverage reaches: 1.96 for 0.95."""
    return float(ndtri((1 + confidence) / 2))


def normal_interval(value: float, error: float, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Returns the two ends of the normal interval of a value with this standard error."""
    half = normal_quantile(confidence) * error
    return value - half, value + half


def wilson_interval(hits: int, count: int, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Returns the two ends of Wilson's interval of a share (1927): it has a width where all or none are hits, too."""
    z = normal_quantile(confidence)
    share, spread = hits / count, z * math.sqrt(hits * (count - hits) / count + z * z / 4)
    middle = hits + z * z / 2
    ends = (middle - spread) / (count + z * z), (middle + spread) / (count + z * z)
    return min(ends[0], share), max(ends[1], share)


def pooled(seeds: Sequence[Measurement], confidence: float = CONFIDENCE) -> Measurement:
    """Returns one value of several seeds of a recipe: their mean, with Student's t interval over the seeds.

    Never narrower than the interval of one seed over its prompts: all seeds answer the same prompts, so their mean knows those no
    better. One seed is itself. Raises ValueError for none.
    """
    if not seeds:
        raise ValueError("no seed to pool")
    first = seeds[0]
    if len(seeds) == 1:
        return first
    values = [each.value for each in seeds]
    value, count = fmean(values), len(values)
    half = float(stdtrit(count - 1, (1 + confidence) / 2)) * stdev(values) / count**0.5
    known = [each.over_prompts for each in seeds if each.over_prompts is not None]
    over_prompts = math.sqrt(fmean(error**2 for error in known)) if known else None
    if over_prompts is not None:
        half = max(half, normal_quantile(confidence) * over_prompts)
    return replace(
        first, value=value, low=value - half, high=value + half, confidence=confidence, way="seeds", over_prompts=over_prompts,
        n=sum(each.n for each in seeds), missing=sum(each.missing for each in seeds), seeds=count,
        seen=max(each.seen for each in seeds),
    )  # fmt: skip


def difference(ours: Measurement, theirs: Measurement) -> tuple[float, float | None]:
    """Returns ours less theirs with its standard error, None where one of them has none.

    The two are taken as independent. They share their prompts, so the true error is smaller: what is beyond this one is beyond
    that one too.
    """
    errors = ours.error, theirs.error
    error = None if None in errors else math.hypot(*(each or 0.0 for each in errors))
    return ours.value - theirs.value, error


def gain(ours: Measurement, theirs: Measurement) -> Measurement:
    """Returns ours less theirs as a value of its own, with a normal interval where both have an error."""
    value, error = difference(ours, theirs)
    low, high = (value, value) if error is None else normal_interval(value, error, ours.confidence)
    way = "none" if error is None else "normal"
    return replace(ours, value=value, low=low, high=high, way=way, over_prompts=error)
