"""The rows of a table as figures take them: a run each, with the folders of the seeds that have been begun."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from handbook_ext.core.errors import UserError
from handbook_ext.recipes.names import RECIPES
from handbook_ext.recipes.run import Run
from handbook_ext.recipes.table_files import SMALLEST, TableRow, policy_of_row, read_table, run_of_row, written_table


@dataclass(frozen=True)
class FigureRow:
    """A row of a table with its run (that of the first seed), and by seed the folder of each that has been begun."""

    row: TableRow
    run: Run
    folders: Mapping[int, Path]

    @property
    def name(self) -> str:
        """What the table calls it."""
        return self.row.name

    @property
    def start(self) -> str:
        """The policy that the loop starts from."""
        return self.run.start

    @property
    def last(self) -> str:
        """The policy that the row shows."""
        return policy_of_row(self.row, self.run)

    @property
    def policies(self) -> list[str]:
        """The policies of all iterations, in their order."""
        return [each.name for each in self.run.iterations]

    def goal(self, seed: int = 1) -> str:
        """Returns what makes the run under a seed, as one types it."""
        words = " ".join(self.run.overrides)
        quote = "'" if '"' in words else '"'
        name = self.row.recipe if seed == 1 else f"{self.row.recipe}-seed{seed}"
        return f"make {name}" + (f" SET={quote}{words}{quote}" if words else "")


def rows_of_model(table: str, model: str = SMALLEST, root: Path = RECIPES) -> list[TableRow]:
    """Returns the rows of a table for a model; [] where it does not name the model, and that lacks a recipe of some row."""
    if model in written_table(table, root).models:
        return read_table(table, root, model).rows
    try:
        rows = read_table(table, root, model).rows
        for row in rows:
            run_of_row(row, table, 1, root)
    except UserError:
        return []
    return rows


def figure_row(row: TableRow, table: str, runs: Path, seeds: Sequence[int], root: Path = RECIPES) -> FigureRow:
    """Returns a row with the seeds of its run that have been begun in the folder of all runs."""
    seeded = {seed: run_of_row(row, table, seed, root) for seed in seeds}
    folders = {seed: runs / run.name for seed, run in seeded.items() if (runs / run.name).is_dir()}
    # Of the recipe's own seed, whose name has no seed: what is the same for all seeds is read of it.
    return FigureRow(row, run_of_row(row, table, 1, root), folders)
