"""What a sorted curve of differences says in numbers: their mean and the share above 0, with intervals and judged by these."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from handbook_ext.objectives.metrics import CONFIDENCE, Interval, hierarchical_interval
from handbook_ext.objectives.power import POWER, detectable
from handbook_ext.reports.figure_numbers import Array, bootstrap, ranks_of, sorted_values
from handbook_ext.reports.figure_parts import Fact, Series, points_of

BY_SIDE = {1: "above", 0: "cannot tell", -1: "below"}
RULE = (
    f"Mean and share above 0 (a tie counts half) have {100 * CONFIDENCE:g} % bootstrap intervals over seeds and prompts, and are "
    "called above or below where Student's t over the seeds agrees."
)


@dataclass(frozen=True)
class Judged:
    """The mean (nats, or what the differences are in) and the share above 0 (%) of differences, and what each says in words."""

    facts: tuple[Fact, ...]
    notes: tuple[str, ...]

    @property
    def words(self) -> str:
        """All of it in one clause."""
        return "; ".join([*(fact.words for fact in self.facts), *self.notes])


def judge_differences(seeds: Sequence[Mapping[str, float]]) -> Judged:
    """Returns what differences say, by prompt id, one mapping per seed: whether their mean is above 0 and half of them are.

    Each is judged as a win rate is (`Interval.side`), one test alone; one seed has no verdict. Beside it stands the smallest true
    distance that as many seeds would have told in 80 of 100 cases. Raises ValueError where a seed has no prompt.
    """
    groups, crossed = _arrays(seeds)
    mean = hierarchical_interval(groups, crossed=crossed)
    # A tie is neither: half of it counts, or two equal policies would be below.
    share = hierarchical_interval([np.where(each > 0, 100.0, np.where(each == 0, 50.0, 0.0)) for each in groups], crossed=crossed)
    facts = (_fact("mean", mean, 3), _fact("above 0, %:", share, 1))
    if len(seeds) < 2:
        return Judged(facts, ("one seed, no verdict",))
    return Judged(facts, (_note("mean", mean, 0.0, len(seeds), "0", 3), _note("share", share, 50.0, len(seeds), "50 %", 1)))


def sorted_curve(title: str, seeds: Sequence[Mapping[str, float]]) -> Series:
    """Returns the sorted differences of all seeds, by prompt id in each, with the band of their intervals."""
    groups, crossed = _arrays(seeds)
    return Series(title, points_of((100 * ranks_of(groups)).tolist(), *bootstrap(groups, sorted_values(groups), crossed=crossed)))


def _arrays(seeds: Sequence[Mapping[str, float]]) -> tuple[list[Array], bool]:
    """Returns the values of each seed (prompts,), and whether the seeds share their prompts, which are then in one order."""
    crossed = all(each.keys() == seeds[0].keys() for each in seeds)
    return [np.array([each[name] for name in sorted(each)], dtype=np.float64) for each in seeds], crossed


def _fact(name: str, found: Interval, digits: int) -> Fact:
    """Returns an interval as a fact of a panel."""
    return Fact(name, found.value, found.low, found.high, digits)


def _note(name: str, found: Interval, threshold: float, seeds: int, against: str, digits: int) -> str:
    """Returns `mean: cannot tell from 0 (80 % power at 0.120 away)`."""
    side, smallest = found.side(threshold), detectable(found, seeds, CONFIDENCE)
    word = f"{BY_SIDE[side]} {'from ' if not side else ''}{against}"
    return f"{name}: {word}" + (f" ({100 * POWER:g} % power at {smallest:.{digits}f} away)" if smallest else "")
