"""Recipe files: YAML in which every value keeps its file and line, with one parent each by `base:`."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from stat import S_ISREG
from typing import Any

import yaml

from handbook_ext.core.errors import UserError
from handbook_ext.recipes.tree import Key, Mark, Tree, merged, shown
from handbook_ext.recipes.yaml_loader import loaded

__all__ = ["Key", "Mark", "Tree", "merged", "nearest", "parsed_value", "read_recipe", "read_yaml", "shown"]

FILE_KEYS = ("base", "paper")  # What a file says of itself; its children do not inherit it.
LARGEST = 250_000  # Bytes of a recipe: the largest that comes with this project has 10,000.


def nearest(name: str, names: Iterable[str], likeness: float = 0.5) -> str:
    """Returns " (did you mean 'x'?)" for the most similar name, or nothing where none is similar enough."""
    close = difflib.get_close_matches(name, list(names), n=1, cutoff=likeness)
    return f" (did you mean '{close[0]}'?)" if close else ""


def read_recipe(path: Path) -> Tree:
    """Returns a recipe file merged over its chain of bases.

    Raises:
        UserError: a file is missing or not valid YAML, or the bases form a cycle.

    """
    trees: list[Tree] = []
    seen: list[str] = []
    place: Path | None = path
    while place is not None:
        seen.append(shown(place))
        tree = read_yaml(place)
        trees.append(tree)
        place = _parent(tree, place)
        if place is not None and shown(place) in seen:
            circle = " -> ".join([*seen[seen.index(shown(place)) :], shown(place)])
            raise UserError(f"{tree.where(('base',))}: the bases form a cycle ({circle}); remove one `base:`")
    result = Tree({}, {})
    while trees:
        child = trees.pop()
        _check_removals(result, child)
        result = merged(result, child)
    return result.without(*FILE_KEYS)


def _check_removals(parent: Tree, child: Tree) -> None:
    """Raises when null, which removes an inherited iteration, stands where there is none."""
    own, inherited = child.values.get("iterations"), parent.values.get("iterations")
    for name, value in own.items() if isinstance(own, dict) else []:
        if value is None and not (isinstance(inherited, dict) and name in inherited):
            raise UserError(
                f"{child.where(('iterations', name))}: iterations.{name} is empty and no base has one to remove; "
                f"write `{name}: {{}}` for an iteration without changes"
            )


def _parent(tree: Tree, path: Path) -> Path | None:
    """Returns the file that `base:` names, or None."""
    if "base" not in tree.values:
        return None
    base, mark = tree.values["base"], tree.where(("base",))
    if not isinstance(base, str):
        raise UserError(f"{mark}: base must be the path of one recipe file, such as ../tiny/base.yaml")
    parent = Path(os.path.normpath(path.parent / base))
    if os.path.isfile(parent):
        return parent
    known = [os.path.relpath(file, path.parent) for file in sorted(path.parent.parent.glob("*/*.yaml"))]
    choices = ", ".join(name for name in known if name.endswith("base.yaml") and "accelerate" not in name) or "none"
    raise UserError(
        f"{mark}: base '{base}' does not exist: no file {shown(parent)}{nearest(base, known, 0.75)}; "
        f"base files seen from here: {choices}"
    )


def read_yaml(path: Path) -> Tree:
    """Returns one YAML file as a tree, without its base; a file that did not change is parsed once by a process.

    Raises:
        UserError: the file cannot be read, is not valid YAML, repeats a key, or is not a mapping.

    """
    try:
        stat = path.stat()
        if not S_ISREG(stat.st_mode):
            raise UserError(f"{shown(path)}: cannot be read (it is no file); check the path")
        if stat.st_size > LARGEST:
            raise UserError(
                f"{shown(path)}: has {stat.st_size:,} bytes, and a recipe at most {LARGEST:,}; data belong in files of their own"
            )
        tree = _read_yaml(path, stat.st_mtime_ns, stat.st_size)
    except (OSError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        reason = error.strerror if isinstance(error, OSError) else error
        raise UserError(f"{shown(path)}: cannot be read ({reason}); check the path") from None
    return Tree(dict(tree.values), dict(tree.marks))


@lru_cache(maxsize=512)
def _read_yaml(path: Path, mtime_ns: int, size: int) -> Tree:
    """Returns the tree of a file of that time and size; nobody changes a tree."""
    marks: dict[Key, Mark] = {(): Mark(path, 1)}
    text = ""
    try:
        text = path.read_text(encoding="utf-8")
        values = loaded(text, path, marks)
    except UnicodeDecodeError as error:
        raise UserError(f"{shown(path)}:1: is not UTF-8 text (byte {error.start}); save it as UTF-8") from None
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise UserError(f"{shown(path)}:{line}: is not valid YAML ({error.problem}); repair this line") from None
    except yaml.reader.ReaderError as error:
        line = 1 + text[: error.position].count("\n")
        raise UserError(f"{shown(path)}:{line}: is not valid YAML ({error.reason}); repair this line") from None
    if values is None:
        values = {}
    if not isinstance(values, dict):
        raise UserError(f"{shown(path)}:1: is not a mapping; a recipe is lines of `section: {{key: value}}`")
    return Tree(values, marks)


def parsed_value(text: str, source: str) -> Any:
    """Returns what a text says as a value of a recipe; a UserError begins with its source where it is not valid YAML."""
    try:
        return loaded(text, Path(source), {})
    except (yaml.MarkedYAMLError, yaml.reader.ReaderError):
        raise UserError(f"{source}: {text!r} is no value in YAML; quote it") from None


def dotted(key: Key) -> str:
    """Returns a key as a reader writes it: evaluate.temperatures[0]."""
    return "".join(f"[{name}]" if isinstance(name, int) else f".{name}" for name in key).lstrip(".")
