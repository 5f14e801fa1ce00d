"""The sweeps and the agreement of selectors of SeRA (arXiv 2410.09362v1): figures 5a, 5b and 6a to 6d."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import numpy as np

from handbook_ext.core.errors import UserError
from handbook_ext.recipes.table_files import read_table
from handbook_ext.reports.figure_numbers import bootstrap, jaccard_of_marks
from handbook_ext.reports.figure_parts import Panel, Picture, Point, Series
from handbook_ext.reports.figure_rows import FigureRow
from handbook_ext.reports.figure_scores import ALPACA_VS_SFT, Scored, scored
from handbook_ext.reports.figure_sources import Sources

RANDOM = (
    "Brackets are 95 % bootstrap intervals over seeds and pairs. Of N pairs two random sets of K have a similarity of about "
    "k / (2 - k), k = K / N: 0.54 for 70 %."
)


def figure5a(sources: Sources) -> Picture:
    """Returns the win rate against K / N by iteration: solid with K~ = N - K pairs of the policy's own, dotted without any."""
    tables = {"K + K~ = N": ("sera-keep", "-"), "selection only": ("sera-selection", ":")}
    rows = {words: sources.rows(table) for words, (table, _) in tables.items()}
    score = scored(sources, [(row, name) for each in rows.values() for row in each for name in row.policies[1:]], ALPACA_VS_SFT)
    series = [
        one for words, (_, line) in tables.items() for one in _by_iteration(rows[words], score, f", {words}", line)
    ]  # fmt: skip
    panel = Panel("lines", "share of offline pairs", "K / N", score.words, tuple(series), level=score.level)
    return Picture("SeRA figure 5a: how many offline pairs to keep", ((panel,),), score.said)


def figure5b(sources: Sources) -> Picture:
    """Returns the win rate against K~ / N by iteration, with K = 0.7 N."""
    rows = sources.rows("sera-bootstrap")
    score = scored(sources, [(row, name) for row in rows for name in row.policies[1:]], ALPACA_VS_SFT)
    series = _by_iteration(rows, score)
    panel = Panel("lines", "share of own pairs, K = 0.7 N", "K~ / N", score.words, tuple(series), level=score.level)
    said = "The paper's values of K~ are not printed; these are ours."
    return Picture("SeRA figure 5b: how many pairs of its own to add", ((panel,),), f"{said} {score.said}")


def figure6a(sources: Sources) -> Picture:
    """Returns the last policy's win rate against gamma."""
    rows = sources.rows("sera-gamma")
    score = scored(sources, [(row, row.last) for row in rows], ALPACA_VS_SFT)
    last = rows[0].last if rows else ""
    one = Series(last, tuple(Point.of(row.row.x or 0.0, score.of(row, row.last)) for row in rows))
    panel = Panel("lines", f"weight of the policy before, {last}", "gamma", score.words, (one,), level=score.level)
    said = "Gamma first matters in the third iteration, whose pairs two trained policies select."
    return Picture("SeRA figure 6a: the ensemble's weight", ((panel,),), f"{said} {score.said}")


def figure6b(sources: Sources) -> Picture:
    """Returns the Jaccard similarity of the pairs that runs with different gammas keep."""
    iteration = read_table("sera-gamma", sources.root).similarity[-1]
    named = [(f"gamma {row.row.x:g}", row, iteration) for row in sources.rows("sera-gamma")]
    title = "SeRA figure 6b: agreement between gammas"
    return Picture(title, ((_similarity(sources, f"offline pairs kept for {iteration}", named),),), RANDOM)


def figure6c(sources: Sources) -> Picture:
    """Returns the similarity between models and iterations: several MODELs, or the depths of one where its table has them."""
    if len(sources.models) > 1:
        runs = [(model, row) for model in sources.models for row in sources.rows("sera-objectives", ["SeRA-DPO"], model)]
    else:
        runs = [(row.name, row) for row in sources.rows("sera-models")]
    if not runs:
        raise UserError(
            f"sera6c compares models, and {sources.models[0]} is one alone; MODEL=tinyllama has the paper's three beside each "
            "other, and scripts/paper_figure.py sera6c --model takes several that share their data"
        )
    iterations = read_table("sera-objectives", sources.root).similarity
    named = [(f"{words}, {name}", row, name) for words, row in runs for name in iterations]
    title = "SeRA figure 6c: agreement between language models and iterations"
    return Picture(title, ((_similarity(sources, "offline pairs kept by SeRA-DPO", named),),), RANDOM)


def figure6d(sources: Sources) -> Picture:
    """Returns the similarity between objectives and iterations."""
    iterations = read_table("sera-objectives", sources.root).similarity
    rows = sources.rows("sera-objectives")
    named = [(f"{row.name.removeprefix('SeRA-')}, {name}", row, name) for row in rows for name in iterations]
    title = "SeRA figure 6d: agreement between objectives and iterations"
    return Picture(title, ((_similarity(sources, f"offline pairs kept, {sources.models[0]}", named),),), RANDOM)


def _by_iteration(rows: Sequence[FigureRow], score: Scored, words: str = "", line: str | None = None) -> list[Series]:
    """Returns a series over the rows' x for each iteration after the first, which trains on all pairs."""
    return [
        Series(f"{name}{words}", tuple(Point.of(row.row.x or 0.0, score.of(row, name)) for row in rows), line=line)
        for name in (rows[0].policies[1:] if rows else ())
    ]


def _similarity(sources: Sources, title: str, named: Sequence[tuple[str, FigureRow, str]]) -> Panel:
    """Returns the heat map of the Jaccard similarities of the offline pairs that runs keep for iterations, each two compared."""
    kept = {words: sources.kept(row, iteration) for words, row, iteration in named}
    names = list(kept)
    cells = {(name, name): Point(name, 1.0 if kept[name] else None) for name in names}
    for ours, theirs in combinations(names, 2):
        groups = []
        for seed in sorted(kept[ours].keys() & kept[theirs].keys()):
            both = sorted(kept[ours][seed] | kept[theirs][seed])
            groups.append(np.array([[pair in kept[name][seed] for name in (ours, theirs)] for pair in both], dtype=float))
        ends = [None] * 3 if not any(map(len, groups)) else [float(each) for each in bootstrap(groups, jaccard_of_marks)]
        cells[ours, theirs], cells[theirs, ours] = Point(theirs, *ends), Point(ours, *ends)
    series = tuple(Series(name, tuple(cells[name, other] for other in names)) for name in names)
    return Panel("heat", f"Jaccard similarity: {title}", "", "", series)
