"""The rows of a table as figures take them: a run each, with the folders of the seeds that have been begun."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from handbook_ext.core.artifacts import START
from handbook_ext.recipes.names import RECIPES
from handbook_ext.recipes.run import Run
from handbook_ext.recipes.table_files import TableRow, read_table, run_of_row

MODEL = "tiny"


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
        # `start`, whatever the recipe calls the folder of the policy that its loop starts from.
        return self.start if self.row.policy == START else self.row.policy or self.run.iterations[-1].name

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


def rows_of_model(table: str, model: str = MODEL, root: Path = RECIPES) -> list[TableRow]:
    """Returns the rows of a table for a model, [] where the table has none for it.

    The one place that knows for which model a table's rows are: each names a recipe, and that begins with its model.
    """
    return [row for row in read_table(table, root).rows if row.recipe.startswith(f"{model}-")]


def figure_row(row: TableRow, table: str, runs: Path, seeds: Sequence[int], root: Path = RECIPES) -> FigureRow:
    """Returns a row with the seeds of its run that have been begun in the folder of all runs."""
    seeded = {seed: run_of_row(row, table, seed, root) for seed in seeds}
    folders = {seed: runs / run.name for seed, run in seeded.items() if (runs / run.name).is_dir()}
    # Of the recipe's own seed, whose name has no seed: what is the same for all seeds is read of it.
    return FigureRow(row, run_of_row(row, table, 1, root), folders)
