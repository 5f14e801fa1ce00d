"""The pictures of a report: rewards and lengths of each policy, their distribution, and training curves."""

import io
from collections.abc import Sequence
from itertools import product

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from handbook_ext.reports.evaluations import Json
from handbook_ext.reports.run_report import FinishedRun

# Okabe and Ito's palette, distinguishable with any colour vision.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
CURVES = {
    "loss (nats)": ("loss",),
    "implicit reward margin (nats)": ("rewards/margins",),
    "accuracy of implicit reward": ("rewards/accuracies",),
    "implicit reward (nats)": ("rewards/chosen", "rewards/rejected", "rewards/explore"),
}


def draw_figures(groups: Sequence[Sequence[FinishedRun]], summary: Json) -> tuple[dict[str, bytes], dict[str, str]]:
    """Returns the PNG files of a report by name, and their captions; curves only where a training log is left."""
    ours, reward = groups[0], summary["reward"]
    over = "seeds and prompts" if len(ours) > 1 else "the prompts of one seed"
    caption = f"Mean {reward} and mean completion length of each policy; bars are intervals over {over}."
    figures = {"reward_and_length.png": (draw_means(summary), caption)}
    caption = f"How the {reward} is distributed over the prompts, {summary['primary']}, policy by policy."
    figures["reward_distribution.png"] = (draw_rewards(ours, summary), caption)
    if any(run.history for run in ours):
        caption = f"Training of {ours[0].recipe}, iteration after iteration, a line per seed."
        figures["training_curves.png"] = (draw_curves(ours), caption)
    return save_figures(figures)


def save_figures(figures: dict[str, tuple[Figure, str]]) -> tuple[dict[str, bytes], dict[str, str]]:
    """Returns the PNG files and the captions of figures by file name; equal figures give equal bytes."""
    files = {}
    for name, (figure, _) in figures.items():
        # matplotlib writes its version into a PNG unless told not to.
        figure.savefig(buffer := io.BytesIO(), dpi=150, format="png", metadata={"Software": None})
        files[name] = buffer.getvalue()
    return files, {name: caption for name, (_, caption) in figures.items()}


def draw_means(summary: Json) -> Figure:
    """Returns mean reward and mean length (tokens) of each policy with intervals: a colour per recipe, a line per decoding."""
    figure = Figure(figsize=(9, 3.8), layout="constrained")
    panels = dict(zip(("reward", "tokens"), figure.subplots(1, 2), strict=True))
    order = list(dict.fromkeys(row["policy"] for recipe in summary["recipes"] for row in recipe["policies"]))
    lines = [(recipe, key) for recipe in summary["recipes"] for key in recipe["temperatures"]]
    for (column, axes), (index, (recipe, key)) in product(panels.items(), enumerate(lines)):
        means = [row[key][column] for row in recipe["policies"]]
        # matplotlib takes distances from the mean, (2, policies); lines are shifted sideways so that intervals do not overlap.
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


def draw_rewards(runs: Sequence[FinishedRun], summary: Json) -> Figure:
    """Returns histograms of the reward of a prompt, a row per policy, the starting policy outlined in each."""
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


def draw_curves(runs: Sequence[FinishedRun]) -> Figure:
    """Returns logged training metrics over the optimizer steps of all iterations, one after another; a line per seed."""
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
    """Labels both axes and removes the upper and right frame."""
    axes.set(xlabel=x, ylabel=y)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", alpha=0.25)
