"""What a run has over its recipe: variants, `SET=` and `DATA=` of the command line, `set:` of a table's row.

There is one mechanism: each is a small tree laid over the recipe before anything is checked, so that a mistake in it is told as
one in a recipe is. What overrides a recipe is in the run's name, and so in its folder.
"""

from __future__ import annotations

import hashlib
import os
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from handbook_ext.core.errors import UserError
from handbook_ext.recipes.settings import DATA_SUFFIXES
from handbook_ext.recipes.tree import Key, Mark, Tree, cleared, laid
from handbook_ext.recipes.yaml_loader import Dumper
from handbook_ext.recipes.yaml_tree import parsed_value

LONGEST_NAME = 120  # Of a folder's name most file systems take 255 bytes; seeds and hidden copies need some of them.
_SETTING = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")


@dataclass(frozen=True)
class Override:
    """One setting by its dotted name, its value, where that was said, and what it is called in the name of a run."""

    key: Key
    value: Any
    source: str
    label: str

    @property
    def text(self) -> str:
        """Returns the override as one would write it in SET."""
        return f"{'.'.join(map(str, self.key))}={inline(self.value)}"


def parse_set(text: str, source: str = "SET") -> list[Override]:
    """Returns the overrides of a text such as `train.beta=0.5 select.keep=0.5`; a value is YAML, quoted where it has blanks.

    Raises:
        UserError: a part is no `setting=value`, or a setting is given twice.

    """
    try:
        parts = shlex.split(text)
    except ValueError as error:
        raise UserError(f'{source}: {text!r} cannot be read ({error}); write it as {source}="train.beta=0.5"') from None
    values: dict[str, Any] = {}
    for part in parts:
        name, equals, value = part.partition("=")
        if not equals or not _SETTING.fullmatch(name):
            raise UserError(f"{source}: {part!r} is no setting=value, such as train.beta=0.5; several are parted by blanks")
        if name in values:
            raise UserError(f"{source}: {name} is given twice; give it once")
        values[name] = parsed_value(value, source)
    return from_mapping(values, source)


def from_mapping(values: Mapping[str, Any], source: str) -> list[Override]:
    """Returns overrides from dotted names, as a table's row has them, ordered by name: their order means nothing."""
    for name in values:
        if not _SETTING.fullmatch(name):
            raise UserError(f"{source}: {name!r} is no name of a setting, such as train.beta; correct it")
    return [
        Override(tuple(name.split(".")), value, source, _label(f"{name}-{inline(value)}"))
        for name, value in sorted(values.items())
    ]


def parse_data(folder: str, source: str = "DATA") -> list[Override]:
    """Returns the overrides that read train, test and, where it is there, sft from a folder's files.

    Raises UserError where the folder or one of the first two files is missing, or one is there in two formats.
    """
    path = Path(folder)
    if folder.encode("utf-8", "replace").decode() != folder:
        raise UserError(f"{source}: {folder!r} is not UTF-8, and no settings file can hold it; rename the folder")
    if not os.path.isdir(path):  # False as well for what is too long to be a name.
        raise UserError(f"{source}: {folder!r} is no folder; give one that holds train.jsonl and test.jsonl (or .parquet)")
    digest = hashlib.sha256(str(path.resolve()).encode("utf-8", "surrogateescape")).hexdigest()[:6]
    found = []
    for name in ("train", "test", "sft"):
        files = [path / f"{name}{suffix}" for suffix in DATA_SUFFIXES if (path / f"{name}{suffix}").is_file()]
        if len(files) > 1:
            raise UserError(f"{source}: {folder!r} has {' and '.join(each.name for each in files)}; keep one of them")
        if not files and name != "sft":
            raise UserError(f"{source}: {folder!r} has no {name}.jsonl, {name}.json or {name}.parquet; put one there")
        found += [(name, str(each)) for each in files]
    label = _label(f"data-{path.resolve().name}", digest)
    return [Override(("data", name), value, source, label) for name, value in found]


def laid_over(tree: Tree, overrides: Sequence[Override]) -> Tree:
    """Returns the recipe's tree with the overrides over it; each keeps where it was said."""
    trees = [_tree_of(each) for each in overrides]
    stated = Tree({}, {})
    for each in trees:
        stated = laid(stated, each)
    # All of them at once: the package that stands beside a checkpoint is not what the checkpoint replaces.
    tree = cleared(tree, stated)
    for each in trees:
        tree = laid(tree, each)
    return tree


def _tree_of(override: Override) -> Tree:
    """Returns an override as a tree of one value."""
    values: Any = override.value
    for name in reversed(override.key):
        values = {name: values}
    mark = Mark(Path(f"{override.source} {'.'.join(map(str, override.key))}"), 0)
    return Tree(values, {override.key[:depth]: mark for depth in range(1, len(override.key) + 1)})


def labels_of(overrides: Sequence[Override]) -> str:
    """Returns what overrides add to the name of a run: `+train.beta-0.5`, each label once, cut to a hash where it is too long."""
    name = "".join(f"+{label}" for label in dict.fromkeys(each.label for each in overrides))
    if len(name.encode()) <= LONGEST_NAME:
        return name
    return f"+set-{hashlib.sha256(name.encode()).hexdigest()[:12]}"


def inline(value: Any) -> str:
    """Returns a value as YAML on one line."""
    text: str = yaml.dump(value, Dumper=Dumper, default_flow_style=True, allow_unicode=True, width=1_000_000)
    return text.removesuffix("...\n").strip()


def _label(text: str, digest: str | None = None) -> str:
    """Returns text with nothing in it that make, a shell or a file system minds; a hash tells apart what this makes equal."""
    slug = re.sub(r"[^\w.,-]+", "_", text, flags=re.ASCII)
    # What ends like a seed is spelt otherwise too: the name of a run ends so.
    if digest is None and (slug != text or re.search(r"-seed\d+$", slug)):
        digest = hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:10]
    return slug if digest is None else f"{slug}-{digest}"
