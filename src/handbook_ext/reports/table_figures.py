"""The pictures of a table: win rates, and differences of implicit rewards."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from handbook_ext.recipes.table_files import Table
from handbook_ext.reports.figure_judgements import RULE, judge_differences, sorted_curve
from handbook_ext.reports.figure_layout import draw
from handbook_ext.reports.figure_parts import Panel, Picture, Point, Series
from handbook_ext.reports.row_sources import Source
from handbook_ext.reports.run_figures import drawn
from handbook_ext.reports.table_summary import TableNumbers
from handbook_ext.reports.tables import reward_differences

SIDES = ("chosen", "rejected", "sample")
AXES = ("texts, sorted (%)", "difference (nats)")


def draw_figures(numbers: TableNumbers) -> tuple[dict[str, bytes], dict[str, str]]:
    """Returns the PNG files of a table by name, and their captions."""
    decoding = numbers.decodings[0]
    found = {"win_rate": win_rates(numbers.table, numbers.rows, decoding)}
    if numbers.table.differences:
        ours, theirs = numbers.table.differences
        paths = [
            [
                each / numbers.measured[name].policy / "eval.json" if isinstance(each, Path) else each
                for each in numbers.runs[name].sources
            ]
            for name in (ours, theirs)
        ]
        values = differences_by_side(list(zip(*paths, strict=True)))
        found["reward_differences"] = differences(values, ours, theirs)
    return drawn({name: (partial(draw, picture), picture.caption) for name, picture in found.items()})


def win_rates(table: Table, rows: list[dict[str, Any]], decoding: str) -> Picture:
    """Returns win rates (%) with intervals: bars by method, or points over the axis of a sweep."""
    found = [(row, row["decodings"][decoding]["win_rate"]) for row in rows]
    caption = f"Win rate against the policy that starts the loop, {decoding}, with intervals."
    words = "win rate against SFT (%)"
    if table.axis is None:
        points = tuple(Point(row["name"], *_percent(each)) for row, each in found)
        panel = Panel("bars", "", "", words, (Series("ours", points),), level=50.0)
    else:
        points = tuple(Point(row["x"], *_percent(each)) for row, each in found if row["x"] is not None)
        panel = Panel("lines", "", table.axis, words, (Series("ours", points),), level=50.0)
    return Picture("", ((panel,),), caption, width=8.0 if table.axis is None else 6.0)


def differences_by_side(paths: list[tuple[Source, ...]]) -> dict[str, list[dict[str, float]]]:
    """Returns differences of implicit reward (nats) by side and prompt id, one mapping per seed; sides are SIDES."""
    found = {side: [reward_differences(ours, theirs, side) for ours, theirs in paths] for side in SIDES}
    return {side: [each for each in seeds if each] for side, seeds in found.items()}


def differences(values: dict[str, list[dict[str, float]]], ours: str, theirs: str) -> Picture:
    """Returns a curve of the sorted differences over all seeds, with its band, for each kind of completion, and what it says."""
    panels, said = [], []
    for side, seeds in values.items():
        if not seeds:
            panels.append(Panel("sorted", side, *AXES, ()))
            continue
        judged = judge_differences(seeds)
        panels.append(Panel("sorted", side, *AXES, (sorted_curve(side, seeds),), judged.facts, judged.notes))
        said.append(f"{side}: {judged.words}.")
    caption = f"Sorted differences of implicit reward, {ours} less {theirs}, over all seeds, in nats, with their intervals. "
    return Picture("", tuple((panel,) for panel in panels), " ".join([caption + RULE, *said]), width=3.4)


def _percent(interval: Any) -> tuple[float, float, float]:
    """Returns value and ends of an interval of shares in %."""
    return 100 * interval.value, 100 * interval.low, 100 * interval.high
