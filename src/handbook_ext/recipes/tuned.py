"""What trials have chosen for a recipe: read from its file under recipes/tuning, and laid over the recipe.

`make tune-<table>` writes `recipes/tuning/<model>/<method>[-<variant>].yaml`. Where the file is, it stands between the recipe
and what overrides it: so `make tiny-sera` alone and the row of any table have the same values. Recipes that have this one as
their base are trained by their own trials, so they take over nothing of it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError, model_validator

from handbook_ext.core.errors import UserError
from handbook_ext.recipes.names import RECIPES, TUNING, RunName
from handbook_ext.recipes.section import Section
from handbook_ext.recipes.tree import laid
from handbook_ext.recipes.tuning_rule import Axes, read_rule
from handbook_ext.recipes.yaml_tree import Mark, Tree, read_yaml, shown

FREE = ("seed", "launch", "gpus", "slurm", "benchmarks", "report", "health")
"""Sections of a recipe that may change without making another experiment of it."""


class SeedOfTrial(Section):
    """What one seed of a trial came to: the mean reward and tokens of the judged policy, or why there is no such policy."""

    seed: int
    reward: float | None = None
    tokens: float | None = None
    failed: str | None = None


class TrialRecord(Section):
    """A trial: its settings, its mean over the seeds, None where one of them failed, and each seed."""

    set: dict[str, Any]
    reward: float | None
    seeds: list[SeedOfTrial] = Field(min_length=1)


class Choices(Section):
    """The file: what was chosen, by what, and every trial. A trial that failed counts as the least reward."""

    recipe: str
    chosen: dict[str, Any] = Field(min_length=1)
    judged: str = Field(description="what the trials were compared by, in words")
    axes: Axes
    seeds: list[int]
    trials: list[TrialRecord] = Field(min_length=1)
    sections: dict[str, str] = Field(description="hash of each section of the recipe, without what was tuned")
    packages: dict[str, str]
    machines: list[str] = Field(description="where the trials were made: processor, cores, and the kernels that torch took")
    date: str
    command: str

    @model_validator(mode="after")
    def _the_best(self) -> Choices:
        """Raises where what is chosen is not what the trials say."""
        best = best_of(self.trials)
        if best is None or best.set != self.chosen:
            raise ValueError("chosen is not the trial of the greatest reward; state a value of your own in the recipe, or in SET")
        return self


def best_of(trials: Collection[TrialRecord]) -> TrialRecord | None:
    """Returns the trial of the greatest reward, the first of equal ones; None where all have failed."""
    done = [each for each in trials if each.reward is not None]
    return max(done, key=lambda each: each.reward or 0.0) if done else None


@dataclass(frozen=True)
class Tuned:
    """A recipe's choices, and what has changed since they were made: sections of the recipe, or what is tried for it."""

    file: Path
    choices: Choices
    marks: Mapping[str, Mark]
    changed: tuple[str, ...] = ()

    @property
    def words(self) -> str:
        """Returns what the recipe was tuned over: `6 trials: learning_rate x beta, on seeds 51, 52`."""
        names = " x ".join(name.rpartition(".")[2] for name in self.choices.axes)
        seeds = f"seed{'s' * (len(self.choices.seeds) > 1)} {', '.join(map(str, self.choices.seeds))}"
        return f"{len(self.choices.trials)} trials: {names}, on {seeds}"

    @property
    def stale(self) -> str | None:
        """Returns a line that says that the choices are of another recipe; None where they are of this one."""
        if not self.changed:
            return None
        return (
            f"{self.choices.recipe}: the recipe has changed since it was tuned ({', '.join(self.changed)}), and still has the "
            f"values of {shown(self.file)}; {self.choices.command} tunes it again, or delete that file"
        )

    def laid_over(self, tree: Tree) -> Tree:
        """Returns the recipe's tree with what was chosen over it, each value marked with its line in the file."""
        for name, value in self.choices.chosen.items():
            key = tuple(name.split("."))
            values = value
            for part in reversed(key):
                values = {part: values}
            tree = laid(tree, Tree(values, {key: self.marks[name]}))
        return tree


def choices_file(name: RunName, root: Path = RECIPES) -> Path:
    """Returns where the choices of a run's recipe, under its variants, are written."""
    return root / TUNING / name.file.parent.name / f"{'-'.join((name.file.stem, *name.variants))}.yaml"


def tuned_of(name: RunName, tree: Tree, root: Path = RECIPES) -> Tuned | None:
    """Returns what was chosen for a run's recipe, whose tree under its variants is given; None where it was not tuned.

    Raises UserError where the file is not as it was written.
    """
    path = choices_file(name, root)
    if not path.is_file():
        return None
    written = read_yaml(path)
    try:
        choices = Choices.model_validate(written.values)
    except ValidationError as error:
        first = error.errors()[0]
        where = "".join(f"{part}: " for part in first["loc"])
        raise UserError(
            f"{shown(path)}: {where}{first['msg'].removeprefix('Value error, ')}; restore the file, or delete it and tune again"
        ) from None
    marks = {each: written.where(("chosen", each)) for each in choices.chosen}
    now = section_hashes(tree, choices.chosen)
    changed = [each for each in sorted({*now, *choices.sections}) if now.get(each) != choices.sections.get(each)]
    if (rule := read_rule(name.file.parent.name, root)) is not None:
        scope = rule.of(name.file.stem, name.variants)
        tried = (choices.axes, choices.seeds, len(choices.trials))
        changed += ["what is tried"] if tried != (scope.axes, [*scope.seeds], scope.budget) else []
    return Tuned(path, choices, marks, tuple(changed))


def section_hashes(tree: Tree, tuned: Collection[str]) -> dict[str, str]:
    """Returns a short hash of each section of a recipe, without the tuned settings and what makes no other experiment."""
    values = json.loads(json.dumps(tree.without(*FREE).values))
    for name in tuned:
        *sections, last = name.split(".")
        part: Any = values
        for each in sections:
            part = part.get(each) if isinstance(part, dict) else None
        if isinstance(part, dict):
            part.pop(last, None)
    # A section that held nothing else is as good as none.
    kept = {name: value for name, value in values.items() if value != {}}
    return {name: hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:12] for name, value in kept.items()}
