"""What every section of a recipe is: typed, ranged, strict."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field
from pydantic_core import CoreSchema, core_schema

Fraction = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[int, Field(ge=1)]
Rate = Annotated[float, Field(gt=0, le=1)]
Temperature = Annotated[float, Field(ge=0, le=5)]
Limit = Annotated[float, Field(ge=0)]


class Section(BaseModel):
    """A part of a recipe; unknown keys and values of another type are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class OneOf:
    """Annotates text that names a row of a table, so that a new row is a new choice with no other edit."""

    def __init__(self, names: Iterable[str]) -> None:
        """Takes the table, or its names."""
        self.names = list(names)

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> CoreSchema:
        """Returns the schema of one of the names."""
        return core_schema.literal_schema(self.names)
