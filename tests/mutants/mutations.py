"""Mutants of a module: its source with one small change each, made by the operators of mutmut."""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import libcst as cst
import libcst.matchers as m
from libcst.metadata import MetadataWrapper, PositionProvider
from mutmut.mutation.mutators import mutation_operators, operator_string

# Arguments that guard against other code's mistakes, or fix what a platform would otherwise choose.
GUARD = m.Arg(keyword=m.Name("strict") | m.Name("encoding"))
# What no test of behaviour could tell: annotations and type aliases, decorators, imports and exports, guards, and the fields of
# settings, which carry descriptions. Calls of len and isinstance are left out as in mutmut: a change there fails at once.
UNTOUCHED = (
    m.Annotation() | m.Decorator() | m.Import() | m.ImportFrom() | GUARD
    | m.Call(func=m.Name("len") | m.Name("isinstance") | m.Name("TypeVar"))
    | m.AnnAssign(value=m.Call(func=m.Name("Field")))
    | m.Assign(targets=[m.AssignTarget(m.Name(m.MatchRegex(r"[A-Z][a-z]\w*|[A-Z]|__all__")))])
)  # fmt: skip


@dataclass(frozen=True)
class Mutant:
    """A module's whole source after one change; `before` and `after` are the changed lines, without their indentation."""

    file: str
    function: str
    before: str
    after: str
    source: str = field(default="", repr=False, compare=False)

    @property
    def key(self) -> tuple[str, str, str, str]:
        """Returns what tells a mutant from others, whatever its line's number."""
        return self.file, self.function, self.before, self.after

    @property
    def diff(self) -> str:
        """Returns the change, its place first."""
        lines = [f"{sign} {line}" for sign, text in (("-", self.before), ("+", self.after)) for line in text.splitlines()]
        return "\n".join([f"{self.file}, {self.function}", *lines])


class Candidates(cst.CSTVisitor):
    """The changes that the operators of mutmut make in one module; `found` holds (line, node, changed node)."""

    METADATA_DEPENDENCIES = (PositionProvider,)

    def __init__(self, file: str, source: str) -> None:
        """Collects the changes; none is applied yet, which takes longer. Text with blanks is prose, and left alone."""
        super().__init__()
        self.file, self.source = file, source
        self.found: list[tuple[int, cst.CSTNode, Any]] = []
        wrapper = MetadataWrapper(cst.parse_module(source))
        wrapper.visit(self)
        self.module, self.tree = wrapper.module, ast.parse(source)

    def on_visit(self, node: cst.CSTNode) -> bool:
        """Collects the changes of one node; returns whether to look into its children."""
        if m.matches(node, UNTOUCHED):
            return False
        for kind, operator in mutation_operators:
            if isinstance(node, kind) and not (operator is operator_string and " " in getattr(node, "value", "")):
                for changed in operator(node):
                    if isinstance(node, cst.Call) and isinstance(changed, cst.Call) and _unguarded(node, changed):
                        continue
                    self.found.append((self.get_metadata(PositionProvider, node).start.line, node, changed))
        return True

    def mutant(self, number: int) -> Mutant | None:
        """Returns the mutant of a change, or None where it does not compile or means the same."""
        _, node, changed = self.found[number]
        source = self.module.deep_replace(node, changed).code
        try:
            tree = ast.parse(source)
            compile(tree, self.file, "exec", dont_inherit=True)
        except SyntaxError:
            return None
        if ast.dump(tree) == ast.dump(self.tree):
            return None
        return mutant_of(self.file, self.source, source)


def mutant_of(file: str, original: str, source: str) -> Mutant:
    """Returns the mutant that turns the original source into another one."""
    old, new = ([line.strip() for line in text.splitlines()] for text in (original, source))
    head = _equal(old, new)
    tail = _equal(old[head:][::-1], new[head:][::-1])
    before, after = ("\n".join(lines[head : len(lines) - tail]) for lines in (old, new))
    return Mutant(file, function_at(ast.parse(original), head + 1), before, after, source)


def sample(root: Path, targets: dict[str, Collection[str]], seed: int) -> Iterator[Mutant]:
    """Yields the distinct mutants of files under `root` in a random order; of each file only the named functions, if any.

    The draw of a mutant follows from the seed, its file and its number there: a change in one file leaves the others' draws.
    """
    modules = {file: Candidates(file, (root / file).read_text(encoding="utf-8")) for file in targets}
    drawn = [
        (hashlib.sha256(f"{seed} {file} {number}".encode()).digest(), file, number)
        for file, module in modules.items()
        for number, (line, _, _) in enumerate(module.found)
        if not targets[file] or function_at(module.tree, line).partition(".")[0] in targets[file]
    ]
    seen = set()
    for _, file, number in sorted(drawn):
        mutant = modules[file].mutant(number)
        if mutant is not None and mutant.key not in seen:
            seen.add(mutant.key)
            yield mutant


def function_at(tree: ast.AST, line: int) -> str:
    """Returns the innermost function or class of a line, as Class.method, or <module>."""
    name = ""
    for node in ast.walk(tree):  # an outer one comes before its inner ones
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            first = min([node.lineno, *(each.lineno for each in node.decorator_list)])
            if first <= line <= (node.end_lineno or first):
                name = f"{name}.{node.name}".lstrip(".")
    return name or "<module>"


def _equal(old: list[str], new: list[str]) -> int:
    """Returns how many lines are equal from the start on."""
    return next((number for number, (a, b) in enumerate(zip(old, new, strict=False)) if a != b), min(len(old), len(new)))


def _unguarded(call: cst.Call, changed: cst.Call) -> bool:
    """Returns whether two calls differ by nothing but guards."""
    calls = (
        each.with_changes(
            args=[arg.with_changes(comma=cst.MaybeSentinel.DEFAULT) for arg in each.args if not m.matches(arg, GUARD)]
        )
        for each in (call, changed)
    )
    return next(calls).deep_equals(next(calls))
