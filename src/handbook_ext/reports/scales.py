"""Which runs stand for the cells of a printed table: those of the paper's own models, or of another one."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from handbook_ext.core.errors import UserError
from handbook_ext.recipes.names import RECIPES
from handbook_ext.recipes.table_files import read_table, table_names
from handbook_ext.recipes.yaml_tree import nearest
from handbook_ext.reports.measurements import Key
from handbook_ext.reports.paper_headings import Stand
from handbook_ext.reports.paper_tables import PaperTable, read_paper_table


@dataclass(frozen=True)
class Stands:
    """The recipe and policy of ours for each cell that has one; `of_paper` tells whether they are at the paper's scale."""

    cells: dict[Key, Stand]
    of_paper: bool = True


def stands_of(table: PaperTable, model: str | None = None, root: Path = RECIPES) -> Stands:
    """Returns what stands for a table's cells: all that the table names, those of one model, or what stands there for another.

    Raises UserError for a model that stands for no cell.
    """
    cells = {key: stand for key in table.grid if (stand := table.stand(*key)) is not None}
    if model is None:
        return Stands(cells)
    named = sorted({model_of(stand.recipe) for stand in cells.values()})
    if model in named:
        return Stands({key: stand for key, stand in cells.items() if model_of(stand.recipe) == model})
    here = _counterparts_in(table, model, root)
    found = {key: stand.model_copy(update={"recipe": here[stand.recipe]}) for key, stand in cells.items() if stand.recipe in here}
    if not found:
        serving = [each for each in sorted({path.parent.name for path in root.glob("*/*.yaml")}) if _serves(table, each, root)]
        known = list(dict.fromkeys([*named, *serving]))
        raise UserError(
            f"MODEL={model}: no recipe of it stands for a row of table {table.name}{nearest(model, known)}; there are: "
            f"{', '.join(known) or 'none'}"
        )
    return Stands(found, of_paper=False)


def counterparts(model: str, root: Path = RECIPES) -> dict[str, dict[str, str]]:
    """Returns by printed table the recipe of a model by that at paper scale beside which recipes/tables puts it."""
    found: dict[str, dict[str, str]] = {}
    for name in table_names(root, model):
        for row in read_table(name, root, model).rows:
            if row.printed is not None and not row.set:
                stand = _stand_of(row.printed.table, row.printed.group, row.printed.row, row.printed.column)
                if stand is not None:
                    found.setdefault(row.printed.table, {}).setdefault(stand.recipe, row.recipe)
    return found


def model_of(recipe: str) -> str:
    """Returns the model of a recipe: its folder in recipes/."""
    return recipe.partition("-")[0]


def _stand_of(table: str, group: str, row: str, column: str) -> Stand | None:
    """Returns what stands for a printed row, also where the cell itself is empty."""
    of_row = [each for each in read_paper_table(table).heading.stands if (each.group, each.row) == (group, row)]
    return next((each for each in of_row if each.column in (None, column)), None)


def _counterparts_in(table: PaperTable, model: str, root: Path) -> dict[str, str]:
    """Returns the counterparts for one table: those put beside it, or where none are, beside any other."""
    by_table = counterparts(model, root)
    # Where a model stands for others only in some table, as tiny for Mistral in table 6, it does so there alone.
    return by_table.get(table.name) or {old: new for each in by_table.values() for old, new in each.items()}


def _serves(table: PaperTable, model: str, root: Path) -> bool:
    """Returns whether recipes of a model stand for rows of a table."""
    here = _counterparts_in(table, model, root)
    return any(stand.recipe in here for stand in table.heading.stands)
