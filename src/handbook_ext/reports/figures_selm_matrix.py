"""SELM's figure 2 (arXiv 2405.19332v3): what every policy wins over every other one, beside the paper's matrix."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations, permutations

import numpy as np

from handbook_ext.objectives.metrics import outcomes, share_prompts
from handbook_ext.reports.figure_numbers import bootstrap, length_controlled
from handbook_ext.reports.figure_parts import Panel, Picture, Point, Series
from handbook_ext.reports.figure_rows import FigureRow
from handbook_ext.reports.figure_sources import Sources
from handbook_ext.reports.paper_tables import read_paper_table

OF_MODEL = {"llama3": "selm-figure2-llama3"}  # The printed matrix of a model; Zephyr's stands beside all others.
NORMAL = 1.96  # Standard errors of a 95 % interval.
BY_RANKER = (
    "Ours: the run's ranker decides between the sampled answers to each held-out prompt; length is controlled by AlpacaEval 2's "
    "regression on the gap of lengths (tokens), without its term for an instruction's difficulty (make matrix OF='<run> <run>' "
    "SETS=alpaca has AlpacaEval's judge compare the policies instead)."
)
BY_JUDGE = "Ours: AlpacaEval 2's annotator and regression, every two policies compared once (make matrix)."


def figure2(sources: Sources) -> Picture:
    """Returns the LC win rate of each policy of table 1 over each other one, and the paper's matrix beside."""
    rows = [row for row in sources.rows("selm1")[::-1] if row.last != row.start]
    judged = _judged_cells(sources, rows)
    cells, by = judged or (_ranked_cells(sources, rows), "by the run's ranker")
    cells |= {(row.name, row.name): Point(row.name, 50.0) for row in rows if any(row.name in pair for pair in cells)}
    names = [row.name for row in rows]
    matrix = [Series(name, tuple(cells.get((name, other), Point(other, None)) for other in names)) for name in names]
    table = read_paper_table(OF_MODEL.get(sources.models[0], "selm-figure2-zephyr"))
    group, columns = table.rows[0][0], [column.name for column in table.heading.columns]
    printed = [
        Series(name, tuple(Point(other, table.number(group, name, other)) for other in columns), whose="paper")
        for _, name in table.rows
    ]
    return Picture(
        "SELM figure 2: length-controlled win rate of the row over the column (%)",
        (
            (Panel("heat", f"ours, {sources.models[0]}: {by}", "", "", tuple(matrix)),),
            (Panel("heat", f"paper, {group}: AlpacaEval 2", "", "", tuple(printed)),),
        ),
        f"{BY_JUDGE if judged else BY_RANKER} Below each number of ours its 95 % interval. The paper: GPT-4 Turbo on the 805 "
        "prompts of AlpacaEval 2.",
    )  # fmt: skip


def _ranked_cells(sources: Sources, rows: Sequence[FigureRow]) -> dict[tuple[str, str], Point]:
    """Returns the LC win rates (%) of rows over others by the run's ranker, by both names, with bootstrap intervals."""
    cells = {}
    for ours, theirs in combinations(rows, 2):
        pairs = sources.against((ours, ours.last), (theirs, theirs.last))
        if not pairs:
            continue
        tables = [np.stack([outcomes(a.rewards, b.rewards), a.tokens - b.tokens], axis=1) for a, b in pairs]
        found = bootstrap(tables, length_controlled, crossed=share_prompts([our for our, _ in pairs]))
        value, low, high = (float(each) for each in found)
        cells[ours.name, theirs.name] = Point(theirs.name, value, low, high)
        # The regression has no side: exchanging the two turns theta around.
        cells[theirs.name, ours.name] = Point(ours.name, 100 - value, 100 - high, 100 - low)
    return cells


def _judged_cells(sources: Sources, rows: Sequence[FigureRow]) -> tuple[dict[tuple[str, str], Point], str] | None:
    """Returns the win rates (%) of a matrix that `make matrix` left, with normal intervals, and who judged by which measure.

    None where there is no matrix of two of the rows. Of several the one with most of them counts.
    """
    policies = {f"{folder.name} {row.last}": row.name for row in rows for folder in list(row.folders.values())[:1]}
    known = [sources.json(path) for path in sorted(sources.runs.glob("matrix/*/*/matrix.json"))]
    best = max(known, key=lambda matrix: len(policies.keys() & {*matrix["names"]}), default=None)
    if best is None or len(policies.keys() & {*best["names"]}) < 2:
        return None
    cells = {}
    places = [(place, policies[name]) for place, name in enumerate(best["names"]) if name in policies]
    for (row, ours), (column, theirs) in permutations(places, 2):
        value, error = best["values"][row][column], best["standard_errors"][row][column]
        ends = (None, None) if value is None or error is None else (value - NORMAL * error, value + NORMAL * error)
        cells[ours, theirs] = Point(theirs, value, *ends)
    measure = "LC win rate" if best["measure"] == "lc_win_rate" else "win rate, lengths not controlled"
    return cells, f"{measure} on {best['n']} prompts of {best['set']}, judged by {best['judge']}"
