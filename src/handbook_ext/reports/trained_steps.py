"""In which optimizer steps training met a pair, from the batch plan of its manifest; no tokenizer is asked."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from handbook_ext.core.artifacts import finished_manifest
from handbook_ext.core.jsonl import iter_jsonl
from handbook_ext.objectives.batching import BatchPlan
from handbook_ext.reports.evaluations import Json
from handbook_ext.reports.training_logs import training_log

LOGGED = {"loss": "loss", "rewards/margins": "margin", "rewards/accuracies": "accuracy"}


def training_of(folder: Path, lines: Sequence[int]) -> list[str]:
    """Returns sentences on how an iteration trained on lines of its pairs.jsonl, from 1: which policy, in which steps."""
    if not lines:
        return []
    manifest = finished_manifest(folder / "policy")
    if manifest is None:
        return [f"{folder.name} has not trained yet"]
    pairs = finished_manifest(folder / "pairs.jsonl") or {}
    trained = f"{folder.name}/policy (policy {str(manifest.get('policy'))[:12]}) trained on it"
    if manifest["inputs"].get("pairs.jsonl") != pairs.get("sha256"):
        return [f"{folder.name}/policy was trained on other pairs than these; run make, which trains again"]
    places = encoded_places(folder, manifest, lines)
    if places is None:
        dropped = {reason: count for reason, count in manifest["counts"].get("dropped", {}).items() if count}
        return [
            f"{trained}, unless it is one of those that encoding dropped ({dropped}); which these are, only the tokenizer tells"
        ]
    log = training_log(folder / "policy")
    return [
        f"line {line} of pairs.jsonl: dropped when it was encoded, so nothing trained on it"
        if place is None
        else f"line {line} of pairs.jsonl: {trained}, {_steps_in_words(manifest, place, log)}"
        for line, place in zip(lines, places, strict=True)
    ]


def steps_of(manifest: Json, place: int) -> list[tuple[int, int]]:
    """Returns the optimizer steps, from 1, in which training met the pair of a place, from 0, each with its epoch, from 1."""
    train, count = manifest["settings"]["train"], int(manifest["counts"]["out"])
    # Which pairs share a step follows from their number and the seed; their lengths only order them inside of it.
    plan = BatchPlan([1] * count, train["global_batch_size"], train["global_batch_size"], int(manifest["seed"]))
    found = []
    for epoch in range(math.ceil(train["num_train_epochs"])):
        for number, batch in enumerate(plan.epoch(epoch)):
            step = epoch * plan.steps + number + 1
            if step <= manifest["steps"] and any(slot.index == place and slot.weight for slot in batch):
                found.append((step, epoch + 1))
    return found


def encoded_places(folder: Path, manifest: Json, lines: Sequence[int]) -> list[int | None] | None:
    """Returns each line's place among the pairs that were trained on, None for one dropped in encoding; None if nobody can tell.

    Where encoding dropped pairs, the score store tells which: those whose completions it has no log-prob of.
    """
    counts = manifest["counts"]
    if counts["in"] == counts["out"]:
        return [line - 1 for line in lines]
    store = folder / "logprobs"
    names = {
        row["completion"]
        for path in sorted(store.glob("*.jsonl"))
        for _, row in iter_jsonl(path)
        if row["policy"] == manifest.get("start")
    }
    kept = [row["chosen_id"] in names and row["rejected_id"] in names for _, row in iter_jsonl(folder / "pairs.jsonl")]
    if sum(kept) != counts["out"]:
        return None
    return [sum(kept[: line - 1]) if kept[line - 1] else None for line in lines]


def _steps_in_words(manifest: Json, place: int, log: Sequence[Json]) -> str:
    """Returns the steps of a pair in words, with what the trainer logged of the first of them."""
    steps = steps_of(manifest, place)
    if not steps:
        return "but training ended before its turn came"
    epochs = len({epoch for _, epoch in steps}) > 1
    shown = ", ".join(f"{step}{f' (epoch {epoch})' if epochs else ''}" for step, epoch in steps)
    words = f"in step {shown} of {manifest['steps']}, among {manifest['settings']['train']['global_batch_size']} pairs"
    # A log line sums up the steps since the one before it.
    line = next((row for row in log if "loss" in row and row.get("step", 0) >= steps[0][0]), None)
    if line is None:
        return words
    numbers = ", ".join(f"{name} {line[key]:.3g}" for key, name in LOGGED.items() if key in line)
    return f"{words}; logged at step {line['step']}: {numbers}"
