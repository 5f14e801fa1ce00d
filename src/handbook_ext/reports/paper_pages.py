"""A printed table of a paper as Markdown, LaTeX, CSV or HTML: what we measured beside the paper's numbers, and the verdicts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from handbook_ext.core.errors import UserError
from handbook_ext.recipes.yaml_tree import nearest
from handbook_ext.reports.measurements import Filling, Lack
from handbook_ext.reports.page_cells import Page
from handbook_ext.reports.page_csv import as_csv
from handbook_ext.reports.page_environment import page_environment
from handbook_ext.reports.paper_footers import footers_of, lead_of
from handbook_ext.reports.paper_tables import PaperTable, unknown_measurements
from handbook_ext.reports.paper_verdicts import judged

QUOTED = "quoted"
_ARROWS = {"higher": "↑", "lower": "↓", None: ""}


@dataclass(frozen=True)
class Line:
    """A row of the page: what it is called, what stands for it, and its cells: the paper's text, ours, the released one's."""

    name: str
    recipe: str
    cells: list[tuple[str, str | None, str | None]]


def render_paper_table(
    table: PaperTable, form: str = "md", filling: Filling | None = None, remarks: Sequence[str] = (), appendix: str = ""
) -> str:
    """Returns a table as text in one of FORMATS; without a filling every cell of ours is `not run`.

    `remarks` are lines below it, `appendix` is what ends the page, in its format.
    Raises UserError for a format that there is not, or a value that belongs to no cell of ours.
    """
    if form not in FORMATS:
        raise UserError(f"no format is called '{form}'{nearest(form, FORMATS)}; there are: {', '.join(FORMATS)}")
    filling = completed(table, filling or Filling())
    for line in unknown_measurements(table, filling.ours):
        raise UserError(f"{line}; papers/{table.name}.yaml says which cells have a recipe")
    return FORMATS[form](Page(table, filling, judged(table, filling), remarks, appendix))


def completed(table: PaperTable, filling: Filling) -> Filling:
    """Returns a filling that does not say what stands for its cells with what the table says; cells without a value lack one."""
    if filling.stands:
        return filling
    stands = {key: stand for key in table.grid if (stand := table.stand(*key)) is not None}
    return replace(filling, stands=stands, lacks={key: Lack() for key in stands if key not in filling.ours} | {**filling.lacks})


def _lines(page: Page) -> dict[str, list[Line]]:
    """Returns the rows of the page by their group."""
    table, groups = page.table, dict[str, list[Line]]()
    of_row = {(key[0], key[1]): stand.words for key, stand in page.filling.stands.items() if stand.column is None}
    for group, row in table.rows:
        keys = [(group, row, column.name) for column in table.heading.columns]
        cells = [(table.grid[key].value, page.ours(key), page.released(key) if _with_released(page) else None) for key in keys]
        groups.setdefault(group, []).append(Line(row, of_row.get((group, row), QUOTED), cells))
    return groups


def _with_released(page: Page) -> bool:
    """Tells whether the page has columns of released checkpoints."""
    return page.filling.released is not None


def _notes(page: Page) -> list[str]:
    """Returns the notes below a table: its own, those of cells with where they stand, and recipes of single cells."""
    table = page.table
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
    single = [f"{key[1]}, {key[2]}: {stand.words}" for key, stand in page.filling.stands.items() if stand.column is not None]
    return [*table.heading.notes, *(f"{'; '.join(where)}: {note}." for note, where in places.items()), *single]


def _from_template(name: str) -> Callable[[Page], str]:
    """Returns what renders a table through a template beside."""

    def rendered(page: Page) -> str:
        """Returns the page of a table."""
        table = page.table
        context: Mapping[str, Any] = {
            "heading": table.heading, "heads": _heads(page), "groups": _lines(page), "notes": _notes(page), "name": table.name,
            "with_recipes": any(stand.column is None for stand in page.filling.stands.values()),
            "lead": lead_of(table, page.filling, page.verdicts),
            "footers": [*footers_of(table, page.filling), *page.remarks], "appendix": page.appendix,
        }  # fmt: skip
        return page_environment().get_template(name).render(context)

    return rendered


def _heads(page: Page) -> list[str]:
    """Returns the heads of the columns with unit and direction, each followed by its released one where there are such."""
    heads = []
    for column in page.table.heading.columns:
        unit = page.table.unit(column.name)
        heads.append(" ".join(filter(None, (f"{column.name}, {unit}" if unit else column.name, _ARROWS[column.better]))))
        heads += [f"{column.name}, released"] if _with_released(page) else []
    return heads


FORMATS: dict[str, Callable[[Page], str]] = {
    "md": _from_template("paper_table.md.j2"),
    "latex": _from_template("paper_table.tex.j2"),
    "csv": as_csv,
    "html": _from_template("paper_table.html.j2"),
}
