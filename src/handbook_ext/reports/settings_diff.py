"""In what runs differ: the settings that their artifacts were made under, and the code, packages and machines that made them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from handbook_ext.core.artifacts import finished_manifest
from handbook_ext.core.stage_settings import NOT_IDENTITY
from handbook_ext.recipes.settings import Recipe
from handbook_ext.reports.evaluations import Json

ABSENT = "-"
LONGEST = 80  # Characters of a value.
# Stages that make nothing that a policy is trained or measured with, and the copy of a checkpoint.
NO_PART = {"report", "compare", "check", "health", "checkpoint"}
# What the graph derives from other settings, or says of where a stage stands.
DERIVED = {
    "stage", "inputs", "iteration", "policy", "initial_policy", "format", "limits", "sizes", "texts", "terms", "reward_form",
    "tolerance", "explore", "engine", "needs", "global_batch_size", "part", "portion", "max_length", "long_prompts",
    "special_tokens",
} | NOT_IDENTITY  # fmt: skip

# Of a section that some runs have no stage for, what is told first; the others only where they differ where there is one.
CHIEF = {"rank": "rank.ranker", "generate": "generate.num_completions", "sft": "sft.num_train_epochs", "score": "score.tolerance"}

Settings = dict[str, dict[str, Any]]
"""Values by dotted name, then by the folder of the run whose stage has them: data, sft, iter1."""


def read_manifests(folder: Path) -> list[tuple[str, Json]]:
    """Returns the manifests of a run that took part in its policies and their evaluation, each with its folder in the run."""
    paths = {path.parent for path in folder.glob("*/*/manifest.json")}
    paths |= {path.with_name(path.name.replace(".manifest.json", suffix)) for suffix in (".json", ".jsonl")
              for depth in ("*", "*/*") for path in folder.glob(f"{depth}/*.manifest.json")}  # fmt: skip
    found = [(str(path.relative_to(folder).parts[0]), finished_manifest(path)) for path in sorted(paths) if path.exists()]
    return [(place, manifest) for place, manifest in found if manifest is not None and manifest["stage"] not in NO_PART]


def settings_of(manifests: Sequence[tuple[str, Json]]) -> Settings:
    """Returns the settings of a run by dotted name and folder, as its manifests have them; and the stages of each iteration."""
    found: Settings = {}
    stages: dict[str, list[str]] = {}
    for place, manifest in manifests:
        stages.setdefault(place, []).append(str(manifest["stage"]))
        for name, value in manifest["settings"].items():
            if name not in DERIVED:
                for dotted, one in _leaves(_section(manifest, name), value):
                    found.setdefault(dotted, {})[place] = one
    iterations = {place: ", ".join(sorted(set(names))) for place, names in stages.items() if place.startswith("iter")}
    return {**found, "stages": dict(sorted(iterations.items(), key=lambda item: _place(item[0])))}


def differences_of(runs: Mapping[str, Settings]) -> list[Json]:
    """Returns the settings in which runs differ, in the order of a recipe: the dotted name and a text for each run."""
    names = {name for settings in runs.values() for name in settings if _is_told(name, runs)}
    rows = [{"name": name, "values": [in_words(settings.get(name, {})) for settings in runs.values()]} for name in names]
    order = {section: index for index, section in enumerate(("stages", "seed", *Recipe.model_fields))}
    differ = [row for row in rows if len(set(row["values"])) > 1]
    return sorted(differ, key=lambda row: (order.get(row["name"].split(".")[0], len(order)), row["name"]))


def _is_told(name: str, runs: Mapping[str, Settings]) -> bool:
    """Returns whether a setting may be told: not each one of a section that a run lacks as a whole."""
    section = name.split(".", maxsplit=1)[0]
    having = [settings for settings in runs.values() if any(each.split(".")[0] == section for each in settings)]
    if len(having) == len(runs) or name == CHIEF.get(section, name):
        return True
    return len({in_words(settings.get(name, {})) for settings in having}) > 1


def in_words(values: Mapping[str, Any]) -> str:
    """Returns a setting's value, or its values by folder where they differ: `iter0 to iter2: 1, iter3: 0.5`."""
    if not values:
        return ABSENT
    parts: list[tuple[list[str], str]] = []
    for place in sorted(values, key=_place):
        text = _text(values[place])
        if parts and parts[-1][1] == text:
            parts[-1][0].append(place)
        else:
            parts.append(([place], text))
    if len(parts) == 1:
        return parts[0][1]
    return ", ".join(f"{places[0]}{f' to {places[-1]}' if len(places) > 1 else ''}: {text}" for places, text in parts)


def facts_of(manifests: Sequence[tuple[str, Json]]) -> dict[str, str]:
    """Returns what made a run, by name: commits of the code, packages, hardware, launch; of each all values that occur."""
    found: dict[str, dict[str, None]] = {}
    for _, manifest in manifests:
        code = manifest.get("code") or {}
        if code.get("commit"):
            changed = " with uncommitted changes" if code.get("dirty") else ""
            found.setdefault("code commit", {})[f"{code['commit'][:12]}{changed}"] = None
        for section in ("packages", "hardware", "launch"):
            for name, value in (manifest.get(section) or {}).items():
                # How many processes a stage may have is its own affair: those of the training count.
                if section != "launch" or manifest["stage"] == "train":
                    found.setdefault(f"{section}.{name}", {})[_text(value)] = None
    return {name: ", ".join(values) for name, values in found.items()}


def fact_differences(runs: Mapping[str, dict[str, str]]) -> list[Json]:
    """Returns the facts in which runs differ: the name and a text for each run."""
    names = list(dict.fromkeys(name for facts in runs.values() for name in facts))
    rows = [{"name": name, "values": [facts.get(name, ABSENT) for facts in runs.values()]} for name in names]
    return [row for row in rows if len(set(row["values"])) > 1]


def _section(manifest: Json, name: str) -> str:
    """Returns what an entry of a stage's settings is called beside those of the other stages."""
    settings, stage = manifest["settings"], str(manifest["stage"])
    if "set" in settings:
        return f"benchmarks.{settings['set']}.{name}"
    # A run's judge may be another ranker than the one that labels.
    if (stage, name) == ("evaluate", "rank"):
        return f"evaluate.{name}"
    return name if isinstance(settings[name], dict) or name == "seed" else f"{stage}.{name}"


def _leaves(name: str, value: Any) -> list[tuple[str, Any]]:
    """Returns the dotted names under a value with what is not a mapping; an empty mapping is a value."""
    if not isinstance(value, dict) or not value:
        return [(name, value)]
    return [leaf for key, one in value.items() for leaf in _leaves(f"{name}.{key}", one)]


def _place(name: str) -> tuple[int, int, str]:
    """Returns where a folder stands among those of a run: iterations by number, behind the others."""
    number = name.removeprefix("iter")
    return (1, int(number), name) if name.startswith("iter") and number.isdigit() else (0, 0, name)


def _text(value: Any) -> str:
    """Returns a value as a recipe has it, shortened."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"
