"""How long stages that are still to be made will take, by what the same stages of this run, or of its other seeds, took."""

from __future__ import annotations

import re
from collections.abc import Iterable
from itertools import islice
from pathlib import Path

from handbook_ext.core.artifacts import finished_manifest
from handbook_ext.core.goal_progress import Expected
from handbook_ext.graph.rule import StageRule
from handbook_ext.graph.run_rules import run_rules
from handbook_ext.recipes.run import Run

SEED = r"-seed[0-9]+$"
SIBLINGS = 3  # Runs that are looked at.
BRIEF = {"report": 5.0}
"""Seconds of stages that take as little in every run: the last one, unknown, would hide in a first run what is left in all."""


def expected_stages(left: Iterable[tuple[Run, Iterable[StageRule]]], runs: Path) -> list[Expected]:
    """Returns the stages that a call of make still has to make, by run and in their order; `runs` is the folder of all runs."""
    by_run: dict[str, tuple[Run, dict[str, StageRule]]] = {}
    for run, rules in left:
        by_run.setdefault(run.name, (run, {}))[1].update({rule.artifact: rule for rule in rules})
    found = []
    for run, rules_left in by_run.values():
        seconds = _seconds(run, runs)
        for rule in rules_left.values():
            name = f"{run.name} {_label(rule)}" if len(by_run) > 1 else _label(rule)
            known = seconds.get(rule.artifact, seconds.get(rule.settings.stage, BRIEF.get(rule.settings.stage)))
            path = str(runs / run.name / rule.artifact)
            found.append(Expected(path, name, f"{re.sub(SEED, '', run.name)} {rule.settings.stage}", known))
    return found


def _label(rule: StageRule) -> str:
    """Returns the name of a stage for people: `iter1 train`, `sft`."""
    stage = rule.settings.stage
    return stage if rule.folder in ("", stage) else f"{rule.folder} {stage}"


def _seconds(run: Run, runs: Path) -> dict[str, float]:
    """Returns the seconds that stages took, by artifact and, of the last of each, by the stage's name."""
    recipe = re.sub(SEED, "", run.name)
    folders = [runs / run.name, runs / recipe, *sorted(runs.glob(f"{recipe}-seed*"))]
    seconds: dict[str, float] = {}
    rules = run_rules(run)
    for folder in islice((each for each in dict.fromkeys(folders) if each.is_dir()), 1 + SIBLINGS):
        own: dict[str, float] = {}
        for rule in rules:
            manifest = finished_manifest(folder / rule.artifact)
            # What was taken over from another run took no time here.
            if manifest is not None and not manifest.get("shared_from"):
                own[rule.artifact] = own[rule.settings.stage] = float(manifest["seconds"])
        seconds = own | seconds
    return seconds
