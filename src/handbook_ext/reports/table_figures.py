"""The pictures of a table: win rates, and differences of implicit rewards."""

from __future__ import annotations

from pathlib import Path
from statistics import fmean
from typing import Any

from matplotlib.figure import Figure

from handbook_ext.recipes.table_files import Table
from handbook_ext.reports.run_figures import COLOURS, save_figures, style
from handbook_ext.reports.table_summary import TableNumbers
from handbook_ext.reports.tables import reward_differences


def draw_figures(numbers: TableNumbers) -> tuple[dict[str, bytes], dict[str, str]]:
    """Returns the PNG files of a table by name, and their captions."""
    table, decoding = numbers.table, numbers.decodings[0]
    caption = f"Win rate against the policy that starts the loop, {decoding}, with intervals."
    figures = {"win_rate.png": (draw_win_rates(table, numbers.rows, decoding), caption)}
    if table.differences:
        ours, theirs = table.differences
        paths = [
            [folder / numbers.measured[name].policy / "eval.json" for folder in numbers.runs[name].folders]
            for name in (ours, theirs)
        ]
        values = differences_by_side(list(zip(*paths, strict=True)))
        above = ", ".join(f"{100 * fmean(value > 0 for value in each):.0f} % of {side}" for side, each in values.items() if each)
        caption = f"Sorted differences of implicit reward, {ours} less {theirs}, over all seeds, in nats; above 0: {above}."
        figures["reward_differences.png"] = (draw_differences(values), caption)
    return save_figures(figures)


def draw_win_rates(table: Table, rows: list[dict[str, Any]], decoding: str) -> Figure:
    """Returns win rates with intervals: bars by method, or points over the axis of a sweep."""
    figure = Figure(figsize=(8, 0.4 * len(rows) + 1.4) if table.axis is None else (6, 3.6), layout="constrained")
    axes = figure.subplots()
    win_rates = [row["decodings"][decoding]["win_rate"] for row in rows]
    values = [100 * each.value for each in win_rates]
    errors = [[100 * (each.value - each.low) for each in win_rates], [100 * (each.high - each.value) for each in win_rates]]
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
    """Returns sorted differences of implicit reward over all seeds (nats): on held-out chosen, held-out rejected, own samples."""
    return {
        side: sorted(value for ours, theirs in paths for value in reward_differences(ours, theirs, side))
        for side in ("chosen", "rejected", "sample")
    }


def draw_differences(differences: dict[str, list[float]]) -> Figure:
    """Returns a curve of the sorted differences for each kind of completion."""
    figure = Figure(figsize=(9, 3), layout="constrained")
    for axes, (side, values) in zip(figure.subplots(1, 3), differences.items(), strict=True):
        axes.plot([index / max(1, len(values) - 1) for index in range(len(values))], values, color=COLOURS[0])
        axes.axhline(0, color="0.6", lw=0.8)
        style(axes, f"{side}: share of texts", "nats" if side == "chosen" else "")
    return figure
