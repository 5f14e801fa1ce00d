"""The one style of all pictures: colours, lines, markers and hatches that are told apart in black and white too.

A picture is drawn twice, on a light card and on a dark one, so that it can be read wherever a page shows it. What differs
between the two is matplotlib's own settings; code that draws asks `ink` and `colour` and names no colour itself.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import matplotlib
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.transforms import ScaledTranslation

# Okabe and Ito's palette, distinguishable with any colour vision; on a dark card the two darkest are swapped for lighter ones.
COLOURS = {
    "light": ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"),
    "dark": ("#56B4E9", "#FF9A4D", "#2BC79B", "#E3A3C6", "#F0C14B", "#9BB8D9"),
}
# Several of these colours are equally dark: without colour, lines and bars are told apart by these.
LINES = ("-", "--", ":", "-.", (0, (6, 1.5, 1, 1.5, 1, 1.5)), (0, (1, 3)))
MARKERS = ("o", "s", "^", "D", "v", "P")
HATCHES = ("", "////", "....", "xxxx", "----", "++")
# The cards of report.html, so that a picture has the colour of what it lies on.
_LIGHT = {"card": "#ffffff", "ink": "#1c2330", "soft": "#5a6472"}
_DARK = {"card": "#1b212a", "ink": "#e6e9ee", "soft": "#9aa5b4"}
SIDES = ("light", "dark")


@contextmanager
def on_card(side: str) -> Iterator[None]:
    """Sets matplotlib up for a light or a dark card while it is drawn and saved on."""
    shades = _LIGHT if side == "light" else _DARK
    settings = {
        "figure.facecolor": shades["card"], "axes.facecolor": shades["card"], "savefig.facecolor": "auto",
        "text.color": shades["ink"], "axes.labelcolor": shades["ink"], "axes.titlecolor": shades["ink"],
        "xtick.color": shades["ink"], "ytick.color": shades["ink"], "axes.edgecolor": shades["soft"],
        "grid.color": shades["soft"], "hatch.color": shades["ink"], "hatch.linewidth": 0.6,
        "axes.prop_cycle": cycler(color=COLOURS[side]), "axes.titlesize": 9.5, "axes.titleweight": "bold",
        "axes.titlelocation": "left", "axes.labelsize": 9, "xtick.labelsize": 8, "ytick.labelsize": 8, "legend.fontsize": 8,
        "legend.frameon": False, "figure.titlesize": 11, "lines.linewidth": 1.4, "lines.markersize": 4.5,
        "errorbar.capsize": 2.5, "svg.hashsalt": "handbook_ext", "svg.fonttype": "path",
    }  # fmt: skip
    with matplotlib.rc_context(settings):
        yield


def ink(strength: float = 1.0) -> tuple[float, float, float, float]:
    """Returns the colour of text on the card at hand, faded where `strength` is below 1."""
    return matplotlib.colors.to_rgba(matplotlib.rcParams["text.color"], strength)  # type: ignore[return-value]


def card() -> str:
    """Returns the colour of the card at hand."""
    return str(matplotlib.rcParams["figure.facecolor"])


def colour(index: int) -> str:
    """Returns the colour of a series by its number; after the last the first comes again."""
    colours = matplotlib.rcParams["axes.prop_cycle"].by_key()["color"]
    return str(colours[index % len(colours)])


def line_style(index: int) -> dict[str, object]:
    """Returns colour, line and marker of a series by its number, as `plot` and `errorbar` take them."""
    return {"color": colour(index), "ls": LINES[index % len(LINES)], "marker": MARKERS[index % len(MARKERS)]}


def bar_style(index: int) -> dict[str, object]:
    """Returns colour, hatch and edge of bars by the number of their series."""
    return {"facecolor": (colour(index), 0.75), "hatch": HATCHES[index % len(HATCHES)], "edgecolor": ink(0.8), "lw": 0.6}


def style(axes: Axes, x: str, y: str, grid: str = "y") -> None:
    """Labels both axes and removes the upper and right frame; `grid`: the axis whose ticks go on as thin lines."""
    axes.set(xlabel=x, ylabel=y)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis=grid, alpha=0.3, lw=0.6)  # type: ignore[arg-type]
    axes.set_axisbelow(True)


def legend_below(axes: Axes, columns: int = 2) -> None:
    """Puts the legend below the horizontal axis and its label, where it covers nothing."""
    handles, names = axes.get_legend_handles_labels()
    lines = axes.get_xlabel().count("\n") + 1 if axes.get_xlabel() else 0
    # In inches below the axes, which the layout makes room for, whatever their height.
    below = axes.transAxes + ScaledTranslation(0, -0.28 - 0.16 * lines, axes.figure.dpi_scale_trans)
    axes.legend(
        handles, names, loc="upper left", bbox_to_anchor=(-0.02, 0), bbox_transform=below, ncols=columns, borderpad=0,
        borderaxespad=0,
    )  # fmt: skip


def pictures(name: str, draw: Callable[[], Figure], vector: bool = False) -> dict[str, bytes]:
    """Returns `<name>.png` for a light card, `<name>-dark.png`, and `<name>.svg` where asked; equal figures, equal bytes."""
    files = {}
    for side in SIDES:
        with on_card(side):
            figure = draw()
            # matplotlib writes its version into a PNG, and the time into an SVG, unless told not to.
            files[f"{name}.png" if side == "light" else f"{name}-dark.png"] = _bytes(figure, "png", {"Software": None})
            if vector and side == "light":
                files[f"{name}.svg"] = _bytes(figure, "svg", {"Date": None, "Creator": None})
    return files


def _bytes(figure: Figure, form: str, metadata: dict[str, None]) -> bytes:
    """Returns a figure as a file."""
    figure.savefig(buffer := io.BytesIO(), dpi=150, format=form, metadata=metadata)
    return buffer.getvalue()
