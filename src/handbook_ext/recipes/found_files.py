"""Files that a recipe names, looked for beside it and in the current folder."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from handbook_ext.core.errors import UserError
from handbook_ext.recipes.settings_benchmarks import HARNESS, HELD_OUT, REMOTE, BenchmarkSettings, PromptSetSettings
from handbook_ext.recipes.settings_harness import HarnessSettings
from handbook_ext.recipes.yaml_tree import Key, Tree, dotted, shown


def found(key: Key, value: str, tree: Tree, there: Callable[[Path], bool] = os.path.isfile) -> str:
    """Returns the path of a file, or folder, looked for beside the recipe that states it, then from the current folder."""
    mark = tree.where(key)
    places = [mark.file.parent / value, Path(value)]
    for place in filter(there, places):
        return shown(place)
    looked = " nor ".join(dict.fromkeys(shown(place) for place in places))
    kind = "file" if there is os.path.isfile else "folder"
    raise UserError(f"{mark}: {dotted(key)}: '{value}' does not exist: no {kind} {looked}; correct the path")


def found_sets(benchmarks: BenchmarkSettings, tree: Tree) -> BenchmarkSettings:
    """Returns the prompt sets, and the harness, with the paths of local files; one whose files are missing stays as it is.

    Training needs none of them: `check_set` tells what is missing to whoever asks for the set.
    """
    sets: dict[str, PromptSetSettings | None] = {name: benchmarks.prompt_set(name) for name in benchmarks.names}
    harness = benchmarks.harness
    for name in benchmarks.evaluations:
        with suppress(UserError):
            if name == HARNESS:
                harness = _found_harness(benchmarks, tree)
            else:
                sets[name] = _found_set(benchmarks, name, tree)
    return benchmarks.model_copy(update={"sets": sets, "harness": harness})


def check_set(benchmarks: BenchmarkSettings, name: str, tree: Tree) -> None:
    """Raises UserError where a file of a prompt set, or the folder of the harness, is missing."""
    _ = _found_harness(benchmarks, tree) if name == HARNESS else _found_set(benchmarks, name, tree)


def _found_set(benchmarks: BenchmarkSettings, name: str, tree: Tree) -> PromptSetSettings:
    """Returns a prompt set with the paths of its files."""
    chosen, at = benchmarks.prompt_set(name), ("benchmarks", "sets", name)
    source = chosen.source if chosen.source == HELD_OUT else _found_source((*at, "source"), chosen.source, tree)
    references = chosen.references and _found_source((*at, "references"), chosen.references, tree)
    outputs = {each: _found_source((*at, "outputs", each), value, tree) for each, value in chosen.outputs.items()}
    control = chosen.length_control and _found_source((*at, "length_control"), chosen.length_control, tree)
    return chosen.model_copy(update={"source": source, "references": references, "outputs": outputs, "length_control": control})


def _found_harness(benchmarks: BenchmarkSettings, tree: Tree) -> HarnessSettings | None:
    """Returns the harness with the path of its folder of tasks."""
    harness = benchmarks.harness
    if harness is None or harness.include_path is None:
        return harness
    key = ("benchmarks", "harness", "include_path")
    return harness.model_copy(update={"include_path": found(key, harness.include_path, tree, os.path.isdir)})


def _found_source(key: Key, value: str, tree: Tree) -> str:
    """Returns the address of a file of a prompt set, or its path."""
    return value if value.startswith(REMOTE) else found(key, value, tree)
