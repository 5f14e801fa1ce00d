"""What goals hand on: the folder of all runs, the seeds of a recipe, what a plan of hardware is asked for."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

from handbook_ext.core.errors import UserError
from handbook_ext.recipes.run import Run


def distinct_seeds(runs: list[Run]) -> list[Run]:
    """Returns the runs of a recipe under several seeds; raises UserError where two have one seed, which would count twice."""
    seeds = [run.settings.seed for run in runs]
    for run in runs:
        if seeds.count(run.settings.seed) > 1:
            raise UserError(
                f"{run.tree.where(('seed',))}: {run.recipe} has seed {run.settings.seed} by itself and -seed{run.settings.seed} "
                f"under SEEDS={len(runs)}; give the recipe seed: 1, or a seed above {len(runs)}"
            )
    return runs


def runs_folder(variables: Mapping[str, str]) -> str:
    """Returns the folder of all runs, spelt in the one way in which make's text has it: make takes `a//b` and `a/b` for two."""
    folder = str(Path(variables.get("RUNS", "runs")))
    if folder.startswith("-"):
        raise UserError(f"RUNS: {variables['RUNS']!r} begins with a dash, like an option of a command; give another folder")
    return folder


def request_file(request: Mapping[str, str | int]) -> str:
    """Returns the name of the file in a run's folder that hands a request on: plans of one run at once have one each."""
    return f"plan-{hashlib.sha256(json.dumps(request, sort_keys=True).encode()).hexdigest()[:12]}.json"


def hardware_request(name: str, variables: Mapping[str, str]) -> dict[str, str | int]:
    """Returns what `make <run>-plan` is asked for, by the fields of `planning.request.Request`; nothing that was not given."""
    found: dict[str, str | int] = {"run": name}
    for each in ("SET", "DATA", "LAUNCH", "VRAM", "RAM", "WRITE", "GPUS", "THREADS"):
        if value := variables.get(each):
            found[each.lower()] = int(value) if each in ("GPUS", "THREADS") else value
    return found
