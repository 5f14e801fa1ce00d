"""A recipe that states what a plan has changed, each value with its reason. No torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from os.path import relpath
from pathlib import Path
from typing import Any

from handbook_ext.core.errors import UserError
from handbook_ext.graph.makefile import replaced
from handbook_ext.planning.choices import Change, Choice
from handbook_ext.planning.figures import Setting
from handbook_ext.planning.hardware_plan import launch_changes
from handbook_ext.planning.request import Request
from handbook_ext.recipes.names import RECIPES, unreachable
from handbook_ext.recipes.overrides import inline


def write_recipe(request: Request, setting: Setting, choice: Choice, own: Setting) -> str:
    """Writes the recipe of a plan where the request names a file; returns a line that says so.

    Raises UserError where there is another file of that name, or the run is more than a recipe.
    """
    path = Path(str(request.write))
    if request.set or request.data or setting.run.variants or setting.run.recipe != setting.run.name:
        raise UserError(
            f"WRITE: the new recipe has {setting.run.file} as its base, and not what SET, DATA, a variant or a seed adds; plan "
            "the recipe itself, then state these in the new one"
        )
    if (reason := unreachable(path)) is not None:
        raise UserError(f"WRITE: {path} {reason}; name another file, such as {RECIPES}/mine/small.yaml")
    changes = [*launch_changes(setting, choice, own), *_processes(setting), *_chosen(setting), *choice.changes]
    text = recipe_text(request, setting, changes)
    if path.exists() and (not path.is_file() or path.read_bytes() != text.encode()):
        raise UserError(f"WRITE: {path} is there already and says something else; name another file, or delete it")
    try:
        new = replaced(path, text)
    except OSError as error:
        raise UserError(f"WRITE: {path} cannot be written ({error.strerror}); name a file under recipes/mine/") from None
    name = f"{path.parent.name}-{path.stem}"
    memory = "" if request.vram is None else f" VRAM={request.vram}"
    return f"{'written' if new else 'as before'}: {path}; make {name} runs it, make {name}-plan{memory} plans it\n"


def recipe_text(request: Request, setting: Setting, changes: Sequence[Change]) -> str:
    """Returns the text of the recipe: its base, and what changes."""
    base = relpath(setting.run.file, Path(str(request.write)).parent)
    lines = [
        f"# {setting.run.name} for {setting.machine.words}",
        f"# Written by make {request.run}-plan{request.words(WRITE=str(request.write))}",
        f"base: {base}",
    ]
    tree: dict[str, Any] = {}
    for each in changes:
        for key in (each.key, *_iterations_with(setting, each.key)):
            part = tree
            *sections, name = key.split(".")
            for section in sections:
                part = part.setdefault(section, {})
            part[name] = each
    return "\n".join([*lines, *_lines(tree, 0)]) + "\n"


def _processes(setting: Setting) -> list[Change]:
    """Returns how many GPUs the launch has, where it has any."""
    launch = setting.run.launch
    return [] if launch.on_cpu else [Change("gpus", None, launch.processes, "planned for these")]


def _chosen(setting: Setting) -> list[Change]:
    """Returns what trials have chosen for the recipe, which one that has it as its base does not take over."""
    tuned = setting.run.tuned
    if tuned is None:
        return []
    return [Change(name, None, value, f"as chosen in {tuned.file}") for name, value in tuned.choices.chosen.items()]


def _iterations_with(setting: Setting, key: str) -> list[str]:
    """Returns the setting's name in each iteration that states it itself, and would win over a change of the section."""
    place = tuple(key.split("."))
    found = []
    for each in setting.run.iterations:
        if place in each.tree.marks and each.tree.where(place) != setting.run.tree.where(place):
            found.append(f"iterations.{each.name}.{key}")
    return found


def _lines(tree: Mapping[str, Any], depth: int) -> list[str]:
    """Returns the tree as YAML, with the reason behind each value."""
    found = []
    for name, value in tree.items():
        if isinstance(value, Change):
            was = "" if value.before is None else f"{inline(value.before)} before: "
            found.append(f"{'  ' * depth}{name}: {inline(value.after)}  # {was}{value.why}")
        else:
            found += [f"{'  ' * depth}{name}:", *_lines(value, depth + 1)]
    return found
