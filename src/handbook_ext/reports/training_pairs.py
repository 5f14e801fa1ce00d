"""A few training pairs with all their candidates, for a reader to see what a policy was taught."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from handbook_ext.core.artifacts import finished_manifest, read_manifest
from handbook_ext.core.jsonl import iter_jsonl
from handbook_ext.reports.answers import short, spoken
from handbook_ext.reports.evaluations import Json
from handbook_ext.reports.stored_rewards import policy_names, rewards_by_term, stored_log_probs
from handbook_ext.reports.trails import candidates, files_of_selection, read_trails, why_it_won

SHOWN = 10


def shown_pairs(folder: Path) -> Json | None:
    """Returns pairs of an iteration, equally far apart in its pairs.jsonl, each with all candidates and why it won.

    Equally far apart, since SeRA's own pairs stand behind those of the data; nobody has picked them. None where the folder has
    no finished pairs, as that of the policy that a run starts from.
    """
    if finished_manifest(folder / "pairs.jsonl") is None:
        return None
    names = [(number, str(row["prompt_id"])) for number, row in iter_jsonl(folder / "pairs.jsonl")]
    picked = [names[index * len(names) // SHOWN] for index in range(SHOWN)] if len(names) > SHOWN else names
    trails = read_trails(folder, {name for _, name in picked})
    rewards = _rewards(folder, [each for trail in trails.values() for each in candidates(trail)])
    shown = []
    for number, name in picked:
        pair = next(row for line, row in trails[name].pairs if line == number)
        trail = replace(trails[name], pairs=[(number, pair)])  # SeRA may have made another pair of this prompt.
        among = [each | {"implicit": rewards.get(each["completion_id"])} for each in candidates(trail)]
        shown.append(
            {
                "prompt_id": name, "line": number, "prompt": short(spoken(pair.prompt)), "why": why_it_won(trail, pair, among),
                "margin": pair.margin, "swapped": pair.swapped, "origins": [pair.chosen_origin, pair.rejected_origin],
                "ties": 0 if trail.ranking is None else trail.ranking.ties,
                "candidates": [each | {"text": short(each["text"])} for each in among],
            }
        )  # fmt: skip
    return {"iteration": folder.name, "of": len(names), "pairs": shown}


def _rewards(folder: Path, among: Sequence[Json]) -> dict[str, float]:
    """Returns the implicit rewards of completions by id, where margins have selected; nothing where they have not."""
    settings = read_manifest(folder / "pairs.jsonl")["settings"] or {}
    if not settings.get("terms"):
        return {}
    names = {each["completion_id"] for each in among}
    log_probs = stored_log_probs(files_of_selection(folder).get("log_probs", []), names)
    found = rewards_by_term(settings, names, log_probs, policy_names(folder.parent))
    return {name: one["value"] for name, one in found.items() if one["value"] is not None}
