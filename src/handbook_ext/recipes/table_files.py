"""Tables of the papers as files: rows that name a method with what they change of it, and the claims made about them.

A file serves every model: `read_table` makes of it the table of one, whose rows are runs of that model's recipes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError, model_validator

from handbook_ext.core.artifacts import START
from handbook_ext.core.errors import UserError
from handbook_ext.recipes.names import RECIPES, TABLE
from handbook_ext.recipes.overrides import from_mapping
from handbook_ext.recipes.run import Run, resolve
from handbook_ext.recipes.section import Section
from handbook_ext.recipes.table_rows import Claim, Printed, TableRow, WrittenRow
from handbook_ext.recipes.until import Until
from handbook_ext.recipes.yaml_tree import nearest, read_yaml

__all__ = [
    "SMALLEST", "Claim", "Table", "TableRow", "WrittenTable", "policy_of_row", "read_table", "run_of_row",
    "table_names", "table_run", "written_table",
]  # fmt: skip
SMALLEST = "tiny"
"""The model of a table where none is asked for: the only one that a laptop trains."""


class Table(Section):
    """A table of a paper at the scale of one model."""

    title: str
    source: str
    model: str | None = None
    paper_column: str = "paper"
    rows: list[TableRow] = Field(min_length=1)
    claims: list[Claim] = Field(default=[])
    similarity: list[str] = Field(default=[])
    axis: str | None = None
    differences: list[str] = Field(default=[])
    sets: list[str] = Field(default=[])
    tuning: list[str] = Field(default=[], description="lines on what the rows were tuned over")

    @property
    def world(self) -> str:
        """Returns what judges the table's claims: the tiny world, or runs of ours."""
        return "The tiny world" if self.model == SMALLEST else f"Our runs of {self.model}" if self.model else "Our runs"


class WrittenTable(Section):
    """A table of a paper as its file has it."""

    title: str
    source: str = Field(description="where the paper has it, and what its column shows")
    remarks: dict[str, str] = Field(default={}, description="what is put behind the source for single models")
    models: list[str] = Field(default=[], description="those whose recipes have all the rows; another may be asked for as well")
    paper: Printed | None = Field(None, description="where the numbers beside the rows are printed; null prints none")
    rows: list[WrittenRow] = Field(min_length=1)
    claims: list[Claim] = Field(default=[])
    similarity: list[str] = Field(
        default=[], max_length=2,
        description="iterations whose kept offline pairs are compared: the last between the rows, both within each row",
    )  # fmt: skip
    axis: str | None = Field(None, description="name of the rows' x")
    differences: list[str] = Field(default=[], description="two rows whose implicit rewards are compared, or none")
    sets: dict[str, list[str]] = Field(default={}, description="prompt sets that the rows are evaluated on, by model")
    # No part of `Table`, which identifies what was made: with how many seeds stands there.
    until: Until = Field(Until(), description="where SEEDS=auto stops adding seeds")

    @model_validator(mode="after")
    def _named(self) -> WrittenTable:
        """Raises where a row or a model is mentioned that there is not."""
        names = [row.name for row in self.rows]
        if len(self.differences) not in (0, 2):
            raise ValueError(f"differences are of two rows, not of {len(self.differences)}")
        for mentioned in [*self.differences, *(side for claim in self.claims for side in (claim.better, claim.worse))]:
            if mentioned not in names:
                raise ValueError(f"no row is called '{mentioned}'; rows: {', '.join(dict.fromkeys(names))}")
        of_rows = {model for row in self.rows for model in (*(row.models or []), *row.at)}
        for model in sorted({*self.remarks, *self.sets, *(self.paper.groups if self.paper else {}), *of_rows} - {*self.models}):
            raise ValueError(f"'{model}' is none of the table's models{nearest(model, self.models)}: {', '.join(self.models)}")
        return self

    def for_model(self, model: str) -> Table:
        """Returns the table of a model; raises ValueError where it has no row of it, or two of one name."""
        rows = [row.for_model(model, self.paper) for row in self.rows if row.models is None or model in row.models]
        names = [row.name for row in rows]
        # A model that the file does not name has the rows of every one; where that is a single one, the rest is made for others.
        if not rows or (self.models and model not in self.models and len(rows) == 1):
            raise ValueError(f"it has no rows for {model}; it serves: {', '.join(self.models)}")
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"two rows are called '{twice[0]}'; rename one")
        by_method = any(row.method is not None for row in self.rows)
        scale = "" if not by_method else " at tiny scale" if model == SMALLEST else f" at the scale of {model}"
        beside = ""
        if self.paper is not None and any(row.printed is not None for row in rows):
            other = " on another model" if model == SMALLEST else ""
            group = self.paper.groups.get(model, "")
            beside = f" Beside it the paper's {self.paper.name}{group and f' of {group}'}, another measure{other}."
        return Table(
            title=f"{self.title}{scale}", source=" ".join(filter(None, (self.source + beside, self.remarks.get(model)))),
            model=model if self.models else None, paper_column=self.paper.name if self.paper else "paper", rows=rows,
            claims=[claim for claim in self.claims if {claim.better, claim.worse} <= {*names}], similarity=self.similarity,
            axis=self.axis, differences=self.differences if {*self.differences} <= {*names} else [],
            sets=self.sets.get(model, []),
        )  # fmt: skip


def table_names(root: Path = RECIPES, model: str | None = None) -> list[str]:
    """Returns the names of all tables, or of those that serve a model."""
    names = sorted(path.stem for path in (root / "tables").glob("*.yaml"))
    return [name for name in names if model is None or model in (written_table(name, root).models or [model])]


def written_table(name: str, root: Path = RECIPES) -> WrittenTable:
    """Returns a table's file by name; a UserError names those there are, or what is wrong in it."""
    path = root / "tables" / f"{name}.yaml"
    known = table_names(root)
    if name not in known:
        raise UserError(
            f"no table is called '{name}'{nearest(name, known)}; in {root / 'tables'} there are: {', '.join(known) or 'none'}"
        )
    try:
        return WrittenTable.model_validate(read_yaml(path).values)
    except ValidationError as error:
        first = error.errors()[0]
        where = "".join(f"{part}: " for part in first["loc"])
        raise UserError(f"{path}: {where}{first['msg'].removeprefix('Value error, ')}; correct the table") from None


def read_table(name: str, root: Path = RECIPES, model: str | None = None) -> Table:
    """Returns a table of a model, where none is asked for of the smallest that it serves; a UserError tells what is wrong."""
    table = written_table(name, root)
    chosen = model or (SMALLEST if SMALLEST in table.models or not table.models else table.models[0])
    try:
        return table.for_model(chosen)
    except ValueError as error:
        raise UserError(f"{root / 'tables' / name}.yaml: {error}; correct the table, or ask for another MODEL") from None


def table_run(name: str, model: str | None) -> str:
    """Returns what the goal of a model's table, and the folder that it is written to, are called."""
    return f"{TABLE}{name}" if model in (None, SMALLEST) else f"{TABLE}{name}-{model}"


def run_of_row(row: TableRow, table: str, seed: int, root: Path = RECIPES, **launch: Any) -> Run:
    """Returns the run of a row under a seed, where 1 is the recipe's own: its recipe with what the row sets.

    Raises UserError where the recipe cannot be resolved, or has not the policy that the row shows.
    """
    name = row.recipe if seed == 1 else f"{row.recipe}-seed{seed}"
    source = f"{root / 'tables' / table}.yaml: row '{row.name}':"
    run = resolve(name, root, overrides=from_mapping(row.set, source), **launch)
    if row.policy not in (None, START, run.start):
        try:
            run.check_policy(row.policy)
        except UserError as error:
            raise UserError(f"{source} {error}") from None
    return run


def policy_of_row(row: TableRow, run: Run) -> str:
    """Returns the folder of the policy that a row shows, in the folder of its run."""
    return row.shown(run.start, run.iterations[-1].name)
