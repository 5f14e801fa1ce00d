"""What is tried when the methods of a model are tuned: the axes of each, and how many trials all of them have.

`recipes/tuning/<model>.yaml` states it for every method of the model, so that a method which stands in two tables has the same
trials in both. A trial is a point of the product of a method's axes; every method has `budget` of them, on the same seeds.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError, field_validator

from handbook_ext.core.errors import UserError
from handbook_ext.recipes.names import RECIPES, TUNING
from handbook_ext.recipes.overrides import inline
from handbook_ext.recipes.section import Positive, Section
from handbook_ext.recipes.yaml_tree import nearest, read_yaml

Point = dict[str, Any]
"""Settings of one trial, by dotted name."""
Axes = dict[str, list[Any]]
"""The values to be tried of each setting, by dotted name."""


class VariantRule(Section):
    """What is otherwise for a variant; what it leaves out stays. Methods merge by name, the rest is replaced whole."""

    seeds: list[Positive] | None = Field(None, min_length=1)
    budget: Positive | None = None
    grid: Axes | None = Field(None, min_length=1)
    methods: dict[str, Axes] = Field(default={})


class TuningRule(Section):
    """The rule of one model."""

    seeds: list[Positive] = Field(min_length=1, description="each trial is run on all of them; no table may have one")
    budget: Positive = Field(description="trials of every method")
    draw: int = Field(0, description="the seed of the draw, where a method has more points than the budget")
    grid: Axes = Field(min_length=1, description="values that every method tries")
    methods: dict[str, Axes] = Field(default={}, description="a method's own axes; one of the grid's name takes its place")
    variants: dict[str, VariantRule] = Field(default={}, description="what is otherwise for recipes of a variant")

    @field_validator("seeds")
    @classmethod
    def _once(cls, seeds: list[int]) -> list[int]:
        """Raises where a seed would count twice."""
        if len(set(seeds)) < len(seeds):
            raise ValueError(f"{seeds} has a seed twice; name each once")
        return seeds

    @property
    def every_seed(self) -> set[int]:
        """Returns the seeds that are spare for tuning, of whatever variant."""
        return {*self.seeds, *(seed for each in self.variants.values() for seed in each.seeds or [])}

    def of(self, method: str, variants: tuple[str, ...] = ()) -> Scope:
        """Returns what is tried for a method under variants, laid over each other in their order."""
        seeds, budget, grid, own = self.seeds, self.budget, self.grid, self.methods.get(method, {})
        for each in (self.variants[name] for name in variants if name in self.variants):
            seeds, budget, grid = each.seeds or seeds, each.budget or budget, each.grid or grid
            own = own | each.methods.get(method, {})
        return Scope({**grid, **own}, budget, tuple(seeds), self.draw)


@dataclass(frozen=True)
class Scope:
    """The axes of one method, the number of its trials, and the seeds of each."""

    axes: Axes
    budget: int
    seeds: tuple[int, ...]
    draw: int = 0

    @property
    def size(self) -> int:
        """Returns how many points the axes have."""
        return len(self._whole())

    def points(self) -> list[Point]:
        """Returns the points of the trials, in the order of the axes; raises ValueError where there are fewer than the budget.

        The draw orders the points by a hash of their text, then takes that whose values were drawn least so far: so the values of
        an axis are tried about equally often, methods of equal axes try the same points, and a larger budget keeps those of a
        smaller one.
        """
        for name, values in self.axes.items():
            if len({inline(value) for value in values}) < len(values) or not values:
                raise ValueError(f"{name} has {inline(values)}; give each value once, and one at least")
        whole = self._whole()
        if len(whole) < self.budget:
            raise ValueError(
                f"{' x '.join(self.axes)} has {len(whole)} points, and the budget is {self.budget} trials; give more values, or "
                "lower the budget of all"
            )
        left = sorted(whole, key=self._place)
        drawn: list[Point] = []
        taken: Counter[tuple[str, str]] = Counter()
        while len(drawn) < self.budget:
            point = min(left, key=lambda each: sum(taken[value] for value in _values(each)))
            left.remove(point)
            drawn.append(point)
            taken.update(_values(point))
        return [each for each in whole if each in drawn]

    def _whole(self) -> list[Point]:
        """Returns every point of the axes."""
        return [dict(zip(self.axes, values, strict=True)) for values in product(*self.axes.values())]

    def _place(self, point: Point) -> str:
        """Returns what orders the draw."""
        return hashlib.sha256(f"{self.draw} {point_text(point)}".encode()).hexdigest()


def _values(point: Point) -> list[tuple[str, str]]:
    """Returns the values of a point, each with its setting."""
    return [(name, inline(value)) for name, value in point.items()]


def point_text(point: Point) -> str:
    """Returns a point as one would write it in SET, settings in the order of their names."""
    return " ".join(f"{name}={inline(value)}" for name, value in sorted(point.items()))


def rule_file(model: str, root: Path = RECIPES) -> Path:
    """Returns where the rule of a model stands."""
    return root / TUNING / f"{model}.yaml"


def read_rule(model: str, root: Path = RECIPES) -> TuningRule | None:
    """Returns the rule of a model, None where it has none; raises UserError for a mistake in it."""
    path = rule_file(model, root)
    if not path.is_file():
        return None
    try:
        rule = TuningRule.model_validate(read_yaml(path).values)
    except ValidationError as error:
        first = error.errors()[0]
        where = "".join(f"{part}: " for part in first["loc"])
        raise UserError(f"{path}: {where}{first['msg'].removeprefix('Value error, ')}; correct the rule") from None
    known = sorted(each.stem for each in (root / model).glob("*.yaml"))
    for name in [*rule.methods, *(name for each in rule.variants.values() for name in each.methods)]:
        if name not in known:
            raise UserError(f"{path}: methods: {model} has no method '{name}'{nearest(name, known)}; correct the name")
    return rule
