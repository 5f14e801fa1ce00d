"""What a user is shown of recipes: every setting with where it is written, and every recipe on a line."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from handbook_ext.core.artifacts import START
from handbook_ext.core.machine import has_package, visible_gpus
from handbook_ext.recipes.checks import dotted
from handbook_ext.recipes.names import RECIPES, paper_row, recipe_files, variants_of
from handbook_ext.recipes.overrides import inline
from handbook_ext.recipes.run import Run, resolve
from handbook_ext.recipes.settings import ENGINES_HERE, RANKERS_HERE, Recipe
from handbook_ext.recipes.yaml_tree import Key, Tree


@dataclass(frozen=True)
class ListedRecipe:
    """A recipe as `make list` shows it."""

    name: str
    method: str
    paper: str
    data: str
    launch: str
    variants: list[str]
    missing: str


def listed_recipes(root: Path = RECIPES) -> Iterator[ListedRecipe]:
    """Yields every recipe in the order of the names; a UserError where one does not resolve."""
    for name, file in recipe_files(root).items():
        run = resolve(name, root)
        data = run.settings.data
        processes = f" ({run.launch.processes} processes)" if run.launch.processes > 1 else ""
        yield ListedRecipe(
            name, _first_comment(file), paper_row(file), Path(data.dataset or data.train).name, run.launch.name + processes,
            variants_of(file), "; ".join(missing_here(run)),
        )  # fmt: skip


def missing_here(run: Run) -> list[str]:
    """Returns what a machine like this one, and this version, lacks to run a recipe; found without loading anything heavy."""
    lacks = sorted({value for _, value, _ in unsupported(run)})
    if not run.launch.on_cpu and visible_gpus() < run.launch.processes:
        lacks.append(f"{run.launch.processes} GPUs" if run.launch.processes > 1 else "a GPU")
    if run.launch.name.startswith("zero") and not has_package("deepspeed"):
        lacks.append("deepspeed (extra gpu)")
    return lacks


def unsupported(run: Run) -> list[tuple[str, str, tuple[str, ...]]]:
    """Returns each engine and ranker that a recipe needs and this version does not have: setting, value, what it has."""
    named: set[tuple[str, str, tuple[str, ...]]]
    named = {("rank.ranker", rank.ranker, RANKERS_HERE) for rank in run.rankers}
    named |= {("generate.engine", each.settings.generate.engine, ENGINES_HERE) for each in run.iterations if each.needs.samples}
    return sorted((setting, value, here) for setting, value, here in named if value not in here)


def unsupported_settings(run: Run) -> list[str]:
    """Returns a line for each setting that this version cannot run: its stage will refuse."""
    return [
        f"{setting} {value} is not part of this version, so the stage that needs it will stop; it has: {', '.join(here)}"
        for setting, value, here in unsupported(run)
    ]


def shown_settings(run: Run, iteration: str | None = None) -> list[str]:
    """Returns every resolved setting, of one iteration or of the recipe itself, each with where it is written."""
    chosen = None if iteration is None else run.iteration(iteration)
    settings, tree, lines = run.settings, run.tree, []
    if chosen is not None:
        settings, tree = chosen.settings, chosen.tree
        start = settings.model.name_or_path if chosen.starts_from == START else chosen.starts_from
        portion = f"portion {chosen.index + 1} of {settings.data.portions}"
        lines = [f"# {chosen.name} of {run.name} starts from {start} and uses {portion}"]
    stated = Recipe.model_validate(tree.values)
    before = dict(_leaves(stated.model_dump(), ()))
    for key, value in _leaves(settings.model_dump(), ()):
        changed = ", resolved" if before.get(key) != value else ""
        lines.append(f"{dotted(key)}: {inline(value)}   # {_origin(key, tree)}{changed}")
    return lines


def _first_comment(file: Path) -> str:
    """Returns the first sentence of the comment that a recipe begins with."""
    line = file.read_text(encoding="utf-8").partition("\n")[0]
    return line.removeprefix("#").strip().removesuffix(".") if line.startswith("#") else ""


def _leaves(value: Any, key: Key) -> list[tuple[Key, Any]]:
    """Returns the settings below a key in the order of the sections; a list is one setting."""
    if not isinstance(value, dict):
        return [(key, value)]
    return [leaf for name, inner in value.items() for leaf in _leaves(inner, (*key, name))]


def _origin(key: Key, tree: Tree) -> str:
    """Returns file and line where a setting is stated, or that it is a default."""
    return str(tree.marks[key]) if key in tree.marks else "default"
