"""Nested values of a recipe, each with the place where it is written, and laying one tree over another."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Key = tuple[str | int, ...]
"""The names, and positions in lists, that lead to a value of a recipe."""

# Settings of `model` that say where the policy comes from, and which others each of them replaces.
ORIGINS = {
    "name_or_path": ("architecture", "tokenizer_vocab_size", "chat_template", "revision", "package"),
    "architecture": ("name_or_path", "revision", "package"),
}


@dataclass(frozen=True)
class Mark:
    """Where a value is written; line 0 stands for a place that is no file."""

    file: Path
    line: int

    def __str__(self) -> str:
        """Returns `file:line`, the file relative to the current folder where it lies inside."""
        return f"{shown(self.file)}:{self.line}" if self.line else str(self.file)


@dataclass
class Tree:
    """Nested values, and the mark of each by its key; the key () is the recipe itself."""

    values: dict[str, Any]
    marks: dict[Key, Mark]

    def where(self, key: Key) -> Mark:
        """Returns the mark of a value, or of the nearest one around it."""
        while key not in self.marks:
            key = key[:-1]
        return self.marks[key]

    def without(self, *names: str) -> Tree:
        """Returns the tree without some names at its top."""
        values = {each: value for each, value in self.values.items() if each not in names}
        return Tree(values, {key: mark for key, mark in self.marks.items() if not key or key[0] not in names})

    def inside(self) -> Tree:
        """Returns the tree without the mark of its top, to be laid over another whose top stays where it is."""
        return Tree(self.values, {key: mark for key, mark in self.marks.items() if key})

    def below(self, key: Key) -> Tree:
        """Returns the mapping at a key as a tree of its own."""
        values: Any = self.values
        for name in key:
            values = values[name]
        marks = {place[len(key) :]: mark for place, mark in self.marks.items() if place[: len(key)] == key}
        return Tree(values, {(): self.where(key), **marks})


def shown(path: Path) -> str:
    """Returns a path without detours, relative to the current folder when it lies inside, else absolute."""
    full = Path(os.path.abspath(path))
    return str(full.relative_to(Path.cwd())) if full.is_relative_to(Path.cwd()) else str(full)


def merged(parent: Tree, child: Tree) -> Tree:
    """Returns the child over the parent: mappings merge, everything else replaces, lists whole.

    The child's origin of the policy, a checkpoint or an architecture, takes the place of the parent's and what belongs to it.
    """
    return laid(cleared(parent, child), child)


def cleared(parent: Tree, child: Tree) -> Tree:
    """Returns the parent with null for what the child's origin of the policy replaces, marked where the child states that."""
    own, inherited = child.values.get("model"), parent.values.get("model")
    if not (isinstance(own, dict) and isinstance(inherited, dict)):
        return parent
    values, marks = dict(inherited), dict(parent.marks)
    for origin, replaced in ORIGINS.items():
        if own.get(origin) is None:
            continue
        for name in replaced:
            # A checkpoint's own template may be a choice for whatever comes; one of an architecture is a part of it.
            kept = name == "chat_template" and inherited.get("architecture") is None
            if name in own or inherited.get(name) is None or kept:
                continue
            for key in [key for key in marks if key[:2] == ("model", name)]:
                del marks[key]
            values[name], marks["model", name] = None, child.where(("model", origin))
    return Tree({**parent.values, "model": values}, marks)


def laid(parent: Tree, child: Tree) -> Tree:
    """Returns the child over the parent as it stands, the origin of the policy like any other setting."""
    marks = dict(parent.marks)
    values = _overlaid(parent.values, child.values, (), marks)
    return Tree(values, {**marks, **child.marks})


def _overlaid(below: Any, above: Any, key: Key, marks: dict[Key, Mark]) -> Any:
    """Returns the merged value; marks of what is replaced are removed."""
    if isinstance(below, dict) and isinstance(above, dict):
        result = dict(below)
        for name, value in above.items():
            result[name] = _overlaid(below.get(name), value, (*key, name), marks)
        return result
    marks.pop(key, None)
    if isinstance(below, dict | list):  # Only these have marks of what is inside.
        for place in [place for place in marks if place[: len(key)] == key]:
            del marks[place]
    return above
