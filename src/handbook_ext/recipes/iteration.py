"""One turn of the loop: its settings, and which stages these ask for."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from handbook_ext.recipes.settings import Recipe
from handbook_ext.recipes.yaml_tree import Tree
from handbook_ext.selection.rules import Needs, needs_of


@dataclass(frozen=True)
class Iteration:
    """One turn of the loop: its settings, the policy it starts from, its part of the data."""

    name: str
    settings: Recipe
    tree: Tree
    starts_from: str
    index: int

    @cached_property
    def needs(self) -> Needs:
        """Returns what the selection rule reads, which decides what comes before it."""
        return needs_of(self.settings.select)

    @property
    def kept(self) -> list[str]:
        """Returns the names of the policies that its training keeps on the way, such as iter1@25."""
        return [f"{self.name}@{percent}" for percent in self.settings.train.kept]

    @property
    def health_limited(self) -> bool:
        """Tells whether the recipe sets a limit that must hold before the next iteration, or the report, starts."""
        return any(limit is not None for limit in self.settings.health.model_dump().values())

    @property
    def has_log_probs(self) -> bool:
        """Tells whether there is a score store: for the selection, or for a loss with a reference."""
        return self.needs.log_probs or self.settings.train.needs_reference
