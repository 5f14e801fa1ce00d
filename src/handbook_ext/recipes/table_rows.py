"""The rows of a table's file, and what they are for one model: a recipe's policy with what is printed of it."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from handbook_ext.core.artifacts import START
from handbook_ext.recipes.section import Section


class PaperCell(Section):
    """Where a number of a paper is printed: a cell of a table in `reports/papers`; `note` is what stands behind the number."""

    table: str
    group: str
    row: str
    column: str
    note: str = ""


class PaperPlace(Section):
    """What a row says of the cell that is printed of it; the rest is as for the whole table."""

    row: str
    table: str | None = None
    group: str | None = None
    column: str | None = None
    note: str = Field("", description="what stands behind the number, such as M for another model")


class Printed(Section):
    """Where the numbers beside a table's rows are printed; a model without a group has none."""

    table: str
    column: str
    head: str | None = Field(None, description="what the paper's column is called here; null is as there")
    groups: dict[str, str] = Field(description="the group of rows that stands beside a model's, by model")

    @property
    def name(self) -> str:
        """Returns what the column is called here."""
        return self.head or self.column


class RowChange(Section):
    """What a row says otherwise for one model; what it leaves out stays."""

    method: str | None = None
    set: dict[str, Any] = Field(default={})
    policy: str | None = None
    x: float | None = None
    paper: str | PaperPlace | None = None


class WrittenRow(RowChange):
    """A row of the file: a method's policy at some iteration, with where the paper has it."""

    name: str = Field(description="what the paper calls it")
    method: str | None = Field(None, description="the recipe to run is <model>-<method>")
    recipe: str | None = Field(None, description="the recipe to run, whatever the model, in place of a method")
    set: dict[str, Any] = Field(default={}, description="settings that differ from the recipe, by dotted name")
    policy: str | None = Field(None, description="start, sft, iter<N> or iter<N>@<percent>; null is the recipe's last iteration")
    x: float | None = Field(None, description="place on the axis of a sweep")
    paper: str | PaperPlace | None = Field(None, description="the row of the printed table, or the cell; null prints no number")
    models: list[str] | None = Field(None, description="those that have this row; null is every one")
    at: dict[str, RowChange] = Field(default={}, description="what is otherwise for single models")

    @model_validator(mode="after")
    def _one_recipe(self) -> WrittenRow:
        """Raises where a row names no recipe, or two."""
        if (self.method is None) == (self.recipe is None):
            raise ValueError(f"row '{self.name}' needs a method or a recipe, one of the two")
        return self

    def for_model(self, model: str, printed: Printed | None) -> TableRow:
        """Returns the row of a model."""
        change = self.at.get(model)
        own = self.model_dump(include=set(RowChange.model_fields)) | (change.model_dump(exclude_unset=True) if change else {})
        place = own["paper"] if own["paper"] is None or isinstance(own["paper"], dict) else {"row": own["paper"]}
        cell = None if place is None else _cell(PaperPlace.model_validate(place), model, printed)
        recipe = self.recipe or f"{model}-{own['method']}"
        return TableRow(name=self.name, recipe=recipe, set=own["set"], policy=own["policy"], x=own["x"], printed=cell)


class TableRow(Section):
    """A row of one model's table: a recipe's policy at some iteration, with what the paper says of the same method."""

    name: str
    recipe: str
    set: dict[str, Any] = Field(default={})
    policy: str | None = None
    x: float | None = None
    printed: PaperCell | None = None
    paper: str = "-"
    tuned: str = Field("-", description="what the method was tuned over, in words")

    def shown(self, start: str, last: str) -> str:
        """Returns the policy that the row shows, of a run that goes from `start` to `last`.

        As a row's policy START is where the loop of its recipe starts, whatever that folder is called.
        """
        return start if self.policy == START else self.policy or last


class Claim(Section):
    """A claim: one row does better than another."""

    better: str
    worse: str
    by: Literal["win rate", "flipped labels"] = Field(
        "win rate", description="wins of one over the other; or a smaller share of flipped labels among its offline pairs"
    )
    words: str = Field(description="the claim in words; the paper's two numbers are put behind them")


def _cell(place: PaperPlace, model: str, printed: Printed | None) -> PaperCell | None:
    """Returns the cell that a row means; None for a model whose rows are not printed."""
    table = place.table if printed is None else place.table or printed.table
    column = place.column if printed is None else place.column or printed.column
    group = place.group if printed is None else place.group or printed.groups.get(model)
    if table is None or column is None:
        raise ValueError(f"row '{place.row}' of the paper: name its table and column, here or under `paper:` of the table")
    return None if group is None else PaperCell(table=table, group=group, row=place.row, column=column, note=place.note)
