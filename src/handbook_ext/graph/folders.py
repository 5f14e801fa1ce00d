"""What goals hand on: the folder of all runs, the seeds of a recipe, what a plan of hardware is asked for."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from handbook_ext.core.errors import UserError
from handbook_ext.recipes.names import RECIPES, unreachable
from handbook_ext.recipes.run import Run
from handbook_ext.recipes.trials import check_spare

OWN = (str(RECIPES), "scripts", "src", "tests", ".git", ".venv")
"""Folders of the project in which runs would be taken for something else."""
LONGEST = 255  # Bytes of a name, on most file systems.


def distinct_seeds(runs: list[Run]) -> list[Run]:
    """Returns the runs of a recipe under several seeds; raises UserError where two have one seed, which would count twice,
    or one has a seed that methods are tuned on, whose prompts have chosen its settings.
    """
    check_spare(runs)
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
    if any(len(part.encode("utf-8", "surrogateescape")) > LONGEST for part in Path(folder).parts):
        raise UserError(f"RUNS: a folder's name has {LONGEST} bytes at most; give a shorter one than {variables['RUNS'][:30]}...")
    for own in OWN:
        if Path(folder).resolve().is_relative_to(Path(own).resolve()):
            raise UserError(f"RUNS: {variables['RUNS']!r} lies in {own}/, which belongs to this project; give another folder")
    return folder


def answers_of(run: Path, name: str) -> list[Path]:
    """Returns the finished answers of a run's policies to a set: the start first, then the iterations by number."""
    found = [path for path in run.glob(f"*/{name}/answers.jsonl") if path.with_name("answers.manifest.json").is_file()]
    return sorted(found, key=lambda path: (path.parts[-3].startswith("iter"), len(path.parts[-3]), path.parts[-3]))


def check_matrix(runs: Sequence[Path], chosen: str) -> None:
    """Raises UserError where fewer than two policies of the runs have answered one set, so that nothing is compared."""
    if not chosen.strip() or not runs:
        raise UserError('name the runs and their prompt set, such as OF="zephyr-selm zephyr-dpo" SETS=alpaca')
    if len(chosen.split()) > 1:
        raise UserError(f"SETS: {chosen}: the policies are compared on one set; name one")
    count = sum(len(answers_of(run, chosen)) for run in runs)
    if count < 2:
        told = "1 policy has" if count else "no policy has"
        raise UserError(
            f"{' '.join(map(str, runs))}: {told} answered {chosen}, and two are compared; make {runs[0].name}-eval SETS={chosen}"
        )


def request_file(request: Mapping[str, str | int]) -> str:
    """Returns the name of the file in a run's folder that hands a request on: plans of one run at once have one each."""
    return f"plan-{hashlib.sha256(json.dumps(request, sort_keys=True).encode()).hexdigest()[:12]}.json"


def hardware_request(name: str, variables: Mapping[str, str]) -> dict[str, str | int]:
    """Returns what `make <run>-plan` is asked for, by the fields of `planning.request.Request`; nothing that was not given."""
    found: dict[str, str | int] = {"run": name}
    for each in ("SET", "DATA", "LAUNCH", "VRAM", "RAM", "WRITE", "GPUS", "THREADS"):
        if value := variables.get(each):
            reason = unreachable(Path(value)) if each == "WRITE" else None
            if reason is not None:
                raise UserError(f"WRITE: {value} {reason}; name another file, such as {RECIPES}/mine/small.yaml")
            found[each.lower()] = int(value) if each in ("GPUS", "THREADS") else value
    return found
