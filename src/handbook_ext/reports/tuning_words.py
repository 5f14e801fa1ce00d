"""What a table says of how its rows were tuned: over what, on which seeds, and whether all had the same chance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from handbook_ext.core.artifacts import START
from handbook_ext.recipes.run import Run
from handbook_ext.recipes.table_files import Table
from handbook_ext.recipes.table_rows import TableRow

OWN = "values of the recipe, not tuned"


def with_tuning(table: Table, runs: Mapping[str, Run]) -> Table:
    """Returns the table with what its rows were tuned over; `runs` has a run of each row, by its name."""
    rows = [row.model_copy(update={"tuned": words_of_row(row, runs[row.name])}) for row in table.rows]
    return table.model_copy(update={"rows": rows, "tuning": tuning_lines([(row, runs[row.name]) for row in rows])})


def words_of_row(row: TableRow, run: Run) -> str:
    """Returns what a row's method was tuned over; - where it shows the policy that no preference training has changed."""
    if row.shown(run.start, run.iterations[-1].name) in (START, run.start):
        return "-"
    if run.tuned is None:
        return OWN
    stated = sorted(name for name in run.tuned.choices.chosen if name in row.set)
    aside = f", then {' '.join(stated)} as the row has it" if stated else ""
    return f"tuned over {run.tuned.words}{aside}"


def tuning_lines(rows: Sequence[tuple[TableRow, Run]]) -> list[str]:
    """Returns the lines below a table: rows of equal words together, then what is not as it should be."""
    groups: dict[str, list[str]] = {}
    for row, run in rows:
        groups.setdefault(words_of_row(row, run), []).append(row.name)
    groups.pop("-", None)
    if {*groups} <= {OWN}:
        return ["No method was tuned: every row has the values of its recipe."]
    lines = [f"{', '.join(names)}: {words}." for words, names in groups.items()]
    tuned = {run.tuned.choices.recipe: run.tuned for _, run in rows if run.tuned is not None}
    chances = {(len(each.choices.trials), tuple(each.choices.seeds)) for each in tuned.values()}
    if OWN in groups:
        lines.append(f"The comparison is uneven: {', '.join(groups[OWN])} had no trial, and others had.")
    if len(chances) > 1:
        lines.append("The comparison is uneven: the methods had not the same number of trials and seeds.")
    measures = dict.fromkeys(each.choices.judged for each in tuned.values())
    lines.append(f"Chosen by the {'; '.join(measures)}. The seeds are none of this table's, and so draw other prompts.")
    return [*lines, *(each.stale for each in tuned.values() if each.stale is not None)]
