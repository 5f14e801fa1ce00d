"""The pictures of a report."""

from collections.abc import Sequence
from itertools import product

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from handbook_ext.reports.run_report import Json, Run

# Okabe and Ito's colours can be told apart with any colour vision.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
CURVES = {
    "loss (nats)": ("loss",),
    "implicit reward margin (nats)": ("rewards/margins",),
    "accuracy of implicit reward": ("rewards/accuracies",),
    "implicit reward (nats)": ("rewards/chosen", "rewards/rejected", "rewards/explore"),
}


def draw_means(summary: Json) -> Figure:
    """Mean reward and mean length (tokens) of each policy with intervals: a colour per recipe, a line per decoding."""
    figure = Figure(figsize=(9, 3.8), layout="constrained")
    panels = dict(zip(("reward", "tokens"), figure.subplots(1, 2), strict=True))
    order = list(dict.fromkeys(row["policy"] for recipe in summary["recipes"] for row in recipe["policies"]))
    lines = [(recipe, key) for recipe in summary["recipes"] for key in recipe["temperatures"]]
    for (column, axes), (index, (recipe, key)) in product(panels.items(), enumerate(lines)):
        means = [row[key][column] for row in recipe["policies"]]
        ends = np.array([[mean.value - mean.low, mean.high - mean.value] for mean in means]).T
        x = np.array([order.index(row["policy"]) for row in recipe["policies"]]) + 0.08 * (index - (len(lines) - 1) / 2)
        colour = COLOURS[summary["recipes"].index(recipe) % len(COLOURS)]
        kind = {"ls": "-" if key == summary["primary"] else "--", "marker": "o", "ms": 4, "capsize": 2}
        axes.errorbar(x, [mean.value for mean in means], ends, c=colour, label=f"{recipe['recipe']}, {key}", **kind)
        axes.set_xticks(range(len(order)), order)
    style(panels["reward"], "policy", f"{summary['reward']}, mean")
    style(panels["tokens"], "policy", "completion length (tokens), mean")
    panels["reward"].legend(frameon=False, fontsize=8)
    return figure


def draw_rewards(runs: Sequence[Run], summary: Json) -> Figure:
    """Histograms of the reward of a prompt, a row per policy, the starting policy outlined in each."""
    names, key = [row["policy"] for row in summary["recipes"][0]["policies"]], summary["primary"]
    rewards = [np.concatenate([run.policies[name][key].rewards for run in runs]) for name in names]
    bins = np.histogram_bin_edges(np.concatenate(rewards), 30)
    shares = [100 * np.histogram(one, bins)[0] / one.size for one in rewards]
    figure = Figure(figsize=(7, 1 + 1.1 * len(names)), layout="constrained")
    panels = figure.subplots(len(names), 1, sharex=True, sharey=True, squeeze=False)[:, 0]
    for axes, name, share, reward in zip(panels, names, shares, rewards, strict=True):
        axes.stairs(share, bins, fill=True, color=COLOURS[0], alpha=0.6)
        axes.stairs(shares[0], bins, color="0.35")
        axes.axvline(reward.mean(), color=COLOURS[1], lw=2)
        style(axes, "", f"{name}\n% of prompts")
    panels[-1].set_xlabel(f"{summary['reward']} of a prompt, {key} (bar: mean; outline: {names[0]})")
    return figure


def draw_curves(runs: Sequence[Run]) -> Figure:
    """Logged training metrics over the optimizer steps of all iterations in a row, a line per seed."""
    figure = Figure(figsize=(9, 6), layout="constrained")
    for axes, (label, keys) in zip(figure.subplots(2, 2).flat, CURVES.items(), strict=True):
        for run in runs:
            begin = 0
            for name, rows in run.history.items():
                for key, colour in zip(keys, COLOURS, strict=False):
                    points = np.array([(begin + row["step"], row[key]) for row in rows if key in row]).reshape(-1, 2)
                    axes.plot(*points.T, color=colour, lw=1, label=key if (run, begin) == (runs[0], 0) else None)
                if run is runs[0]:
                    axes.axvline(begin, color="0.8", lw=0.8, zorder=0)
                    axes.text(begin, 1, f" {name}", transform=axes.get_xaxis_transform(), fontsize=8, color="0.4")
                begin += rows[-1]["step"]
        if len(keys) > 1:
            axes.legend(frameon=False, fontsize=8)
        style(axes, "optimizer step", label)
    return figure


def style(axes: Axes, x: str, y: str) -> None:
    """Labels both axes and takes the frame away."""
    axes.set(xlabel=x, ylabel=y)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", alpha=0.25)
