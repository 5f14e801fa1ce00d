"""The bars and scatters of SeRA (arXiv 2410.09362v1): figures 2, 3, 4 and 11; its sweeps are in figures_sera_sweeps."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from handbook_ext.recipes.table_files import table_names
from handbook_ext.reports.figure_numbers import Array, bootstrap, correlations
from handbook_ext.reports.figure_parts import NOT_RUN, OURS, PAPER, Fact, Panel, Picture, Point, Series
from handbook_ext.reports.figure_rows import FigureRow, rows_of_model
from handbook_ext.reports.figure_scores import ALPACA_VS_SFT, LOOP, SetScore, of_set, percent, scored
from handbook_ext.reports.figure_sources import Sources
from handbook_ext.reports.paper_tables import read_paper_table

SELECTORS = "sera-selectors"
COEFFICIENTS = ("Pearson", "Spearman")
# Tables 7 and 8: the printed table, the table of our runs, the words for it.
NOISE = (("sera7", "sera-noise20", "20 % flipped"), ("sera8", "sera-noise40", "40 % flipped"))
SETS = {"AlpacaEval": "alpaca", "Vicuna": "vicuna", "Evol": "evol", "UltraFeedback": "ultrafeedback"}
NOISY_MODEL = "TinyLlama-1.1B"


def figure2(sources: Sources) -> Picture:
    """Returns the win rate against SFT by selector: for each model with DPO, then its other objectives and data sets.

    These are the tables called sera-selectors-<what>; rows of one with several objectives are called `<objective>: <name>`.
    """
    panels: dict[str, list[tuple[FigureRow, str]]] = {}
    for model in sources.models:
        panels[f"{model}, DPO"] = [(row, row.name) for row in sources.rows(SELECTORS, model=model)]
        others = [name for name in table_names(sources.root) if name.startswith(f"{SELECTORS}-")]
        for table in (name for name in others if rows_of_model(name, model, sources.root)):
            for row in sources.rows(table, model=model):
                objective, _, selector = row.name.rpartition(": ")
                words = objective or table.removeprefix(f"{SELECTORS}-")
                panels.setdefault(f"{model}, {words}", []).append((row, selector))
    score = scored(sources, [(row, row.last) for rows in panels.values() for row, _ in rows], ALPACA_VS_SFT)
    found = [
        Panel(
            "bars", title, "", score.words,
            (Series(OURS, tuple(Point.of(name, score.of(row, row.last)) for row, name in rows)),), level=score.level,
        )
        for title, rows in panels.items()
    ]  # fmt: skip
    return Picture(
        "SeRA figure 2: win rate against SFT by what the kept 70 % of the pairs are largest in",
        _in_columns(found, 3),
        f"The last policy of each run; nothing is bootstrapped. {score.said} The paper's bars have no numbers.",
    )


def figure3(sources: Sources) -> Picture:
    """Returns the correlation of the implicit reward with the reward and with the length of held-out answers, by selector."""
    rows = sources.rows(SELECTORS)
    found = {row.name: _completions(sources, row) for row in rows}
    panels = []
    for words, column in (("reward", 1), ("length (tokens)", 2)):
        points: dict[str, list[Point]] = {name: [] for name in COEFFICIENTS}
        for name, (groups, crossed) in found.items():
            two = [one[:, :, [0, column]] for one in groups]
            ends = bootstrap(two, correlations, crossed=crossed) if two else None
            for place, way in enumerate(COEFFICIENTS):
                of_way = [None] * 3 if ends is None or np.isnan(ends.value[place]) else [float(each[place]) for each in ends]
                points[way].append(Point(name, *of_way))
        series = tuple(Series(name, tuple(each)) for name, each in points.items())
        panels.append(Panel("bars", f"implicit reward and {words}", "", "correlation", series))
    return Picture(
        "SeRA figure 3: what the implicit reward goes with, by selector",
        tuple((panel,) for panel in panels),
        "Over the held-out chosen and rejected answers: log pi - log pi_start of the last policy, the reward by the run's ranker "
        "(in the tiny world the true reward, where the paper has GPT-4's score), and tokens. Which coefficient the paper shows "
        "is not said. Bars have 95 % bootstrap intervals over seeds and prompts.",
    )  # fmt: skip


def _completions(sources: Sources, row: FigureRow) -> tuple[list[Array], bool]:
    """Returns implicit reward (nats), reward and tokens of held-out pairs, (prompts, 2, 3) for each seed: chosen, rejected.

    Beside it whether all seeds have the same prompts.
    """
    sides = [sources.held_out(row, row.last, side) for side in ("chosen", "rejected")]
    shared = {seed: [name for name in sides[0][seed] if name in sides[1][seed]] for seed in sides[0].keys() & sides[1].keys()}
    groups = [np.array([[side[seed][name] for side in sides] for name in names]) for seed, names in sorted(shared.items())]
    return groups, len({tuple(names) for names in shared.values()}) == 1


def figure4(sources: Sources) -> Picture:
    """Returns the win rates against SFT under flipped labels, tables 7 and 8: the paper's on four prompt sets, ours beside."""
    columns: dict[str, list[Panel]] = {name: [] for name in [*SETS, "held-out prompts"]}
    for printed, ours, words in NOISE:
        table = read_paper_table(printed)
        rows = sources.rows(ours)
        trained = [name for _, name in table.rows if name != "SFT"]
        for name, folder in SETS.items():
            column = f"{name} vs SFT"
            paper = Series(PAPER, tuple(Point(row, table.number(NOISY_MODEL, row, column)) for row in trained), PAPER)
            wanted = SetScore(folder, "vs_start", column)
            points = [Point.of(row.name, of_set(sources, row, row.last, wanted)) for row in rows if row.name in trained]
            known = any(point.y is not None for point in points)
            series = (Series(OURS, tuple(points)), paper) if known else (paper,)
            notes = () if known else (f"{OURS}: {NOT_RUN}",)
            columns[name].append(
                Panel("bars", f"{name}, {words}", "", "win rate against SFT (%)", series, level=50.0, notes=notes)
            )
        own = [Point.of(row.name, percent(sources.win_rate(row, row.last))) for row in rows if row.last != row.start]
        columns["held-out prompts"].append(
            Panel("bars", f"{sources.models[0]}, {words}", "", LOOP, (Series(OURS, tuple(own)),), level=50.0)
        )
    return Picture(
        "SeRA figure 4 (tables 7 and 8): flipped labels",
        tuple(tuple(panels) for panels in columns.values()),
        f"The paper: {NOISY_MODEL}, judged by Claude 3. Ours on its prompt sets: make <run>-eval SETS='alpaca vicuna evol "
        "ultrafeedback'; in the last column by the run's ranker on held-out prompts.",
    )  # fmt: skip


def figure11(sources: Sources) -> Picture:
    """Returns the implicit reward margin of held-out pairs against the gap of their rewards, a scatter for each selector."""
    panels = []
    for row in sources.rows(SELECTORS):
        # Chosen less rejected, for implicit reward and reward, (prompts, 2), the gap first.
        pairs, crossed = _completions(sources, row)
        groups = [(one[:, 0, :2] - one[:, 1, :2])[:, ::-1] for one in pairs]
        judged = [tuple(each) for one in groups for each in one.tolist() if np.isfinite(each).all()]
        series: tuple[Series, ...] = ()
        facts: tuple[Fact, ...] = ()
        if judged:
            series = (Series(row.name, tuple(Point(x, y) for x, y in judged)),)
            ends = bootstrap(groups, correlations, crossed=crossed)
            facts = tuple(
                Fact(name, *(float(each[place]) for each in ends))
                for place, name in enumerate(COEFFICIENTS)
                if not np.isnan(ends.value[place])
            )
        panels.append(Panel("scatter", row.name, "gap of rewards", "implicit reward margin (nats)", series, facts))
    return Picture(
        "SeRA figure 11: implicit reward margin against the gap of rewards, by selector",
        _in_columns(panels, 3),
        "Held-out pairs under the last policy: chosen less rejected; rewards by the run's ranker, where the paper has GPT-4's "
        "scores. Brackets are 95 % bootstrap intervals.",
    )  # fmt: skip


def _in_columns(panels: Sequence[Panel], columns: int) -> tuple[tuple[Panel, ...], ...]:
    """Returns panels in so many columns, filled row by row."""
    return tuple(tuple(panels[at::columns]) for at in range(min(columns, len(panels))))
