"""What is drawn is what the CSV says: the artists of each kind of panel against its lines, on a light and on a dark card."""

from __future__ import annotations

import io

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.image import imread

from handbook_ext.objectives.metrics import Interval
from handbook_ext.reports.figure_layout import draw
from handbook_ext.reports.figure_parts import PAPER, Fact, Panel, Picture, Point, Series, to_csv
from handbook_ext.reports.figure_style import COLOURS, SIDES, on_card, pictures
from tests.reports.figure_world import table_of

SWEEP = (Point(0.0, 50.0, 45.0, 55.0), Point(0.5, 61.5, 60.0, 64.0), Point(1.0, None))
BY_NAME = (Point("A", 10.0, 8.0, 13.0), Point("B", None), Point("C", -2.0))
EDGES = (0.0, 1.0, 2.0)


def picture(*panels: Panel) -> Picture:
    return Picture("t", tuple((panel,) for panel in panels), "c")


def axes_of(*panels: Panel) -> list[Axes]:
    with on_card("light"):
        return draw(picture(*panels)).axes


def drawn_intervals(axes: Axes) -> list[list[list[float]]]:
    """The ends of the error bars, container by container."""
    return [
        [np.asarray(segment).ravel().tolist() for segment in bars.get_segments()]
        for container in axes.containers
        for bars in getattr(container, "lines", (None, None, ()))[2]
    ]


def csv_of(panel: Panel) -> list[tuple[float, float, float]]:
    lines = [line for line in table_of(to_csv(picture(panel))) if line["x"] and line["y"] != "not run"]
    return [tuple(float(line[name] or "nan") for name in ("y", "low", "high")) for line in lines]


def test_lines_have_the_values_and_intervals_of_the_csv() -> None:
    panel = Panel("lines", "p", "x", "y", (Series("a", SWEEP), Series("none", (Point(0.0, None),))), level=50.0)
    [axes] = axes_of(panel)
    # Two series lie a hundredth of the axis apart.
    line = axes.containers[0].lines[0]
    assert np.asarray(line.get_xdata()) == pytest.approx([0.0, 0.5], abs=0.0061)
    ends = [(segment[1], segment[3]) for segment in drawn_intervals(axes)[0]]
    assert [(y, *each) for y, each in zip(line.get_ydata(), ends, strict=True)] == csv_of(panel)
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["a", "none (not run)"]
    level = next(each for each in axes.lines if list(each.get_ydata()) == [50.0, 50.0])
    assert level.get_linestyle() != "-"


def test_bars_have_the_values_of_the_csv_and_say_what_was_not_run() -> None:
    panel = Panel("bars", "p", "", "win rate (%)", (Series("ours", BY_NAME),))
    [axes] = axes_of(panel)
    assert [bar.get_width() for bar in axes.patches] == [10.0, -2.0] == [line[0] for line in csv_of(panel)]
    assert drawn_intervals(axes)[0][0][::2] == [8.0, 13.0]
    assert [text.get_text() for text in axes.texts] == [" not run"]
    assert [text.get_text() for text in axes.get_yticklabels()] == ["A", "B", "C"]
    assert "B" in [line["x"] for line in table_of(to_csv(picture(panel))) if line["y"] == "not run"]


def test_the_papers_bars_are_hatched_whether_ours_are_there_or_not() -> None:
    paper, ours = Series(PAPER, BY_NAME[:1], PAPER), Series("ours", BY_NAME[:1])
    for series in ((paper,), (ours, paper)):
        [axes] = axes_of(Panel("bars", "p", "", "y", series))
        assert [bool(bar.get_hatch()) for bar in axes.patches] == [one is paper for one in series]
        assert axes.get_legend().get_texts()[-1].get_text() == "paper"


def test_histograms_have_shares_intervals_an_outline_and_the_mean() -> None:
    own, first = (Point(0.5, 75.0, 60.0, 80.0), Point(1.5, 25.0, 20.0, 40.0)), (Point(0.5, 10.0), Point(1.5, 90.0))
    panel = Panel(
        "histogram", "p", "reward", "%", (Series("a", own), Series("b", first, reference=True)), level=0.75, edges=EDGES
    )
    [axes] = axes_of(panel)
    assert [patch.get_data().values.tolist() for patch in axes.patches] == [[75.0, 25.0], [10.0, 90.0]]
    assert [tuple(patch.get_data().edges) for patch in axes.patches] == [EDGES] * 2
    assert [(segment[1], segment[3]) for segment in drawn_intervals(axes)[0]] == [(60.0, 80.0), (20.0, 40.0)]
    assert [0.75, 0.75] in [list(line.get_xdata()) for line in axes.lines]


def test_sorted_curves_and_scatters_have_the_points_of_the_csv() -> None:
    points = (Point(25.0, -1.0, -2.0, 0.0), Point(75.0, 1.0, 0.5, 3.0))
    curve = Panel("sorted", "p", "x", "y", (Series("a", points),), (Fact("above 0, %:", 50.0, 40.0, 60.0, digits=0),))
    dots = Panel("scatter", "q", "x", "z", (Series("a", points),))
    axes, other = axes_of(curve, dots)
    assert axes.lines[0].get_xydata().tolist() == [[25.0, -1.0], [75.0, 1.0]]
    band = axes.collections[0].get_paths()[0].vertices
    assert {(25.0, -2.0), (25.0, 0.0), (75.0, 0.5), (75.0, 3.0)} <= {tuple(each) for each in band.tolist()}
    assert other.collections[0].get_offsets().tolist() == [[25.0, -1.0], [75.0, 1.0]]
    assert [text.get_text() for text in axes.texts] == ["above 0, %: 50 [40, 60]"]
    fact = next(line for line in table_of(to_csv(picture(curve))) if line["series"] == "above 0, %:")
    assert (fact["y"], fact["low"], fact["high"]) == ("50", "40", "60")


def test_heat_maps_have_the_numbers_of_the_csv_in_their_cells() -> None:
    rows = tuple(
        Series(name, (Point("A", value), Point("B", None if name == "B" else 60.25, 55.0, 65.0)))
        for name, value in (("A", 50.0), ("B", 39.75))
    )
    [axes] = axes_of(Panel("heat", "p", "", "", rows))
    assert axes.images[0].get_array().filled(np.nan).ravel().tolist()[:3] == [50.0, 60.25, 39.75]
    assert [text.get_text() for text in axes.texts][:3] == ["50.0", "60.2", "55.0 to 65.0"]
    assert "-" in [text.get_text() for text in axes.texts]


def test_panels_of_one_kind_share_their_limits_and_an_empty_one_says_so() -> None:
    one, two = (Panel("bars", "p", "", "%", (Series("ours", (Point("A", y), Point("B", y))),)) for y in (10.0, 90.0))
    empty = Panel("lines", "q", "x", "y", (Series("a", (Point(0.0, None),)),))
    first, second, third = axes_of(one, two, empty)
    assert first.get_xlim() == second.get_xlim()
    assert [text.get_text() for text in second.get_yticklabels()] == ["", ""]  # They stand at the left of the first.
    assert [text.get_text() for text in third.texts] == ["ours: not run"]
    assert (empty.empty, one.empty) == (True, False)


def test_a_point_has_the_wider_of_its_two_intervals() -> None:
    assert Point.of(1, Interval(0.5, 0.4, 0.7, seeds=0.15), 100) == Point(1, 50.0, 35.0, pytest.approx(70.0))
    assert Point.of("a", None) == Point("a", None)


def test_a_picture_comes_for_a_light_and_for_a_dark_card_and_is_the_same_when_repeated() -> None:
    panel = Panel("lines", "p", "x", "y", (Series("a", SWEEP), Series("b", SWEEP)))
    files, again = (pictures("n", lambda: draw(picture(panel)), vector=True) for _ in range(2))
    assert files == again
    assert files.keys() == {"n.png", "n-dark.png", "n.svg"}
    light, dark = (imread(io.BytesIO(files[name]))[..., :3] for name in ("n.png", "n-dark.png"))
    assert light.shape == dark.shape
    # Mostly card; what is written on it stands out.
    assert (np.median(light), np.median(dark) < 0.2) == (1.0, True)
    assert (light.min() < 0.25, dark.max() > 0.85) == (True, True)


def test_series_are_told_apart_without_colour_and_colours_without_brightness() -> None:
    series = tuple(Series(name, SWEEP) for name in "abcdef")
    [axes] = axes_of(Panel("lines", "p", "x", "y", series))
    shapes = {
        (one.lines[0].get_linestyle(), one.lines[0].get_marker(), str(one.lines[0]._dash_pattern)) for one in axes.containers
    }
    assert len(shapes) == len(series)
    assert all(len(set(COLOURS[side])) == 6 for side in SIDES)
