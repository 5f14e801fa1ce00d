"""The figures of SELM (arXiv 2405.19332v3) from finished runs: 3 to 6; figure 2 is in figures_selm_matrix, 1 is a sketch."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from statistics import fmean

import numpy as np

from handbook_ext.core.jsonl import iter_jsonl
from handbook_ext.objectives.metrics import Scores, share_prompts
from handbook_ext.recipes.table_files import read_table
from handbook_ext.reports.figure_judgements import RULE, judge_differences, sorted_curve
from handbook_ext.reports.figure_numbers import (
    bootstrap,
    in_bins,
    means,
)
from handbook_ext.reports.figure_parts import Fact, Panel, Picture, Point, Series, points_of
from handbook_ext.reports.figure_rows import FigureRow
from handbook_ext.reports.figure_scores import ALPACA_LC, MT_BENCH, Scored, scored
from handbook_ext.reports.figure_sources import Sources

BINS = 20
SECOND = "iter2"  # The iteration of figures 3 (middle) and 5.
GRID = {
    "number of iterations": ["3 iterations", "4 iterations", "5 iterations", "6 iterations"],
    "global batch (pairs)": ["batch 16", "batch 32", "batch 64", "batch 128", "batch 256"],
    "learning rate": ["constant rate", "linearly decayed rate", "rate decayed at last"],
    "labels updated or not": ["4 iterations", "stepwise DPO"],
    "what is ranked": ["rank all three", "against chosen"],
}
OFFLINE = "offline DPO"


def figure3(sources: Sources) -> Picture:
    """Returns score against iteration for each alpha, and rewards of greedy held-out answers by alpha and by iteration."""
    rows = sources.rows("selm-alpha")
    score = scored(sources, [(row, policy) for row in rows for policy in row.policies], ALPACA_LC)
    lines = [
        Series(row.name, tuple(Point.of(int(name.removeprefix("iter")), score.of(row, name)) for name in row.policies))
        for row in rows
    ]
    by_alpha = {f"{row.name}, {SECOND}": sources.rewards(row, SECOND, "greedy") for row in rows}
    # The recipe's own alpha: no row of the sweep changes it.
    own = [row for row in rows if row.row.x and not row.row.set][:1]
    explored = [(row, each.name) for row in own for each in row.run.iterations if each.settings.train.alpha > 0]
    by_iteration = {f"{row.name}, {name}": sources.rewards(row, name, "greedy") for row, name in explored}
    return Picture(
        "SELM figure 3: the optimism coefficient alpha",
        (
            (Panel("lines", "score by iteration", "iteration", score.words, tuple(lines), level=score.level),),
            _histograms(by_alpha), _histograms(by_iteration),
        ),
        "Histograms: rewards of greedy answers to the held-out prompts by the run's ranker, with the first panel of each column "
        f"as a dashed outline in the others. {score.said}",
    )  # fmt: skip


def _histograms(rewards: dict[str, list[Scores]]) -> tuple[Panel, ...]:
    """Returns a histogram of rewards for each name, over common bins, the first one as an outline in the others."""
    known = {name: each for name, each in rewards.items() if each}
    if not known:
        return (Panel("histogram", "rewards of greedy answers", "reward", "% of prompts", ()),)
    edges = tuple(np.histogram_bin_edges(np.concatenate([one.rewards for each in known.values() for one in each]), BINS).tolist())
    middles = [(low + high) / 2 for low, high in pairwise(edges)]
    panels = []
    for name, each in known.items():
        crossed = share_prompts(each)
        shares = bootstrap([in_bins(one.rewards, edges) for one in each], means, crossed=crossed)
        mean = bootstrap([one.rewards for one in each], means, crossed=crossed)
        one = Series(name, points_of(middles, *shares))
        first = [Series(panels[0].series[0].name, panels[0].series[0].points, reference=True)] if panels else []
        facts = (Fact("mean", *(float(value) for value in mean)),)
        panels.append(Panel("histogram", name, "reward", "% of prompts", (one, *first), facts, edges=edges))
    return tuple(panels)


def figure4(sources: Sources) -> Picture:
    """Returns the sorted difference of two policies' implicit rewards on the same held-out chosen and rejected answers."""
    rows = sources.rows("selm1", read_table("selm1", sources.root).differences)
    return Picture(
        "SELM figure 4: difference of implicit rewards on held-out answers",
        tuple((_difference(sources, rows, side, words),) for side, words in (("chosen", "y_w"), ("rejected", "y_l"))),
        "Implicit reward: beta (log pi - log pi_start), start being the policy that the run starts from; on the same answer "
        "the difference of two policies does not depend on it. Bands are 95 % bootstrap intervals of each rank, over seeds and "
        f"prompts. {RULE}",
    )  # fmt: skip


def figure5(sources: Sources) -> Picture:
    """Returns the sorted difference of the implicit rewards that two policies give their own samples."""
    rows = sources.rows("selm1", ["SELM iter 2", "DPO iter 2"])
    return Picture(
        "SELM figure 5: difference of implicit rewards of own samples",
        ((_difference(sources, rows, "sample", "own samples"),),),
        "One sample of each policy per held-out prompt at the evaluation's highest temperature, where the paper has the mean of "
        "three, whose curve is flatter. Implicit reward: beta (log pi - log pi_start), start being the policy that the run "
        f"starts from. {RULE}",
    )  # fmt: skip


def _difference(sources: Sources, rows: Sequence[FigureRow], side: str, words: str) -> Panel:
    """Returns the sorted differences of the implicit rewards of the first row less the second's, over all seeds."""
    title, groups = f"{words} ({side})", []
    if len(rows) == 2:
        title = f"{rows[0].name} less {rows[1].name}, {words}"
        mine, other = (sources.held_out(row, row.last, side) for row in rows)
        scales = [row.run.iteration(row.last).settings.train.beta for row in rows]
        for seed in sorted(mine.keys() & other.keys()):
            shared = [name for name in mine[seed] if name in other[seed]]
            groups.append({name: scales[0] * mine[seed][name][0] - scales[1] * other[seed][name][0] for name in shared})
    groups = [each for each in groups if each]
    axes = ("prompts, sorted (%)", "difference of implicit reward (beta times nats)")
    if not groups:
        return Panel("sorted", title, *axes, ())
    judged = judge_differences(groups)
    return Panel("sorted", title, *axes, (sorted_curve(title, groups),), judged.facts, judged.notes)


def figure6(sources: Sources) -> Picture:
    """Returns the score against the pairs seen in training, for the grid of iterative DPO with offline DPO in each panel."""
    rows = {row.name: row for row in sources.rows("selm-ablations")}
    amounts = sources.rows("selm-offline")
    points_of_grid = [(row, policy) for row in rows.values() for policy in row.policies]
    score = scored(sources, [*points_of_grid, *((row, row.last) for row in amounts)], MT_BENCH)
    curves = {}
    for name, row in rows.items():
        # Every policy starts alike; by a win rate against the start it has 50 % before any pair.
        begin = [Point(0.0, 50.0)] if score.level is not None else [Point.of(0.0, score.of(row, row.start))]
        seen = [(pairs_seen(row, policy), policy) for policy in row.policies]
        points = [Point.of(pairs / 1000, score.of(row, policy)) for pairs, policy in seen if pairs is not None]
        curves[name] = Series(name, tuple(begin + points) if points else ())
    offline = _offline(amounts, score)
    panels = [
        Panel(
            "lines", title, "pairs trained on (thousands)", score.words,
            (*(curves[name] for name in names if name in curves), offline), level=score.level,
        )
        for title, names in GRID.items()
    ]  # fmt: skip
    return Picture(
        "SELM figure 6: score against training data, iterative DPO",
        (tuple(panels[:2]), tuple(panels[2:4]), tuple(panels[4:])),
        "Pairs are counted as trained on, once more in each epoch. Offline DPO: policies kept along its one "
        f"training. {score.said}",
    )  # fmt: skip


def _offline(amounts: Sequence[FigureRow], score: Scored) -> Series:
    """Returns the curve of offline DPO, by the amount of data that each policy kept along its training has seen."""
    points = [Point.of((each.row.x or 0.0) / 1000, score.of(each, each.last)) for each in amounts]
    known = sorted((point for point in points if point.y is not None), key=lambda point: float(point.x))
    begin = [Point(0.0, 50.0)] if known and score.level is not None else []
    return Series(OFFLINE, (*begin, *known), reference=True)


def pairs_seen(row: FigureRow, policy: str) -> float | None:
    """Returns how many pairs the iterations up to a policy trained on, epochs counted, a mean over seeds; None without files."""
    upto = row.run.iterations[: row.policies.index(policy) + 1]
    counts = []
    for folder in row.folders.values():
        paths = [(folder / each.name / "pairs.jsonl", each.settings.train.num_train_epochs) for each in upto]
        if all(path.is_file() for path, _ in paths):
            counts.append(sum(epochs * sum(1 for _ in iter_jsonl(path)) for path, epochs in paths))
    return fmean(counts) if counts else None
