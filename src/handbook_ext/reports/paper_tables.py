"""The tables of the two papers as they are printed: the CSVs of `papers/`, checked, and what of them we measure ourselves.

A table is `papers/<name>.csv`, a line for each cell, and `papers/<name>.yaml`: its title, its columns in order, and which
policy of which recipe a row stands for. A row without one is quoted alone.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from importlib import resources
from importlib.resources.abc import Traversable
from typing import TypeVar

import yaml
from pydantic import ValidationError

from handbook_ext.core.errors import UserError
from handbook_ext.recipes.yaml_tree import nearest
from handbook_ext.reports.paper_headings import MATRIX, Heading, Stand

HEAD = ["row", "group", "column", "value", "unit", "source", "note"]
NONE = "-"  # What stands where a paper prints no number.
_OF_PAPERS = r"(selm|sera)\d+"
T = TypeVar("T")


@dataclass(frozen=True)
class Cell:
    """A printed cell: its value as it stands in the paper, `-` for none; `source` is where it stands."""

    row: str
    group: str
    column: str
    value: str
    unit: str
    source: str
    note: str

    @property
    def number(self) -> float | None:
        """The value as a number, or None where it is no number."""
        return float(self.value) if re.fullmatch(r"[-+]?\d+(\.\d+)?(e[-+]?\d+)?", self.value) else None

    @property
    def decimals(self) -> int:
        """How many decimals are printed."""
        return len(self.value.partition(".")[2]) if self.number is not None and "e" not in self.value else 0


@dataclass(frozen=True)
class PaperTable:
    """A printed table; its cells form a full grid of rows by columns."""

    name: str
    heading: Heading
    cells: tuple[Cell, ...]

    @cached_property
    def grid(self) -> dict[tuple[str, str, str], Cell]:
        """The cells by group, row and column."""
        return {(cell.group, cell.row, cell.column): cell for cell in self.cells}

    @property
    def rows(self) -> list[tuple[str, str]]:
        """Group and name of each row, in the printed order."""
        return list(dict.fromkeys((cell.group, cell.row) for cell in self.cells))

    def number(self, group: str, row: str, column: str) -> float:
        """Returns a printed number; a UserError where there is none."""
        cell = self.grid.get((group, row, column))
        if cell is None or cell.number is None:
            raise UserError(f"table {self.name} prints no number at '{group}', '{row}', '{column}'; see papers/{self.name}.csv")
        return cell.number

    def unit(self, column: str) -> str:
        """Returns the one unit of a column, or nothing."""
        return next(cell.unit for cell in self.cells if cell.column == column)

    def stand(self, group: str, row: str, column: str) -> Stand | None:
        """Returns what a cell is to be measured with; None for one that is quoted alone, or in which nothing is printed."""
        measured = next(each for each in self.heading.columns if each.name == column)
        # In a matrix a policy stands against itself on the diagonal, which is 50 by definition.
        if self.grid[group, row, column].value == NONE or measured.set is None or (measured.measure, column) == (MATRIX, row):
            return None
        of_row = [each for each in self.heading.stands if (each.group, each.row) == (group, row)]
        return next((each for each in of_row if each.column in (None, column)), None)


def paper_table_names(folder: Traversable | None = None) -> list[str]:
    """Returns the names of all printed tables: those of the papers in their order, then the rest."""
    names = [entry.name.removesuffix(".yaml") for entry in (folder or _folder()).iterdir() if entry.name.endswith(".yaml")]
    return sorted(names, key=lambda name: (not re.fullmatch(_OF_PAPERS, name), name))


def read_paper_table(name: str, folder: Traversable | None = None) -> PaperTable:
    """Returns a printed table by name; a UserError names those there are, or what is wrong in its files.

    The package's own tables are read once by a process.
    """
    return _delivered(name) if folder is None else _read(name, folder)


@lru_cache(maxsize=64)
def _delivered(name: str) -> PaperTable:
    """Returns a table of the package; nobody changes one."""
    return _read(name, _folder())


def _read(name: str, folder: Traversable) -> PaperTable:
    """Returns a table of a folder."""
    known = paper_table_names(folder)
    if name not in known:
        raise UserError(f"no table of the papers is called '{name}'{nearest(name, known)}; there are: {', '.join(known)}")
    heading = _heading(folder / f"{name}.yaml")
    with (folder / f"{name}.csv").open(encoding="utf-8") as file:
        lines = list(csv.reader(file))
    where = f"{name}.csv"
    if not lines or lines[0] != HEAD:
        raise UserError(f"{where}:1: the head must be {','.join(HEAD)}; correct the table")
    cells = []
    for number, line in enumerate(lines[1:], start=2):
        if len(line) != len(HEAD):
            raise UserError(f"{where}:{number}: has {len(line)} fields, not {len(HEAD)}; quote those with a comma")
        cells.append(Cell(*line))
    table = PaperTable(name, heading, tuple(cells))
    for mistake in _mistakes(table):
        raise UserError(f"{mistake}; correct the table")
    return table


def unknown_measurements(table: PaperTable, ours: Iterable[tuple[str, str, str]]) -> list[str]:
    """Returns a line for each value of ours that belongs to no cell which a recipe of ours stands for."""
    return [
        f"table {table.name} has no cell of ours at {', '.join(map(repr, key))}"
        for key in ours
        if key not in table.grid or table.stand(*key) is None
    ]


def _folder() -> Traversable:
    """Returns the folder of the tables inside the package, wherever it is installed."""
    return resources.files("handbook_ext.reports") / "papers"


def _heading(path: Traversable) -> Heading:
    """Returns a table's YAML; a UserError tells the first thing that is wrong in it."""
    try:
        return Heading.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except ValidationError as error:
        first = error.errors()[0]
        where = "".join(f"{part}: " for part in first["loc"])
        raise UserError(f"{path.name}: {where}{first['msg']}; correct the table") from None
    except yaml.YAMLError as error:
        raise UserError(f"{path.name}: is no YAML ({error}); correct the table") from None


def _mistakes(table: PaperTable) -> Iterator[str]:
    """Yields what is wrong between a table's cells, its columns and what stands for its rows."""
    where = f"{table.name}.csv"
    columns = [column.name for column in table.heading.columns]
    yield from (f"{table.name}.yaml: two columns are called '{name}'" for name in _twice(columns))
    yield from (f"{where}: two cells stand at {key}" for key in _twice([(c.group, c.row, c.column) for c in table.cells]))
    for cell in table.cells:
        at = f"{where}: '{cell.row}', '{cell.column}'"
        if cell.column not in columns:
            yield f"{at}: no column is called so{nearest(cell.column, columns)}"
        if not cell.value or not cell.source or not cell.row:
            yield f"{at}: row, value and source must not be empty"
    missing = ((*row, column) for row in table.rows for column in columns if (*row, column) not in table.grid)
    yield from (f"{where}: no cell stands at {key}; write {NONE} where the paper has none" for key in missing)
    for column in columns:
        if len(units := sorted({cell.unit for cell in table.cells if cell.column == column})) > 1:
            yield f"{where}: '{column}' has the units {' and '.join(map(repr, units))}, where one is meant"
    for stand in table.heading.stands:
        if (stand.group, stand.row) not in table.rows or stand.column not in (None, *columns):
            yield f"{table.name}.yaml: {stand.words} stands for '{stand.row}' of '{stand.group}', and no such cell is there"


def _twice(names: Sequence[T]) -> list[T]:
    """Returns the names that occur more than once."""
    return sorted({name for name in names if names.count(name) > 1}, key=str)
