"""The pictures of a report: rewards and lengths of each policy, their distribution, and training curves."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import product

import numpy as np
from matplotlib.figure import Figure

from handbook_ext.core.stage_settings import read_settings
from handbook_ext.objectives.metrics import share_prompts
from handbook_ext.reports.evaluations import Json
from handbook_ext.reports.figure_layout import draw
from handbook_ext.reports.figure_numbers import bootstrap, in_bins, means
from handbook_ext.reports.figure_parts import Panel, Picture, Series, points_of
from handbook_ext.reports.figure_style import LINES, MARKERS, colour, ink, legend_below, pictures, style
from handbook_ext.reports.run_report import FinishedRun

BINS = 30
CURVES = {
    "loss (nats)": ("loss",),
    "implicit reward margin (nats)": ("rewards/margins",),
    "accuracy of implicit reward": ("rewards/accuracies",),
    "implicit reward (nats)": ("rewards/chosen", "rewards/rejected", "rewards/explore"),
}
Drawings = dict[str, tuple[Callable[[], Figure], str]]
"""By name of the picture what draws it, and its caption."""


def draw_figures(groups: Sequence[Sequence[FinishedRun]], summary: Json) -> tuple[dict[str, bytes], dict[str, str]]:
    """Returns the PNG files of a report by name, and their captions; curves only where a training log is left."""
    ours, reward = groups[0], summary["reward"]
    over = "seeds and prompts" if len(ours) > 1 else "the prompts of one seed"
    caps = {cap for group in groups for run in group if (cap := answer_cap(run)) is not None}
    caption = f"Mean {reward} and mean completion length of each policy; bars are intervals over {over}."
    if caps:
        caption += f" The dotted line is the longest that an answer may be: max_new_tokens {', '.join(map(str, sorted(caps)))}."
    drawings: Drawings = {"reward_and_length": (partial(draw_means, summary, sorted(caps)), caption)}
    picture = reward_histograms(ours, summary)
    drawings["reward_distribution"] = (partial(draw, picture), picture.caption)
    if any(run.history for run in ours):
        caption = f"Training of {ours[0].recipe}, iteration after iteration, a line per seed."
        drawings["training_curves"] = (partial(draw_curves, ours), caption)
    return drawn(drawings)


def drawn(drawings: Drawings) -> tuple[dict[str, bytes], dict[str, str]]:
    """Returns the PNG files of pictures, each for a light and a dark card, and the captions by the name of the light one."""
    files = {file: content for name, (way, _) in drawings.items() for file, content in pictures(name, way).items()}
    return files, {f"{name}.png": caption for name, (_, caption) in drawings.items()}


def answer_cap(run: FinishedRun) -> int | None:
    """Returns the tokens that an answer of the evaluation may have at most, None where the run has no settings of it."""
    path = run.folder / next(iter(run.policies)) / "evaluate.yaml"
    return int(read_settings(path)["evaluate"]["max_new_tokens"]) if path.is_file() else None


def draw_means(summary: Json, caps: Sequence[int] = ()) -> Figure:
    """Returns mean reward and mean length (tokens) of each policy with intervals: a colour per recipe, a line per decoding.

    caps: the longest that an answer may be, in tokens, drawn where the lengths are.
    """
    figure = Figure(figsize=(9, 4.2), layout="constrained")
    panels = dict(zip(("reward", "tokens"), figure.subplots(1, 2), strict=True))
    order = list(dict.fromkeys(row["policy"] for recipe in summary["recipes"] for row in recipe["policies"]))
    lines = [(recipe, key) for recipe in summary["recipes"] for key in recipe["temperatures"]]
    for (column, axes), (index, (recipe, key)) in product(panels.items(), enumerate(lines)):
        found = [row[key][column] for row in recipe["policies"]]
        # matplotlib takes distances from the mean, (2, policies); lines are shifted sideways so that intervals do not overlap.
        ends = np.array([[mean.value - mean.low, mean.high - mean.value] for mean in found]).T
        x = np.array([order.index(row["policy"]) for row in recipe["policies"]]) + 0.08 * (index - (len(lines) - 1) / 2)
        at = summary["recipes"].index(recipe)
        decoding = (
            0
            if key == summary["primary"]
            else 1 + [name for name in recipe["temperatures"] if name != summary["primary"]].index(key)
        )
        kind = {"color": colour(at), "marker": MARKERS[at % len(MARKERS)], "ls": LINES[decoding % len(LINES)]}
        axes.errorbar(x, [mean.value for mean in found], ends, label=f"{recipe['recipe']}, {key}", **kind)
        axes.set_xticks(range(len(order)), order)
    style(panels["reward"], "policy", f"{summary['reward']}, mean")
    style(panels["tokens"], "policy", "completion length (tokens), mean")
    for cap in caps:
        panels["tokens"].axhline(cap, color=ink(0.7), ls=":")
        panels["tokens"].text(
            0.02, cap, f"max_new_tokens {cap}", transform=panels["tokens"].get_yaxis_transform(), va="bottom", fontsize=8
        )
    legend_below(panels["reward"], 1)
    return figure


def reward_histograms(runs: Sequence[FinishedRun], summary: Json) -> Picture:
    """Returns histograms of the reward of a prompt, a panel per policy, the starting policy outlined in each."""
    names, key = [row["policy"] for row in summary["recipes"][0]["policies"]], summary["primary"]
    groups = {name: [run.policies[name][key].rewards for run in runs] for name in names}
    edges = np.histogram_bin_edges(np.concatenate([one for each in groups.values() for one in each]), BINS)
    middles = ((edges[1:] + edges[:-1]) / 2).tolist()
    crossed = share_prompts([run.policies[names[0]][key] for run in runs])
    panels: list[Panel] = []
    for name, each in groups.items():
        shares = bootstrap(
            [in_bins(one, edges.tolist()) for one in each], means, crossed=crossed, confidence=summary["confidence"]
        )
        first = [Series(names[0], panels[0].series[0].points, reference=True)] if panels else []
        mean = float(np.mean([one.mean() for one in each]))
        series = (Series(name, points_of(middles, *shares)), *first)
        label = f"{summary['reward']} of a prompt, {key}" if name == names[-1] else ""
        panels.append(Panel("histogram", name, label, "% of prompts", series, level=mean, edges=tuple(edges.tolist())))
    caption = (
        f"How the {summary['reward']} is distributed over the prompts, {key}, policy by policy: bars with their intervals, the "
        f"mean as a line, {names[0]} as a dashed outline."
    )
    return Picture("", (tuple(panels),), caption, width=8.0)


def draw_curves(runs: Sequence[FinishedRun]) -> Figure:
    """Returns logged training metrics over the optimizer steps of all iterations, one after another; a line per seed."""
    figure = Figure(figsize=(9, 6), layout="constrained")
    for axes, (label, keys) in zip(figure.subplots(2, 2).flat, CURVES.items(), strict=True):
        for run in runs:
            begin = 0
            for name, rows in run.history.items():
                for index, key in enumerate(keys):
                    points = np.array([(begin + row["step"], row[key]) for row in rows if key in row]).reshape(-1, 2)
                    first = (run, begin) == (runs[0], 0)
                    axes.plot(*points.T, color=colour(index), ls=LINES[index], lw=1, label=key if first else None)
                if run is runs[0]:
                    axes.axvline(begin, color=ink(0.25), lw=0.8, zorder=0)
                    axes.text(begin, 1, f" {name}", transform=axes.get_xaxis_transform(), fontsize=8, color=ink(0.7))
                begin += rows[-1]["step"]
        style(axes, "optimizer step", label)
        if len(keys) > 1:
            axes.legend(fontsize=8)
    return figure
