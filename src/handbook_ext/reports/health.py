"""The health of an iteration: metrics of its preference pairs and its training, and which limits of the recipe they exceed.

Lengths are in words, log-probs in nats. A metric is None where the iteration has nothing to compute it from.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

from handbook_ext.core.artifacts import manifest_path, read_manifest, recorded_hash
from handbook_ext.core.jsonl import read_rows
from handbook_ext.core.records import Completion, PreferencePair, Ranking
from handbook_ext.objectives.metrics import correlation
from handbook_ext.recipes.settings import HealthSettings
from handbook_ext.reports.training_logs import FILE, training_log

Health = dict[str, float | None]

# Each limit of the recipe: the metric that it bounds, from above (+1) or from below (-1).
LIMITS = {
    "max_tied_prompts": ("tied_prompts", 1), "max_identical_pairs": ("identical_pairs", 1),
    "max_empty_completions": ("empty_completions", 1), "min_distinct_completions": ("distinct_completions", -1),
    "max_length_correlation": ("length_correlation", 1), "max_length_gap": ("length_gap", 1),
    "max_chosen_fall": ("chosen_fall", 1), "max_kl": ("kl", 1),
}  # fmt: skip


def read_health(files: Mapping[str, Path]) -> Health:
    """Returns the health of an iteration from its files by role, as the health stage names its inputs, and from no others.

    `pairs` must be there; without `completions`, `rankings`, `policy` (its training log) or `evaluation` their metrics are left
    out.
    """
    health = pair_health(read_rows(files["pairs"], PreferencePair), read_manifest(files["pairs"]))
    if "completions" in files:
        health |= sample_health(read_rows(files["completions"], Completion))
    if "rankings" in files:
        health |= judgement_health(read_rows(files["rankings"], Ranking))
    if "policy" in files and (files["policy"] / FILE).is_file():
        health |= training_health(training_log(files["policy"]))
    if "evaluation" in files:
        implicit = json.loads(files["evaluation"].read_text()).get("implicit") or {}
        health["kl"] = implicit.get("kl")
        health |= {name: implicit[name] for name in ("surprisal",) if name in implicit}
    return health


def files_of(folder: Path) -> dict[str, Path]:
    """Returns the files of a trained iteration by role, those that belong together: what `read_health` takes."""
    files = {"pairs": folder / "pairs.jsonl", "policy": folder / "policy"}
    # The manifest says what the pairs were made from. Files alone do not: another recipe of this name may have left them.
    read = recorded_inputs(files["pairs"]).keys()
    if read & {"completions.jsonl", "rankings.jsonl"}:
        files["completions"] = folder / "completions.jsonl"
    if "rankings.jsonl" in read:
        files["rankings"] = folder / "rankings.jsonl"
    evaluated = recorded_inputs(folder / "eval.json").get("policy")
    # An evaluation of an earlier training of this iteration would report the KL of other weights.
    if evaluated is not None and evaluated == recorded_hash(folder / "policy"):
        files["evaluation"] = folder / "eval.json"
    return files


def recorded_inputs(artifact: Path) -> dict[str, str]:
    """Returns the content hashes of an artifact's inputs by name, {} where there is no artifact."""
    return dict(read_manifest(artifact)["inputs"]) if manifest_path(artifact).is_file() else {}


def pair_health(pairs: list[PreferencePair], manifest: dict[str, Any]) -> Health:
    """Returns lengths (words), shares and margins (nats) of the pairs; `manifest` is theirs, with what selection dropped.

    Shares are in [0, 1] of the pairs, `swapped` of those with an offline label, `identical_pairs` of the rows that selection
    read. `length_gap` is the mean length of chosen less that of rejected. `own_chosen_longer` is of the pairs of which the policy
    wrote both completions, where there are any.
    """
    words = {side: [float(_words(getattr(pair, side))) for pair in pairs] for side in ("chosen", "rejected")}
    # Length bias: the correlation of length with being chosen (1) rather than rejected (0), over all completions.
    labels = [1.0] * len(pairs) + [0.0] * len(pairs)
    offline = [pair for pair in pairs if pair.chosen_origin == "offline"]
    # Of pairs with both completions from the policy: there no writer of the data makes the better answer longer.
    own = [
        chosen > rejected
        for pair, chosen, rejected in zip(pairs, words["chosen"], words["rejected"], strict=True)
        if pair.chosen_origin == pair.rejected_origin == "on_policy"
    ]
    counts, margins = manifest["counts"], manifest.get("margins", {})
    identical = counts.get("dropped", {}).get("chosen equals rejected", 0)
    return {
        "pairs": float(len(pairs)),
        "length_gap": fmean(words["chosen"]) - fmean(words["rejected"]),
        "length_correlation": correlation(labels, [*words["chosen"], *words["rejected"]]),
        "identical_pairs": identical / max(1, counts["in"]),
        "on_policy_chosen": fmean(pair.chosen_origin == "on_policy" for pair in pairs),
        "swapped": fmean(pair.swapped for pair in offline) if offline else None,
        **({"own_chosen_longer": fmean(own)} if own else {}),
        "explore_is_chosen": fmean(pair.explore == pair.chosen for pair in pairs),
        **{f"margin_{name}": value for name, value in margins.items()},
        **({"log_probs_stored": float(manifest["store_entries"])} if manifest.get("store_entries") else {}),
    }  # fmt: skip


def sample_health(completions: list[Completion]) -> Health:
    """Returns the shares of distinct, empty and truncated completions.

    Distinct ones per prompt, then a mean over prompts; and `distinct_texts` of all samples, whatever their prompts.
    """
    texts: dict[str, list[str]] = defaultdict(list)
    for row in completions:
        texts[row.prompt_id].append(row.text)
    return {
        "distinct_completions": fmean(len(set(each)) / len(each) for each in texts.values()),
        "distinct_texts": len({row.text for row in completions}) / len(completions),
        "empty_completions": fmean(not row.text.strip() for row in completions),
        "cut_completions": fmean(row.finish_reason == "length" for row in completions),
    }


def judgement_health(rankings: list[Ranking]) -> Health:
    """Returns the share of prompts whose scores are all equal, and of the candidates these shares.

    Those whose judgement failed, those that tie with another of their prompt, and those that the ranker did not see as a whole;
    and per prompt the comparisons whose two orders named different winners.
    """
    scores = [[each.score for each in ranking.candidates if not each.failed] for ranking in rankings]
    every = [each for ranking in rankings for each in ranking.candidates]
    return {
        "tied_prompts": fmean(len(set(each)) < 2 for each in scores),
        "failed_judgements": fmean(each.failed for each in every),
        "tied_candidates": sum(ranking.ties for ranking in rankings) / len(every),
        "cut_judgements": fmean(each.truncated for each in every),
        "order_disagreements": fmean(ranking.disagreements for ranking in rankings),
    }


def training_health(history: list[dict[str, Any]]) -> Health:
    """Returns the fall of chosen's log-prob, its implicit reward, and the margin, in nats: means of the last logged steps.

    `chosen_fall` is from the starting weights, or for a loss without a reference model from the first third of the steps.
    """
    rows = [row for row in history if "logps/chosen" in row]
    # One logged step is one batch, too noisy to stop a run for; hence a mean over a third of them.
    last = rows[-max(1, len(rows) // 3) :]
    health: Health = {}
    keys = {"chosen_fall": "logps/chosen_fall", "chosen_reward": "rewards/chosen", "reward_margin": "rewards/margins"}
    for name, key in keys.items():
        values = [row[key] for row in last if key in row]
        health[name] = fmean(values) if values else None
    if health["chosen_fall"] is None and len(rows) > 1:
        begin = rows[: max(1, len(rows) // 3)]
        health["chosen_fall"] = fmean(row["logps/chosen"] for row in begin) - fmean(row["logps/chosen"] for row in last)
    return health


def exceeded(health: Health, limits: HealthSettings) -> list[str]:
    """Returns a clause for every limit that is exceeded: the metric, its value, the limit."""
    clauses = []
    for limit, (name, sign) in LIMITS.items():
        bound, value = getattr(limits, limit), health.get(name)
        # A preference for short completions is as much of a length bias as one for long ones.
        size = abs(value) if value is not None and name == "length_correlation" else value
        # These two must be measured once limited; the other metrics are of samples and judgements, which some rules lack.
        if bound is not None and size is None and name in ("kl", "chosen_fall"):
            clauses.append(f"{name} was not measured, but health.{limit} is {bound:g}")
        elif bound is not None and size is not None and sign * size > sign * bound:
            clauses.append(f"{name} is {value:.3g}, health.{limit} is {bound:g}")
    return clauses


def summary_line(health: Health) -> str:
    """Returns the metrics that were computed, by name, on one line."""
    return ", ".join(f"{name.replace('_', ' ')} {value:.3g}" for name, value in health.items() if value is not None)


def _words(completion: list[dict[str, str]]) -> int:
    """Returns the number of words in a completion."""
    return len(completion[-1]["content"].split())
