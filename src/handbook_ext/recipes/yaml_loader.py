"""YAML as recipes have it: numbers of YAML 1.2, no tags, no merge keys, and bounds on depth, digits and repetition."""

from __future__ import annotations

import re
from pathlib import Path

import yaml

from handbook_ext.core.errors import UserError
from handbook_ext.recipes.tree import Key, Mark

DEEPEST, MOST, DIGITS = 16, 20_000, 18
"""Of a file: how deep its values are nested, how many there are once aliases are written out, and digits of a whole number."""
_PREFIX = "tag:yaml.org,2002:"
_PLAIN_TAGS = {f"{_PREFIX}{name}" for name in ("map", "seq")}
# Dates, `=` and `<<` are text for us; numbers are resolved below.
_DROPPED = {f"{_PREFIX}{name}" for name in ("float", "int", "timestamp", "value", "merge")}
_FLOAT = re.compile(
    r"^(?:[-+]?(?:\.[0-9]+|[0-9]+\.[0-9]*)(?:[eE][-+]?[0-9]+)?"
    r"|[-+]?[0-9]+[eE][-+]?[0-9]+|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"
)
# Neither 12:30, which YAML 1.1 takes for 750, nor 010, which it takes for 8.
_INT = re.compile(r"^[-+]?(?:0|[1-9][0-9_]*|0x[0-9a-fA-F][0-9a-fA-F_]*)$")


class _Loader(yaml.SafeLoader):
    """PyYAML with numbers as YAML 1.2 has them: it reads 5e-7 as text, and a date is text for us."""

    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        """Returns the next node; refuses nesting before PyYAML, which recurses, runs out of stack."""
        self.depth += 1
        if self.depth > DEEPEST + 2:  # The mapping of sections, and a value's name.
            mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
            raise yaml.MarkedYAMLError(problem=f"nested more than {DEEPEST} deep", problem_mark=mark)
        node: yaml.Node | None = super().compose_node(parent, index)
        self.depth -= 1
        return node


_Loader.yaml_implicit_resolvers = {
    first: kept
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    if (kept := [(tag, pattern) for tag, pattern in resolvers if tag not in _DROPPED])
}
_Loader.add_implicit_resolver(f"{_PREFIX}float", _FLOAT, list("-+.0123456789"))
_Loader.add_implicit_resolver(f"{_PREFIX}int", _INT, list("-+0123456789"))


class Dumper(yaml.CSafeDumper):
    """Writes values so that both this loader and YAML's own read them back: text that looks like a number is quoted."""


Dumper.yaml_implicit_resolvers = {first: list(each) for first, each in yaml.SafeDumper.yaml_implicit_resolvers.items()}
Dumper.add_implicit_resolver(f"{_PREFIX}float", _FLOAT, list("-+.0123456789"))


def loaded(text: str, path: Path, marks: dict[Key, Mark]) -> object:
    """Returns what a text says; notes in `marks` where each value under it is written.

    Raises:
        yaml.MarkedYAMLError, yaml.reader.ReaderError: it is no YAML.
        UserError: it is YAML, but not as recipes have it; the message begins with file and line.

    """
    loader = _Loader(text)
    node = loader.get_single_node()
    return None if node is None else _Reader(loader, path, marks).value(node, ())


class _Reader:
    """Turns the nodes of one text into values."""

    def __init__(self, loader: _Loader, path: Path, marks: dict[Key, Mark]) -> None:
        """Takes the loader that composed the nodes, and where to note the place of each value."""
        self.loader, self.path, self.marks, self.count = loader, path, marks, 0

    def value(self, node: yaml.Node, key: Key) -> object:
        """Returns what a node says."""
        here = self._mark(node)
        self.count += 1
        if self.count > MOST:
            raise UserError(f"{here}: has more than {MOST:,} values with its aliases written out; a recipe has some hundred")
        if len(key) > DEEPEST:
            raise UserError(f"{here}: is nested more than {DEEPEST} deep; a recipe has sections of settings")
        if isinstance(node, yaml.ScalarNode):
            return self._scalar(node, here)
        if node.tag not in _PLAIN_TAGS:
            raise _tagged(node, here)
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, key)
        items = []
        for position, item in enumerate(node.value):
            self.marks[(*key, position)] = self._mark(item)
            items.append(self.value(item, (*key, position)))
        return items

    def _mapping(self, node: yaml.MappingNode, key: Key) -> dict[str, object]:
        """Returns a mapping whose names are words, each written once."""
        values: dict[str, object] = {}
        for name_node, value_node in node.value:
            mark = self._mark(name_node)
            name = self._scalar(name_node, mark) if isinstance(name_node, yaml.ScalarNode) else None
            if not isinstance(name, str):
                raise UserError(f"{mark}: a name of a section or setting must be a word; put it in quotes if it is one")
            if name == "<<" and name_node.style is None:
                raise UserError(f"{mark}: has a merge key (<<); recipes have none: write the settings, or name a `base:`")
            if name in values:
                first = self.marks[(*key, name)].line
                raise UserError(f"{mark}: '{name}' is written twice (first on line {first}); keep one of the two")
            scalar = isinstance(value_node, yaml.ScalarNode) and value_node.value
            self.marks[(*key, name)] = self._mark(value_node) if scalar else mark
            values[name] = self.value(value_node, (*key, name))
        return values

    def _scalar(self, node: yaml.ScalarNode, here: Mark) -> object:
        """Returns a value that is no list or mapping."""
        plain = node.style is None
        resolved = self.loader.resolve(yaml.ScalarNode, node.value, (plain, not plain))  # type: ignore[no-untyped-call]
        if node.tag != resolved:
            raise _tagged(node, here)
        if node.tag == f"{_PREFIX}int" and len(node.value) > DIGITS:
            raise UserError(f"{here}: a number of {len(node.value)} digits is more than any setting takes; correct it")
        return self.loader.construct_object(node)

    def _mark(self, node: yaml.Node) -> Mark:
        """Returns where a node begins."""
        return Mark(self.path, node.start_mark.line + 1)


def _tagged(node: yaml.Node, here: Mark) -> UserError:
    """Returns the error for a tag, which would make another type of a value."""
    return UserError(f"{here}: has a YAML tag ({node.tag}); recipes use none: write the value alone")
