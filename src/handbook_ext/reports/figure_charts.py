"""The kinds of panels, a function each that draws one into its axes, all in the one style."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Sequence

import numpy as np
from matplotlib.axes import Axes

from handbook_ext.reports.figure_parts import NOT_RUN, OURS, PAPER, Panel, Series
from handbook_ext.reports.figure_style import bar_style, colour, ink, line_style, style


def blank(axes: Axes, panel: Panel) -> None:
    """Draws the axes of a panel without numbers: its labels, the categories of its bars, and that nothing of it was run."""
    names = list(dict.fromkeys(str(point.x) for one in panel.series for point in one.points))
    across = panel.kind == "bars"
    style(axes, panel.y if across else panel.x, panel.x if across else panel.y)
    axes.grid(False)
    axes.set(xticks=[], yticks=[])
    if across and names:
        axes.set_yticks(range(len(names)), [textwrap.fill(name, 24) for name in names])
        axes.set_ylim(len(names) - 0.5, -0.5)
    axes.text(0.5, 0.5, f"{OURS}: {NOT_RUN}", transform=axes.transAxes, ha="center", va="center", fontsize=11, color=ink(0.6))


def lines(axes: Axes, panel: Panel) -> None:
    """Draws each series as a line with intervals; series are shifted sideways by a hundredth so that intervals stay apart."""
    xs = sorted({float(point.x) for one in panel.series for point in one.points})
    shift = 0.012 * (xs[-1] - xs[0]) if len(xs) > 1 else 0.0
    for index, one in enumerate(panel.series):
        known = [point for point in one.points if point.y is not None]
        x = np.array([float(point.x) for point in known]) + shift * (index - (len(panel.series) - 1) / 2)
        kind = line_style(index) | ({"ls": one.line} if one.line else {})
        if one.reference:
            kind = {"color": ink(0.75), "ls": ":", "marker": "x"}
        axes.errorbar(x, [point.y for point in known], _ends(one), label=label(one), **kind)  # type: ignore[arg-type]
    if 1 < len(xs) <= 10 and min(np.diff(xs)) > 0.06 * (xs[-1] - xs[0]):
        axes.set_xticks(xs, [f"{x:g}" for x in xs])
    if len(xs) > 1:
        margin = 0.05 * (xs[-1] - xs[0])
        axes.set_xlim(xs[0] - margin, xs[-1] + margin)
    _level(axes, panel, axes.axhline)
    style(axes, panel.x, panel.y)


def bars(axes: Axes, panel: Panel) -> None:
    """Draws horizontal bars with intervals, the series of a category below one another; what was not run says so."""
    names = list(dict.fromkeys(str(point.x) for one in panel.series for point in one.points))
    thick = 0.8 / len(panel.series)
    for index, one in enumerate(panel.series):
        known = [point for point in one.points if point.y is not None]
        at = {str(point.x): names.index(str(point.x)) + thick * (index - (len(panel.series) - 1) / 2) for point in one.points}
        # The paper's bars are hatched, whether ours stand beside them or not.
        kind = bar_style(max(index, 1) if one.whose == PAPER else index)
        axes.barh(
            [at[str(point.x)] for point in known], [point.y for point in known], thick * 0.92, xerr=_ends(one), label=label(one),
            error_kw={"ecolor": ink(), "elinewidth": 1}, **kind,
        )  # fmt: skip
    for place, name in enumerate(names):
        found = [point.y for one in panel.series for point in one.points if point.x == name]
        if all(each is None for each in found):
            axes.text(0, place, f" {NOT_RUN}", va="center", fontsize=7.5, color=ink(0.7))
    axes.set_yticks(range(len(names)), [textwrap.fill(name, 24) for name in names])
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.axvline(0, color=ink(0.6), lw=0.8)
    _level(axes, panel, axes.axvline)
    style(axes, panel.y, panel.x, grid="x")


def histogram(axes: Axes, panel: Panel) -> None:
    """Draws shares of bins as filled bars with intervals, what others are held to as an outline, the mean as a line."""
    edges = np.array(panel.edges)
    middles = (edges[1:] + edges[:-1]) / 2
    for index, one in enumerate(panel.series):
        values = np.array([point.y for point in one.points], dtype=float)
        if one.reference:
            axes.stairs(values, edges, color=ink(0.75), ls="--", lw=1.2, label=one.name)
            continue
        axes.stairs(values, edges, fill=True, facecolor=(colour(index), 0.55), edgecolor=ink(0.7), lw=0.5)
        axes.errorbar(middles, values, _ends(one), ls="", color=ink(0.8), capsize=1.2, elinewidth=0.7)
    if panel.level is not None:
        axes.axvline(panel.level, color=colour(1), lw=1.8)
    style(axes, panel.x, panel.y)
    axes.set_ylim(bottom=0)
    if any(one.reference for one in panel.series):
        axes.legend(loc="upper left", handlelength=1.4)


def sorted_curve(axes: Axes, panel: Panel) -> None:
    """Draws sorted values against their rank, with the band of their intervals and a line at 0."""
    for index, one in enumerate(panel.series):
        x, y = [float(point.x) for point in one.points], [point.y for point in one.points]
        kind = line_style(index) | {"marker": ""}
        axes.plot(x, y, label=label(one), **kind)  # type: ignore[arg-type]
        if one.points and one.points[0].low is not None:
            low, high = ([getattr(point, end) for point in one.points] for end in ("low", "high"))
            axes.fill_between(x, low, high, color=colour(index), alpha=0.25, lw=0)
    axes.axhline(0, color=ink(0.7), lw=0.8)
    style(axes, panel.x, panel.y)


def heat(axes: Axes, panel: Panel) -> None:
    """Draws a matrix, dark where it is high, each cell with its number and, below it, its interval."""
    columns = [str(point.x) for point in panel.series[0].points]
    values = np.array([[np.nan if point.y is None else point.y for point in one.points] for one in panel.series], dtype=float)
    known = values[np.isfinite(values)]
    low, high = (float(known.min()), float(known.max())) if known.size else (0.0, 1.0)
    # Light to dark in one hue, so that it is the same picture in grey.
    image = axes.imshow(values, cmap="Blues", vmin=low - 0.1 * (high - low) - 1e-9, vmax=high + 0.2 * (high - low) + 1e-9)
    digits = 1 if high > 2 else 2
    for row, one in enumerate(panel.series):
        for column, point in enumerate(one.points):
            words = "-" if point.y is None else f"{point.y:.{digits}f}"
            text = _on(image.to_rgba(values[row, column])) if point.y is not None else ink()
            axes.text(column, row, words, ha="center", va="bottom" if point.low is not None else "center", fontsize=8, color=text)
            if point.low is not None:
                ends = f"{point.low:.{digits}f} to {point.high:.{digits}f}"
                axes.text(column, row + 0.08, ends, ha="center", va="top", fontsize=5.6, color=text)
    axes.set_xticks(range(len(columns)), columns, rotation=40, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(panel.series)), [one.name for one in panel.series])
    axes.set(xlabel=panel.x, ylabel=panel.y)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)


def scatter(axes: Axes, panel: Panel) -> None:
    """Draws points."""
    for index, one in enumerate(panel.series):
        x, y = [float(point.x) for point in one.points], [point.y for point in one.points]
        axes.scatter(x, y, s=7, color=colour(index), alpha=0.6, lw=0, label=label(one), rasterized=True)  # type: ignore[arg-type]
    axes.axhline(0, color=ink(0.6), lw=0.8)
    axes.axvline(0, color=ink(0.6), lw=0.8)
    style(axes, panel.x, panel.y)


CHARTS: dict[str, Callable[[Axes, Panel], None]] = {
    "lines": lines, "bars": bars, "histogram": histogram, "sorted": sorted_curve, "heat": heat, "scatter": scatter
}  # fmt: skip


def _on(shade: Sequence[float]) -> str:
    """Returns black or white, whichever is read better on a shade (red, green, blue from 0 to 1)."""
    return "black" if 0.299 * shade[0] + 0.587 * shade[1] + 0.114 * shade[2] > 0.5 else "white"


def _ends(one: Series) -> np.ndarray | None:
    """Returns the distances of the intervals' ends from the points that have a number, (2, points); None where there are none."""
    known = [point for point in one.points if point.y is not None]
    if not any(point.low is not None for point in known):
        return None
    ends = [(0.0, 0.0) if p.low is None or p.high is None else (p.y - p.low, p.high - p.y) for p in known]  # type: ignore[operator]
    # A bootstrap of few seeds may lie beside the value, which matplotlib would refuse.
    return np.maximum(np.array(ends).T, 0.0)


def label(one: Series) -> str:
    """Returns what the legend calls a series: the paper's and those that were not run are marked as such."""
    if all(point.y is None for point in one.points):
        return f"{one.name} ({NOT_RUN})"
    return one.name if one.whose == OURS else f"{one.name} ({PAPER})" if one.name != PAPER else PAPER


def _level(axes: Axes, panel: Panel, line: Callable[..., object]) -> None:
    """Draws a thin line where two equal policies would stand, where the panel has one."""
    if panel.level is not None:
        line(panel.level, color=ink(0.6), lw=0.8, ls=(0, (2, 2)), zorder=0)
