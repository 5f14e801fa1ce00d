"""The papers' numbers beside the rows of a table of ours: read from the printed tables, typed nowhere."""

from __future__ import annotations

from handbook_ext.core.errors import UserError
from handbook_ext.recipes.table_files import Table
from handbook_ext.recipes.table_rows import Claim, PaperCell
from handbook_ext.reports.paper_tables import NONE, read_paper_table


def with_paper_numbers(table: Table) -> Table:
    """Returns the table with the paper's number in each row that is printed, and both numbers behind a claim that has them.

    Raises UserError where a row names a cell that no printed table has.
    """
    rows = [row if row.printed is None else row.model_copy(update={"paper": quoted(row.printed)}) for row in table.rows]
    numbers = {row.name: row.paper for row in rows}
    claims = [claim.model_copy(update={"words": _with_numbers(claim, numbers)}) for claim in table.claims]
    return table.model_copy(update={"rows": rows, "claims": claims})


def quoted(place: PaperCell) -> str:
    """Returns what is printed in a cell, with the note that the row has behind it: `65.1 (M)`."""
    cell = read_paper_table(place.table).grid.get((place.group, place.row, place.column))
    if cell is None:
        raise UserError(
            f"table {place.table} of the papers has no cell at '{place.group}', '{place.row}', '{place.column}'; "
            f"see papers/{place.table}.csv"
        )
    return f"{cell.value} ({place.note})" if place.note and cell.value != NONE else cell.value


def _with_numbers(claim: Claim, numbers: dict[str, str]) -> str:
    """Returns a claim's words with the paper's two numbers behind them: `SeRA-DPO beats DPO (74.2 over 55.1).`."""
    both = [numbers[claim.better], numbers[claim.worse]]
    if NONE in both or claim.by != "win rate":
        return claim.words
    return f"{claim.words.removesuffix('.')} ({' over '.join(both)})."
