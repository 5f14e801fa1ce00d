"""The pictures of a table: win rates, and differences of implicit rewards."""

from __future__ import annotations

import io
from pathlib import Path
from statistics import fmean
from typing import Any

from matplotlib.figure import Figure

from handbook_ext.reports.run_figures import COLOURS, style
from handbook_ext.reports.tables import Measured, Table, reward_differences


def drawn(
    table: Table, rows: list[dict[str, Any]], measured: dict[str, Measured], folders: dict[str, list[Path]], decoding: str
) -> tuple[dict[str, bytes], dict[str, str]]:
    """Returns the pictures by file name, and their captions."""
    caption = f"Win rate against the policy that starts the loop, {decoding}, with intervals."
    figures = {"win_rate.png": (draw_win_rates(table, rows, decoding), caption)}
    if table.differences:
        ours, theirs = (measured[name] for name in table.differences)
        paths = [[folder / each.policy / "eval.json" for folder in folders[each.row.recipe]] for each in (ours, theirs)]
        values = differences_by_side(list(zip(*paths, strict=True)))
        above = ", ".join(f"{100 * fmean(value > 0 for value in each):.0f} % of {side}" for side, each in values.items() if each)
        caption = f"Sorted differences of implicit reward, {ours.row.name} less {theirs.row.name}, over all seeds, in nats"
        figures["reward_differences.png"] = (draw_differences(values), f"{caption}; above 0: {above}.")
    files = {}
    for name, (figure, _) in figures.items():
        figure.savefig(buffer := io.BytesIO(), dpi=150, format="png", metadata={"Software": None})
        files[name] = buffer.getvalue()
    return files, {name: caption for name, (_, caption) in figures.items()}


def draw_win_rates(table: Table, rows: list[dict[str, Any]], decoding: str) -> Figure:
    """Win rates with intervals: bars by method, or a curve over the axis of a sweep."""
    figure = Figure(figsize=(8, 0.4 * len(rows) + 1.4) if table.axis is None else (6, 3.6), layout="constrained")
    axes = figure.subplots()
    won = [row["decodings"][decoding]["win_rate"] for row in rows]
    values = [100 * each.value for each in won]
    errors = [[100 * (each.value - each.low) for each in won], [100 * (each.high - each.value) for each in won]]
    if table.axis is None:
        axes.barh(range(len(rows)), values, xerr=errors, color=COLOURS[0], alpha=0.7, capsize=2)
        axes.set_yticks(range(len(rows)), [row["name"] for row in rows])
        axes.invert_yaxis()
        axes.axvline(50, color="0.4", lw=0.8)
        style(axes, "win rate against SFT, %", "")
    else:
        axes.errorbar([row["x"] for row in rows], values, errors, color=COLOURS[0], marker="o", ms=4, capsize=2, ls="")
        style(axes, table.axis, "win rate against SFT, %")
    return figure


def differences_by_side(paths: list[tuple[Path, ...]]) -> dict[str, list[float]]:
    """Sorted differences of implicit rewards over all seeds, on held-out chosen and rejected texts, and on own samples."""
    return {
        side: sorted(value for ours, theirs in paths for value in reward_differences(ours, theirs, side))
        for side in ("chosen", "rejected", "sample")
    }


def draw_differences(differences: dict[str, list[float]]) -> Figure:
    """A curve of the sorted differences of each kind of text."""
    figure = Figure(figsize=(9, 3), layout="constrained")
    for axes, (side, values) in zip(figure.subplots(1, 3), differences.items(), strict=True):
        axes.plot([place / max(1, len(values) - 1) for place in range(len(values))], values, color=COLOURS[0])
        axes.axhline(0, color="0.6", lw=0.8)
        style(axes, f"{side}: share of texts", "nats" if side == "chosen" else "")
    return figure
