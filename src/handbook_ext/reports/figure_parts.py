"""What a figure of a paper consists of, before anything is drawn: the picture and its CSV are both made from this alone."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from handbook_ext.objectives.metrics import Interval

OURS, PAPER = "ours", "paper"
NOT_RUN = "not run"
CSV_HEAD = ["panel", "series", "whose", "x", "y", "low", "high", "x axis", "y axis"]


@dataclass(frozen=True)
class Point:
    """A number with its interval, at a place of the horizontal axis or under a category; y is None where nothing was run."""

    x: float | str
    y: float | None
    low: float | None = None
    high: float | None = None

    @classmethod
    def of(cls, x: float | str, interval: Interval | None, scale: float = 1.0) -> Point:
        """Returns the point of an interval, each number times `scale`; one without numbers for None."""
        if interval is None:
            return cls(x, None)
        # Student's interval over the seeds, where it is the wider one: few seeds make the bootstrap's too narrow.
        low, high = min(interval.low, interval.value - interval.seeds), max(interval.high, interval.value + interval.seeds)
        return cls(x, scale * interval.value, scale * low, scale * high)


@dataclass(frozen=True)
class Series:
    """Points that belong together: a line, bars of a kind, a row of a heat map. `reference`: drawn as what others are held to."""

    name: str
    points: tuple[Point, ...]
    whose: str = OURS
    line: str | None = None
    reference: bool = False


@dataclass(frozen=True)
class Fact:
    """A number that a panel shows in words, such as a correlation."""

    name: str
    value: float
    low: float | None = None
    high: float | None = None
    digits: int = 2

    @property
    def words(self) -> str:
        """The number with its interval in brackets."""
        shown = f"{self.name} {self.value:.{self.digits}f}"
        return shown if self.low is None else f"{shown} [{self.low:.{self.digits}f}, {self.high:.{self.digits}f}]"


@dataclass(frozen=True)
class Panel:
    """One pair of axes; `x` and `y` name them with their units.

    facts, notes: what stands in its corner, numbers and words. level: where two equal policies are, or a histogram's
    mean. edges: of a histogram's bins.
    """

    kind: Literal["lines", "bars", "histogram", "sorted", "heat", "scatter"]
    title: str
    x: str
    y: str
    series: tuple[Series, ...]
    facts: tuple[Fact, ...] = ()
    notes: tuple[str, ...] = ()
    level: float | None = None
    edges: tuple[float, ...] = ()

    @property
    def empty(self) -> bool:
        """Whether no series has a number."""
        return all(point.y is None for one in self.series for point in one.points)

    @property
    def measured(self) -> bool:
        """Whether a number of ours is in it."""
        return any(point.y is not None for one in self.series for point in one.points if one.whose == OURS)


@dataclass(frozen=True)
class Picture:
    """A figure: its panels by column, each from top to bottom, what has to be said of it, and the width of a column in inches."""

    title: str
    columns: tuple[tuple[Panel, ...], ...]
    caption: str
    width: float = 4.2

    @property
    def panels(self) -> list[Panel]:
        """All panels, column by column."""
        return [panel for column in self.columns for panel in column]


def to_csv(picture: Picture) -> str:
    """Returns a line for each number that the picture shows, facts in words among them; a missing one is `not run`."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(CSV_HEAD)
    for panel in picture.panels:
        for one in panel.series:
            for point in one.points:
                numbers = [NOT_RUN if point.y is None else _exact(point.y), _exact(point.low), _exact(point.high)]
                writer.writerow([panel.title, one.name, one.whose, _exact(point.x), *numbers, panel.x, panel.y])
        for fact in panel.facts:
            numbers = [_exact(each) for each in (fact.value, fact.low, fact.high)]
            writer.writerow([panel.title, fact.name, OURS, "", *numbers, "", ""])
    return text.getvalue()


def points_of(xs: Sequence[float | str], values: Any, low: Any = None, high: Any = None) -> tuple[Point, ...]:
    """Returns the points of arrays (points,)."""
    ends = [(None, None)] * len(xs) if low is None else [(float(a), float(b)) for a, b in zip(low, high, strict=True)]
    return tuple(Point(x, float(y), *each) for x, y, each in zip(xs, values, ends, strict=True))


def _exact(value: float | str | None) -> str:
    """Returns a number with ten digits, more than any picture shows and fewer than a sum's noise."""
    return "" if value is None else value if isinstance(value, str) else f"{value:.10g}"
