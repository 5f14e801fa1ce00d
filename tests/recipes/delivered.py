"""The recipes of the repository, resolved; what differs between two of them."""

from __future__ import annotations

from functools import cache
from typing import Any

from handbook_ext.graph.run_rules import run_rules
from handbook_ext.recipes.names import recipe_files
from handbook_ext.recipes.overrides import parse_set
from handbook_ext.recipes.run import Run, resolve
from tests.recipe_folder import ROOT

# recipes/mine is the user's own.
FILES = {name: path for name, path in recipe_files(ROOT / "recipes").items() if path.parent.name != "mine"}


@cache
def run_of(name: str, overrides: str = "") -> Run:
    """A run by the name of its goal, under what SET would say; each is resolved once."""
    return resolve(name, overrides=parse_set(overrides))


def course(run: Run | str, dotted: str) -> list[Any]:
    """A setting in every iteration of a run, in their order; `train.rate` is the peak after the iteration's factor."""
    run = run_of(run) if isinstance(run, str) else run
    values = []
    for each in run.iterations:
        value: Any = each.settings
        if dotted == "train.rate":
            value = round(value.train.learning_rate * value.train.learning_rate_factor, 12)
        else:
            for name in dotted.split("."):
                value = getattr(value, name)
        values.append(value)
    return values


def determined(run: Run) -> dict[str, Any]:
    """What determines each stage, by `<stage's file>:<dotted setting>`; the name and what it was overridden by apart."""
    leaves: dict[str, Any] = {}

    def collect(value: Any, place: str) -> None:
        if isinstance(value, dict) and value:
            for name, inner in value.items():
                collect(inner, f"{place}.{name}" if ":" in place else f"{place}:{name}")
        else:
            leaves[place] = value

    for rule in run_rules(run):
        if rule.settings_file != "report.yaml":
            settings = rule.settings.model_dump()
            collect({name: value for name, value in settings.items() if name not in {"recipe", "overrides"}}, rule.settings_file)
    return leaves


def difference(one: Run, other: Run) -> set[str]:
    """The dotted settings in which two runs differ, whichever stage reads them."""
    first, second = determined(one), determined(other)
    keys = first.keys() | second.keys()
    return {key.partition(":")[2] for key in keys if first.get(key, "no such stage") != second.get(key, "no such stage")}
