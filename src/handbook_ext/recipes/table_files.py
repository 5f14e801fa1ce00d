"""Tables of the papers as files: rows that name a recipe with what they change of it, and the claims made about them."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError, model_validator

from handbook_ext.core.errors import UserError
from handbook_ext.recipes.names import RECIPES
from handbook_ext.recipes.overrides import from_mapping
from handbook_ext.recipes.run import Run, resolve
from handbook_ext.recipes.section import Section
from handbook_ext.recipes.yaml_tree import nearest, read_yaml


class TableRow(Section):
    """A row: a recipe's policy at some iteration, with what the paper says of the same method."""

    name: str = Field(description="what the paper calls it")
    recipe: str = Field(description="the recipe to run")
    set: dict[str, Any] = Field(default={}, description="settings that differ from the recipe, by dotted name")
    policy: str | None = Field(None, description="sft, iter<N> or iter<N>@<percent>; null is the recipe's last iteration")
    x: float | None = Field(None, description="place on the axis of a sweep")
    paper: str = Field("-", description="the paper's number for this row")


class Claim(Section):
    """A claim: one row does better than another."""

    better: str
    worse: str
    by: Literal["win rate", "flipped labels"] = Field(
        "win rate", description="wins of one over the other; or a smaller share of flipped labels among its offline pairs"
    )
    words: str = Field(description="the claim in words")


class Table(Section):
    """A table of a paper at tiny scale."""

    title: str
    source: str = Field(description="where the paper has it, and what its column shows")
    paper_column: str = Field("paper", description="head of the paper's column")
    rows: list[TableRow] = Field(min_length=1)
    claims: list[Claim] = Field(default=[])
    similarity: list[str] = Field(
        default=[], max_length=2,
        description="iterations whose kept offline pairs are compared: the last between the rows, both within each row",
    )  # fmt: skip
    axis: str | None = Field(None, description="name of the rows' x")
    differences: list[str] = Field(default=[], description="two rows whose implicit rewards are compared, or none")

    @model_validator(mode="after")
    def _named(self) -> Table:
        """Raises where rows share a name, or one is mentioned that there is not."""
        names = [row.name for row in self.rows]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"two rows are called '{twice[0]}'; rename one")
        if len(self.differences) not in (0, 2):
            raise ValueError(f"differences are of two rows, not of {len(self.differences)}")
        for mentioned in [*self.differences, *(side for claim in self.claims for side in (claim.better, claim.worse))]:
            if mentioned not in names:
                raise ValueError(f"no row is called '{mentioned}'; rows: {', '.join(names)}")
        return self


def table_names(root: Path = RECIPES) -> list[str]:
    """Returns the names of all tables."""
    return sorted(path.stem for path in (root / "tables").glob("*.yaml"))


def read_table(name: str, root: Path = RECIPES) -> Table:
    """Returns a table by name; a UserError names those there are, or what is wrong in its file."""
    path = root / "tables" / f"{name}.yaml"
    known = table_names(root)
    if name not in known:
        raise UserError(
            f"no table is called '{name}'{nearest(name, known)}; in {root / 'tables'} there are: {', '.join(known) or 'none'}"
        )
    try:
        table = Table.model_validate(read_yaml(path).values)
    except ValidationError as error:
        first = error.errors()[0]
        where = "".join(f"{part}: " for part in first["loc"])
        raise UserError(f"{path}: {where}{first['msg'].removeprefix('Value error, ')}; correct the table") from None
    return table


def run_of_row(row: TableRow, table: str, seed: int, root: Path = RECIPES, **launch: Any) -> Run:
    """Returns the run of a row under a seed, where 1 is the recipe's own: its recipe with what the row sets.

    Raises UserError where the recipe cannot be resolved, or has not the policy that the row shows.
    """
    name = row.recipe if seed == 1 else f"{row.recipe}-seed{seed}"
    source = f"{root / 'tables' / table}.yaml: row '{row.name}':"
    run = resolve(name, root, overrides=from_mapping(row.set, source), **launch)
    if row.policy is not None:
        try:
            run.check_policy(row.policy)
        except UserError as error:
            raise UserError(f"{source} {error}") from None
    return run
