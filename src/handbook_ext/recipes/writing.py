"""Recipes on disk: what a run's folder gets of them, for its stages and for make, and what a user is shown."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import yaml

from handbook_ext.core.artifacts import checkpoint_files
from handbook_ext.core.errors import UserError
from handbook_ext.recipes.checks import dotted
from handbook_ext.recipes.graph import Settings, stage_settings
from handbook_ext.recipes.iteration import Iteration
from handbook_ext.recipes.run import RECIPES, Run, recipe_files, resolve
from handbook_ext.recipes.settings import ENGINES_HERE, RANKERS_HERE, Recipe
from handbook_ext.recipes.yaml_tree import Key, Tree, read_yaml

__all__ = [
    "RECIPES", "Iteration", "Run", "unsupported_settings", "load_stage", "make_variables", "recipe_files", "resolve", "shown_settings",
    "stage_settings", "write_run",
]  # fmt: skip


def make_variables(run: Run) -> str:
    """Returns what the Makefile needs to know of a run; comments would leave spaces in the values."""
    names = " ".join(each.name for each in run.iterations)
    properties = {
        "sampled": "generates", "judged": "ranks", "reviewed": "scores_before_selection", "scored": "has_log_probs",
        "watched": "health_limited",
    }  # fmt: skip
    kinds = {
        kind: " ".join(each.name for each in run.iterations if getattr(each, name)) for kind, name in properties.items()
    }
    values = {
        "iterations": names, "start": run.start, **kinds, "fitted": "yes" if run.trains_reward_model else "", "launch": run.settings.launch,
        "files": " ".join(local_files(run.settings)),
        "checkpoint": " ".join(folder_files(run.settings.model.name_or_path)),
        "judge": " ".join(sorted({file for rank in run.ranks for file in folder_files(rank.model)})),
        "kl": "yes" if run.settings.health.max_kl is not None else "",
    }  # fmt: skip
    return _header(run) + "".join(f"{name}.{run.name} := {value}".rstrip() + "\n" for name, value in values.items())


def local_files(settings: Recipe) -> list[str]:
    """Returns the data files that the recipe names: make looks at their time, the data stage at their content."""
    return [name for name in (settings.data.train, settings.data.test, settings.data.sft) if name and Path(name).is_file()]


def folder_files(source: str | None) -> list[str]:
    """Returns the files of a checkpoint that is a local folder; none for a name on the hub.

    Raises UserError for a name that make cannot hold.
    """
    folder = None if source is None else Path(source)
    files = [str(path) for path in checkpoint_files(folder)] if folder is not None and folder.is_dir() else []
    for name in files:
        if re.search(r"[\s:#$%]", name):
            raise UserError(
                f"{name}: make cannot watch a file of this name; put the checkpoint where no blank or : # $ % is in it"
            )
    return files


def unsupported_settings(run: Run) -> list[str]:
    """Returns a line for each engine or ranker that a recipe names and this version does not have: its stage will refuse."""
    names: set[tuple[str, str, tuple[str, ...]]]
    names = {("rank.ranker", rank.ranker, RANKERS_HERE) for rank in run.ranks}  # The run's own judges all its policies.
    names |= {("generate.engine", each.settings.generate.engine, ENGINES_HERE) for each in run.iterations if each.generates}
    return sorted(
        f"{setting} {value} is not part of this version, so the stage that needs it will stop; it has: {', '.join(here)}"
        for setting, value, here in names
        if value not in here
    )


def write_run(run: Run, runs: Path) -> list[Path]:
    """Writes the settings files and run.mk of a run where their content changed; returns those written."""
    texts = {
        path: _header(run) + yaml.safe_dump(settings, sort_keys=False, allow_unicode=True, width=110)
        for path, settings in stage_settings(run).items()
    }
    texts["run.mk"] = make_variables(run)
    return [path for name, text in texts.items() if _replaced(path := runs / run.name / name, text)]


def _header(run: Run) -> str:
    """Returns the first line of every file that is derived from a recipe."""
    return f"# resolved from recipe {run.recipe}; edit the recipe, not this file\n"


def _replaced(path: Path, text: str) -> bool:
    """Puts the text in place by rename, unless it is there already; tells whether it did."""
    if path.is_file() and path.read_text(encoding="utf-8") == text:
        return False
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        partial.write_text(text, encoding="utf-8")
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return True


def load_stage(path: Path) -> Settings:
    """Returns the resolved settings of a stage; a UserError says so where they are not written yet."""
    if not path.is_file():
        raise UserError(f"{path}: the settings of this stage are missing; run make, or scripts/resolve_recipe.py first")
    return read_yaml(path).values


def shown_settings(run: Run, iteration: str | None = None) -> list[str]:
    """Returns every resolved setting, of one iteration or of the recipe itself, each with where it is written."""
    chosen = None if iteration is None else run.iteration(iteration)
    settings, tree, lines = run.settings, run.tree, []
    if chosen is not None:
        settings, tree = chosen.settings, chosen.tree
        start = chosen.policy_from or settings.model.name_or_path
        portion = f"portion {chosen.index + 1} of {settings.data.portions}"
        lines = [f"# {chosen.name} of {run.name} starts from {start} and uses {portion}"]
    stated = Recipe.model_validate(tree.values)
    before = dict(_leaves(stated.model_dump(), ()))
    for key, value in _leaves(settings.model_dump(), ()):
        changed = ", resolved" if before.get(key) != value else ""
        lines.append(f"{dotted(key)}: {_inline(value)}   # {_origin(key, tree)}{changed}")
    return lines


def _leaves(value: Any, key: Key) -> list[tuple[Key, Any]]:
    """Returns the settings below a key in the order of the sections; a list is one setting."""
    if not isinstance(value, dict):
        return [(key, value)]
    return [leaf for name, inner in value.items() for leaf in _leaves(inner, (*key, name))]


def _origin(key: Key, tree: Tree) -> str:
    """Returns file and line where a setting is stated, or that it is a default."""
    return str(tree.marks[key]) if key in tree.marks else "default"


def _inline(value: Any) -> str:
    """Returns a value as YAML on one line."""
    text = yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=1_000_000)
    return text.removesuffix("...\n").strip()
