"""What the folders of runs are called, and that no two runs of a recipe are the same one."""

from __future__ import annotations

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
