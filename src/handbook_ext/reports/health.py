"""The health of an iteration: what its preference pairs and its training look like, and which limits of the recipe they pass.

Lengths are in words, log-probs in nats. A measure is None where the iteration has nothing to measure it on.
"""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from statistics import fmean
from typing import Any

from handbook_ext.core.artifacts import manifest_path, read_manifest, recorded_hash
from handbook_ext.core.records import Completion, PreferencePair, Ranking, read_rows
from handbook_ext.objectives.metrics import correlation
from handbook_ext.recipes.settings import HealthSettings

Health = dict[str, float | None]

# Each limit of the recipe: the measure it concerns, and whether it is the most (+1) or the least (-1) that is sound.
LIMITS = {
    "max_tied_prompts": ("tied_prompts", 1), "max_identical_pairs": ("identical_pairs", 1),
    "max_empty_completions": ("empty_completions", 1), "min_distinct_completions": ("distinct_completions", -1),
    "max_length_correlation": ("length_correlation", 1), "max_length_gap": ("length_gap", 1),
    "max_chosen_fall": ("chosen_fall", 1), "max_kl": ("kl", 1),
}  # fmt: skip


def read_health(folder: Path) -> Health:
    """Returns the health of a trained iteration from its files; completions, rankings and eval.json where there are any."""
    pairs = read_rows(folder / "pairs.jsonl", PreferencePair)
    manifest = read_manifest(folder / "pairs.jsonl")
    found = pair_health(pairs, manifest)
    # What the pairs were made from: other files may be left from another recipe of the same name.
    if manifest["inputs"].keys() & {"completions.jsonl", "rankings.jsonl"}:
        found |= sample_health(read_rows(folder / "completions.jsonl", Completion))
    if "rankings.jsonl" in manifest["inputs"]:
        found |= judgement_health(read_rows(folder / "rankings.jsonl", Ranking))
    state = folder / "policy" / "trainer_state.json"
    if state.is_file():
        found |= training_health(json.loads(state.read_text())["log_history"])
    evaluated = recorded_inputs(folder / "eval.json").get("policy")
    if evaluated is not None and evaluated == recorded_hash(folder / "policy"):
        found["kl"] = (json.loads((folder / "eval.json").read_text()).get("implicit") or {}).get("kl")
    return found


def recorded_inputs(artifact: Path) -> dict[str, str]:
    """Returns the hashes of what an artifact was made from, none where there is no artifact."""
    return dict(read_manifest(artifact)["inputs"]) if manifest_path(artifact).is_file() else {}


def pair_health(pairs: list[PreferencePair], manifest: dict[str, Any]) -> Health:
    """Returns what the pairs tell; `manifest` is theirs, with the counts of what selection left out."""
    sides = {side: [float(_words(getattr(pair, side))) for pair in pairs] for side in ("chosen", "rejected")}
    labels = [1.0] * len(pairs) + [0.0] * len(pairs)
    offline = [pair for pair in pairs if pair.chosen_origin == "offline"]
    counts, margins = manifest["counts"], manifest.get("margins", {})
    identical = counts.get("dropped", {}).get("chosen equals rejected", 0)
    return {
        "pairs": float(len(pairs)),
        "length_gap": fmean(sides["chosen"]) - fmean(sides["rejected"]),
        "length_correlation": correlation(labels, [*sides["chosen"], *sides["rejected"]]),
        "identical_pairs": identical / max(1, counts["in"]),
        "on_policy_chosen": fmean(pair.chosen_origin == "on_policy" for pair in pairs),
        "swapped": fmean(pair.swapped for pair in offline) if offline else None,
        "explore_is_chosen": fmean(pair.explore == pair.chosen for pair in pairs),
        **{f"margin_{name}": value for name, value in margins.items()},
        **({"log_probs_stored": float(manifest["store_entries"])} if manifest.get("store_entries") else {}),
    }  # fmt: skip


def sample_health(completions: list[Completion]) -> Health:
    """Returns what the samples tell."""
    texts: dict[str, list[str]] = defaultdict(list)
    for row in completions:
        texts[row.prompt_id].append(row.text)
    return {
        "distinct_completions": fmean(len(set(each)) / len(each) for each in texts.values()),
        "empty_completions": fmean(not row.text.strip() for row in completions),
        "cut_completions": fmean(row.finish_reason == "length" for row in completions),
    }


def judgement_health(rankings: list[Ranking]) -> Health:
    """Returns what the ranker's scores tell."""
    scores = [[each.score for each in ranking.candidates if not each.failed] for ranking in rankings]
    every = [each for ranking in rankings for each in ranking.candidates]
    return {
        "tied_prompts": fmean(len(set(each)) < 2 for each in scores),
        "failed_judgements": fmean(each.failed for each in every),
    }


def training_health(history: list[dict[str, Any]]) -> Health:
    """Returns how far the log-prob of chosen and the margin are from the start: means over the last third of the logged steps.

    `chosen_fall` is in nats: from the start, or for a loss without a reference from the first third of the logged steps.
    """
    rows = [row for row in history if "logps/chosen" in row]
    last = rows[-max(1, len(rows) // 3) :]
    found: Health = {}
    keys = {"chosen_fall": "logps/chosen_fall", "chosen_reward": "rewards/chosen", "reward_margin": "rewards/margins"}
    for name, key in keys.items():
        values = [row[key] for row in last if key in row]
        found[name] = fmean(values) if values else None
    if found["chosen_fall"] is None and len(rows) > 1:
        first = rows[: max(1, len(rows) // 3)]
        found["chosen_fall"] = fmean(row["logps/chosen"] for row in first) - fmean(row["logps/chosen"] for row in last)
    return found


def exceeded(health: Health, limits: HealthSettings) -> list[str]:
    """Returns a clause for every limit that is passed: the measure, its value, the limit."""
    clauses = []
    for limit, (name, sign) in LIMITS.items():
        bound, value = getattr(limits, limit), health.get(name)
        size = abs(value) if value is not None and name == "length_correlation" else value
        # The others are of samples or judgements, if there are any.
        if bound is not None and size is None and name in ("kl", "chosen_fall"):
            clauses.append(f"{name} was not measured, but health.{limit} is {bound:g}")
        elif bound is not None and size is not None and sign * size > sign * bound:
            clauses.append(f"{name} is {value:.3g}, health.{limit} is {bound:g}")
    return clauses


def told(health: Health) -> str:
    """Returns the measures on one line."""
    return ", ".join(f"{name.replace('_', ' ')} {value:.3g}" for name, value in health.items() if value is not None)


def _words(completion: list[dict[str, str]]) -> int:
    """Returns the words of a completion."""
    return len(completion[-1]["content"].split())
