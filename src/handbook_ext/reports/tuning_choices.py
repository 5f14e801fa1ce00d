"""The choice of a method's trials as the file that is laid over its recipe, and the lines that tell it."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from handbook_ext.core.artifacts import finished_manifest
from handbook_ext.core.provenance import hardware_words
from handbook_ext.graph.makefile import replaced
from handbook_ext.recipes.overrides import inline
from handbook_ext.recipes.trials import artifact_of
from handbook_ext.recipes.tuned import TrialRecord, best_of
from handbook_ext.recipes.tuning_rule import point_text
from handbook_ext.recipes.yaml_tree import read_yaml
from handbook_ext.reports.tuning_results import Outcome

PACKAGES = ("torch", "transformers")
MADE = ("date", "command")
"""What another call of the same trials has otherwise; alone it is no reason to write a file anew."""


def write_choice(outcome: Outcome, runs: Path, *, date: str, command: str) -> bool:
    """Writes the choice of trials that are all finished; returns False where none has a reward, so that nothing is chosen.

    A file that has the same trials stays as it is.
    """
    best = best_of(outcome.trials)
    if best is None or outcome.measure is None:
        return False
    method, scope = outcome.method, outcome.method.scope
    manifests = [finished_manifest(runs / run.name / artifact_of(run)) for run in method.runs]
    known = [each for each in manifests if each is not None]
    last = artifact_of(method.runs[0]).partition("/")[0]
    values: dict[str, Any] = {
        "recipe": method.name.full,
        "chosen": best.set,
        "judged": f"{outcome.measure.words}, at {last}",
        "axes": scope.axes,
        "seeds": [*scope.seeds],
        "sections": method.sections,
        "packages": {name: _all(str(each.get("packages", {}).get(name, "-")) for each in known) for name in PACKAGES},
        "machines": sorted({hardware_words({"hardware": {}, **each}) for each in known}),
        "date": date,
        "command": command,
        "trials": [_trial(each) for each in outcome.trials],
    }
    before = read_yaml(method.file).values if method.file.is_file() else {}
    if {**before, **{name: None for name in MADE}} != {**values, **{name: None for name in MADE}}:
        replaced(method.file, _text(values))
    return True


def lines_of(outcome: Outcome) -> list[str]:
    """Returns what a method's trials came to, a line for it and one for each trial, the best first."""
    if outcome.unfinished:
        return [f"{outcome.method.name.full}: {len(outcome.unfinished)} of {len(outcome.method.runs)} runs are not finished"]
    best = best_of(outcome.trials)
    chosen = "nothing chosen, every trial failed" if best is None else point_text(best.set)
    lines = [f"{outcome.method.name.full}: {chosen}"]
    for each in sorted(outcome.trials, key=lambda one: (one.reward is not None, one.reward or 0.0), reverse=True):
        seeds = ", ".join("failed" if one.reward is None else f"{one.reward:.3f}" for one in each.seeds)
        lines.append(f"  {'failed' if each.reward is None else f'{each.reward:.3f}':>6}  ({seeds})  {point_text(each.set)}")
    return lines


def _trial(record: TrialRecord) -> dict[str, Any]:
    """Returns a trial as the file has it: what there is nothing to say of is left out of its seeds."""
    seeds = [each.model_dump(exclude_none=True) for each in record.seeds]
    return {"set": record.set, "reward": record.reward, "seeds": seeds}


def _all(values: Iterable[str]) -> str:
    """Returns the different values, parted by commas."""
    return ", ".join(sorted(set(values)))


def _text(values: dict[str, Any]) -> str:
    """Returns the file's text: a line for each entry, and for each trial."""
    lines = [
        f"# Chosen by {values['command']}, and laid over {values['recipe']} as long as this file is here.",
        "# Do not edit it: tune again, or delete it. A trial that failed has no reward and counts as the least.",
    ]
    for name, value in values.items():
        if name == "trials":
            lines += ["trials:", *(f"  - {inline(each)}" for each in value)]
        elif name in ("chosen", "axes"):
            lines += [f"{name}:", *(f"  {key}: {inline(one)}" for key, one in value.items())]
        else:
            lines.append(f"{name}: {inline(value)}")
    return "\n".join(lines) + "\n"
