"""Draws a picture: its panels in columns, equally wide in all rows, with titles, facts and limits that compare."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import AutoLocator, ScalarFormatter

from handbook_ext.reports.figure_charts import CHARTS, blank, label
from handbook_ext.reports.figure_parts import PAPER, Panel, Picture
from handbook_ext.reports.figure_style import card, legend_below

NARROW = 2.7  # Of a column of bars whose categories stand at its left.
CELL = 0.7  # Inches of a heat map's cell.


def draw(picture: Picture) -> Figure:
    """Returns the figure of a picture: its columns side by side, each with its panels below one another.

    Panels of one kind with the same axes have the same limits, so that they compare.
    """
    bare = [at > 0 and _same_rows(picture.columns[at - 1], column) for at, column in enumerate(picture.columns)]
    widths = [
        NARROW if is_bare else max(_width(panel, picture.width) for panel in column)
        for is_bare, column in zip(bare, picture.columns, strict=True)
    ]
    heights = _heights(picture)
    figure = Figure(figsize=(sum(widths), sum(heights) + 0.4), layout="constrained")
    figure.suptitle("\n".join(textwrap.wrap(picture.title, int(11 * sum(widths)))), x=0.01, ha="left", weight="bold")
    alike: dict[tuple[str, str, str], list[Axes]] = {}
    places = _places(figure, picture, widths, heights)
    for column, places_of, width, is_bare in zip(picture.columns, places, widths, bare, strict=True):
        for axes, panel in zip(places_of, column, strict=True):
            (blank if panel.empty else CHARTS[panel.kind])(axes, panel)
            _say(axes, panel, width)
            if is_bare:
                axes.set_yticklabels([])
            elif _wants_legend(panel):
                legend_below(axes, 1 if max(len(label(one)) for one in panel.series) > 24 else 2)
            if not panel.empty:
                # Histograms of a picture are of one quantity, which the lowest names for all.
                x = "" if panel.kind == "histogram" else panel.x
                alike.setdefault((panel.kind, x, panel.y), []).append(axes)
    for (kind, *_), group in alike.items():
        _share_limits(kind, group)
    return figure


def _heights(picture: Picture) -> list[float]:
    """Returns the inches of each row; of the tallest column as one row where the columns do not stand in rows."""
    if not _even(picture):
        return [max(sum(map(_height, column)) for column in picture.columns)]
    rows = range(len(picture.columns[0]))
    return [max(_height(column[at]) for column in picture.columns if at < len(column)) for at in rows]


def _even(picture: Picture) -> bool:
    """Returns whether the columns have as many panels, or one fewer at the end: they then stand in rows too."""
    counts = [len(column) for column in picture.columns]
    return counts == sorted(counts, reverse=True) and counts[0] - counts[-1] <= 1


def _places(figure: Figure, picture: Picture, widths: list[float], heights: list[float]) -> list[list[Axes]]:
    """Returns the axes of each column: in a grid where the columns are even, else each column divided by itself."""
    if _even(picture):
        grid = figure.subplots(len(heights), len(widths), width_ratios=widths, height_ratios=heights, squeeze=False)
        for at, column in enumerate(picture.columns):
            for axes in grid[len(column) :, at]:
                axes.set_visible(False)
        return [list(grid[: len(column), at]) for at, column in enumerate(picture.columns)]
    parts = figure.subfigures(1, len(widths), width_ratios=widths, squeeze=False)[0]
    for part in parts:
        part.set_facecolor(card())
    return [
        list(part.subplots(len(column), 1, squeeze=False, height_ratios=list(map(_height, column)))[:, 0])
        for part, column in zip(parts, picture.columns, strict=True)
    ]


def _say(axes: Axes, panel: Panel, width: float) -> None:
    """Writes a panel's title, below it its facts and notes, and wraps what its axes are called."""
    small = [*(fact.words for fact in panel.facts), *panel.notes]
    title = "\n".join(textwrap.wrap(panel.title, int(11 * width)))
    axes.set_title(title, pad=5 + 9.5 * len(small))
    if small:
        axes.annotate("\n".join(small), (0, 1), (0, 4), "axes fraction", "offset points", fontsize=7.5, ha="left", va="bottom")
    axes.set_xlabel(textwrap.fill(axes.get_xlabel(), int(9 * width)))
    axes.set_ylabel(textwrap.fill(axes.get_ylabel(), 36))


def _wants_legend(panel: Panel) -> bool:
    """Returns whether the panel has series to be told apart, or the paper's, which is to be told from ours."""
    several = len(panel.series) > 1 or any(one.whose == PAPER for one in panel.series)
    return several and not panel.empty and panel.kind in ("lines", "bars", "sorted")


def _share_limits(kind: str, group: list[Axes]) -> None:
    """Gives all axes the widest of their limits: of values alone, not of the categories of bars or heat maps."""
    if kind == "heat" or len(group) < 2:
        return
    left, right = zip(*(axes.get_xlim() for axes in group), strict=True)
    for axes in group:
        axes.set_xlim(min(left), max(right))
        if kind == "lines":
            # The places that one of them has points at are none of the others'.
            axes.xaxis.set_major_locator(AutoLocator())
            axes.xaxis.set_major_formatter(ScalarFormatter())
    if kind != "bars":
        bottom, top = zip(*(axes.get_ylim() for axes in group), strict=True)
        for axes in group:
            axes.set_ylim(min(bottom), max(top))


def _same_rows(left: Sequence[Panel], right: Sequence[Panel]) -> bool:
    """Returns whether the bars of two columns have the same categories, so that one of them need not name them."""
    named = [
        [list(dict.fromkeys(point.x for one in panel.series for point in one.points)) for panel in column if panel.kind == "bars"]
        for column in (left, right)
    ]
    return bool(named[0]) and named[0] == named[1]


def _height(panel: Panel) -> float:
    """Returns the inches that a panel wants, its labels and legend included."""
    if panel.kind == "heat":
        return CELL * len(panel.series) * 0.85 + 1.6
    if panel.kind == "bars":
        return 0.2 * len(panel.series) * max(2, len({point.x for one in panel.series for point in one.points})) + 1.5
    return 1.55 if panel.kind == "histogram" else 3.0 + 0.1 * len(panel.series)


def _width(panel: Panel, usual: float) -> float:
    """Returns the inches that a panel wants."""
    return max(usual, CELL * len(panel.series[0].points) + 1.6) if panel.kind == "heat" and panel.series else usual
