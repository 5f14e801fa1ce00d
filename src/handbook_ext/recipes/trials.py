"""The trials of a table: of each recipe behind its rows the same number, as runs with settings of their own on spare seeds.

Rows of one recipe, whatever they set or show of it, are one method, and are tuned by its last iteration.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from handbook_ext.core.artifacts import START
from handbook_ext.core.errors import UserError
from handbook_ext.recipes.names import RECIPES, RunName, read_name, varied
from handbook_ext.recipes.overrides import from_mapping
from handbook_ext.recipes.run import Run, resolve
from handbook_ext.recipes.table_files import Table
from handbook_ext.recipes.tuned import Choices, choices_file, section_hashes, tuned_of
from handbook_ext.recipes.tuning_rule import Point, Scope, point_text, read_rule, rule_file

SFT = "sft"


@dataclass(frozen=True)
class Trial:
    """A point, and its run under each seed."""

    point: Point
    runs: tuple[Run, ...]

    @property
    def text(self) -> str:
        """Returns the settings as one would write them in SET."""
        return point_text(self.point)


@dataclass(frozen=True)
class Method:
    """A recipe to be tuned, and its trials."""

    name: RunName
    scope: Scope
    trials: tuple[Trial, ...]
    file: Path
    sections: dict[str, str]

    @property
    def runs(self) -> list[Run]:
        """Returns the runs of all trials."""
        return [run for trial in self.trials for run in trial.runs]

    def before(self, root: Path = RECIPES) -> Choices | None:
        """Returns what was written last time, if that is of the recipe as it now is; None otherwise."""
        tuned = tuned_of(self.name, varied(self.name), root)
        return None if tuned is None or tuned.changed else tuned.choices

    def failed_before(self, root: Path = RECIPES) -> dict[tuple[str, int], str]:
        """Returns why trials failed last time, by settings and seed: they would fail again."""
        choices = self.before(root)
        found = [] if choices is None else [(each, seed) for each in choices.trials for seed in each.seeds]
        return {(point_text(each.set), seed.seed): seed.failed for each, seed in found if seed.failed is not None}


def artifact_of(run: Run) -> str:
    """Returns what a trial is judged by, as a path in its folder: the evaluation of the last iteration."""
    return f"{run.iterations[-1].name}/eval.json"


def methods_of(table: Table, root: Path = RECIPES, **launch: Any) -> list[Method]:
    """Returns the methods of a table with their trials, in the order of its rows; rows that show the start alone have none.

    Raises UserError where a model has no rule, a method has fewer points than trials, or a trial cannot be resolved.
    """
    recipes = dict.fromkeys(row.recipe for row in table.rows if row.policy not in (START, SFT))
    return [_method(read_name(recipe, root), root, **launch) for recipe in recipes]


def _method(name: RunName, root: Path, **launch: Any) -> Method:
    """Returns a method with its trials."""
    model = name.file.parent.name
    rule, file = read_rule(model, root), rule_file(model, root)
    if rule is None:
        raise UserError(f"{file}: is not there, and says what to try for {name.full}; write it as {rule_file('tiny', root)} is")
    scope = rule.of(name.file.stem, name.variants)
    try:
        points = scope.points()
    except ValueError as error:
        raise UserError(f"{file}: {name.full}: {error}") from None
    trials = []
    for point in points:
        overrides = from_mapping(point, f"{file}: {name.full}:")
        runs = [resolve(f"{name.full}-seed{seed}", root, overrides=overrides, tuned=False, **launch) for seed in scope.seeds]
        trials.append(Trial(point, tuple(runs)))
    return Method(name, scope, tuple(trials), choices_file(name, root), section_hashes(varied(name), scope.axes))


def check_spare(runs: Sequence[Run]) -> None:
    """Raises UserError where a run of a table or a report of seeds has a seed that methods of its model are tuned on."""
    for run in runs:
        root, model = run.file.parents[1], run.file.parent.name
        rule = read_rule(model, root)
        stated = {rule_file(model, root): rule.every_seed} if rule is not None else {}
        if run.tuned is not None:
            stated[run.tuned.file] = {*run.tuned.choices.seeds}
        for file, seeds in stated.items():
            if run.settings.seed in seeds:
                raise UserError(
                    f"{run.recipe}: seed {run.settings.seed} is one that methods are tuned on ({file}), so it is none of a "
                    f"table's; give SEEDS below {min(seeds)}, or another seed"
                )
