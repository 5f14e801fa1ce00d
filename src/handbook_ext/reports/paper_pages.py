"""A printed table of a paper as Markdown, LaTeX, CSV or HTML, with what we measured beside the paper's numbers."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import jinja2

from handbook_ext.core.errors import UserError
from handbook_ext.recipes.yaml_tree import nearest
from handbook_ext.reports.paper_tables import Cell, Measurement, Ours, PaperTable, unknown_measurements

NOT_RUN = "not run"
QUOTED = "quoted"
NOTHING: Ours = MappingProxyType({})
CSV_HEAD = [
    "group", "row", "column", "unit", "paper", "source", "note", "recipe", "policy", "ours", "low", "high", "difference"
]  # fmt: skip
_ARROWS = {"higher": "↑", "lower": "↓", None: ""}
_LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}",
    "[": "{[}", "]": "{]}", "\u2021": r"\ddag{}", "\u2191": r"$\uparrow$", "\u2193": r"$\downarrow$", "\n": " ",
}  # fmt: skip


@dataclass(frozen=True)
class Line:
    """A row of the page: what it is called, what stands for it, and its cells as the paper's text and ours (or None)."""

    name: str
    recipe: str
    cells: list[tuple[str, str | None]]


def render_paper_table(table: PaperTable, form: str = "md", ours: Ours = NOTHING) -> str:
    """Returns a table as text in one of FORMATS; `ours` are our values by group, row and column, the rest is `not run`.

    Raises UserError for a format that there is not, or a value that belongs to no cell of ours.
    """
    if form not in FORMATS:
        raise UserError(f"no format is called '{form}'{nearest(form, FORMATS)}; there are: {', '.join(FORMATS)}")
    for line in unknown_measurements(table, ours):
        raise UserError(f"{line}; papers/{table.name}.yaml says which cells have a recipe")
    return FORMATS[form](table, ours)


def latex_escaped(text: object) -> str:
    """Returns text that LaTeX prints as it stands."""
    return "".join(_LATEX.get(letter, letter) for letter in str(text))


def markdown_escaped(text: object) -> str:
    """Returns text that Markdown prints as it stands, in the cell of a table too."""
    return re.sub(r"([\\`*_<|])", r"\\\1", str(text)).replace("\n", " ")


def ours_in_words(cell: Cell, measured: Measurement | None) -> str:
    """Returns our value with its interval and its difference to the paper's, with the paper's decimals; or `not run`."""
    if measured is None or cell.number is None:
        return NOT_RUN
    digits = cell.decimals
    value, low, high = (f"{number:.{digits}f}" for number in (measured.value, measured.low, measured.high))
    return f"{value} [{low}, {high}], {measured.value - cell.number:+.{digits}f}"


def _lines(table: PaperTable, ours: Ours) -> dict[str, list[Line]]:
    """Returns the rows of the page by their group."""
    groups: dict[str, list[Line]] = {}
    by_row = {(stand.group, stand.row): stand.words for stand in table.heading.stands if stand.column is None}
    for group, row in table.rows:
        cells = []
        for column in table.heading.columns:
            key = (group, row, column.name)
            stands = table.stand(*key) is not None
            cells.append((table.grid[key].value, ours_in_words(table.grid[key], ours.get(key)) if stands else None))
        groups.setdefault(group, []).append(Line(row, by_row.get((group, row), QUOTED), cells))
    return groups


def _notes(table: PaperTable) -> list[str]:
    """Returns the notes below a table: its own, those of cells with where they stand, and recipes of single cells."""
    columns = [column.name for column in table.heading.columns]
    places: dict[str, list[str]] = {}
    for group, row in table.rows:
        name = f"{row} ({group})" if group else row
        noted: dict[str, list[str]] = {}
        for column in columns:
            if note := table.grid[group, row, column].note:
                noted.setdefault(note, []).append(column)
        for note, where in noted.items():
            places.setdefault(note, []).append(name if where == columns else f"{name}: {', '.join(where)}")
    single = [f"{stand.row}, {stand.column}: {stand.words}" for stand in table.heading.stands if stand.column is not None]
    return [*table.heading.notes, *(f"{'; '.join(where)}: {note}." for note, where in places.items()), *single]


def _from_template(name: str) -> Callable[[PaperTable, Ours], str]:
    """Returns what renders a table through a template beside."""

    def rendered(table: PaperTable, ours: Ours) -> str:
        """Returns the page of a table."""
        pages = jinja2.Environment(
            loader=jinja2.PackageLoader("handbook_ext.reports"), trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True,
            autoescape=jinja2.select_autoescape(["html.j2"], default=False), undefined=jinja2.StrictUndefined,
        )  # fmt: skip
        pages.filters |= {"latex": latex_escaped, "md": markdown_escaped}
        heads = [" ".join(filter(None, (_in_unit(c.name, table.unit(c.name)), _ARROWS[c.better]))) for c in table.heading.columns]
        context: Mapping[str, Any] = {
            "heading": table.heading, "heads": heads, "groups": _lines(table, ours), "notes": _notes(table), "name": table.name,
            "with_recipes": any(stand.column is None for stand in table.heading.stands),
        }  # fmt: skip
        return pages.get_template(name).render(context)

    return rendered


def _in_unit(name: str, unit: str) -> str:
    """Returns the head of a column with its unit."""
    return f"{name}, {unit}" if unit else name


def _as_csv(table: PaperTable, ours: Ours) -> str:
    """Returns a line for each cell: the paper's value, what stands for it, and ours; quoted cells have nothing of ours."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(CSV_HEAD)
    for (group, row, column), cell in table.grid.items():
        stand, measured = table.stand(group, row, column), ours.get((group, row, column))
        numbers: list[object] = ["" if stand is None else NOT_RUN, "", "", ""]
        if measured is not None and cell.number is not None:
            # Twelve digits hold every decimal of either number and none of the noise of their difference.
            numbers = [measured.value, measured.low, measured.high, f"{measured.value - cell.number:.12g}"]
        whose = ["", ""] if stand is None else [stand.recipe, stand.policy or "last"]
        writer.writerow([group, row, column, cell.unit, cell.value, cell.source, cell.note, *whose, *numbers])
    return text.getvalue()


FORMATS: dict[str, Callable[[PaperTable, Ours], str]] = {
    "md": _from_template("paper_table.md.j2"),
    "latex": _from_template("paper_table.tex.j2"),
    "csv": _as_csv,
    "html": _from_template("paper_table.html.j2"),
}
