"""Whether an unpacked ledger has the settings of the recipe that it names, as this checkout has the recipe."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from handbook_ext.core.artifacts import finished_manifest
from handbook_ext.core.errors import UserError
from handbook_ext.core.stage_settings import differences, identity
from handbook_ext.graph.makefile import begun_with
from handbook_ext.graph.rules_benchmarks import benchmark_rules
from handbook_ext.graph.run_rules import run_rules
from handbook_ext.recipes.names import RECIPES, read_name
from handbook_ext.recipes.overrides import parse_set
from handbook_ext.recipes.run import Run, resolve
from handbook_ext.reports.ledger_pack import artifacts_of
from handbook_ext.reports.privacy import has_gaps, without_paths

Json = dict[str, Any]
# Who judges is chosen by whoever evaluates, and stands beside each value; so does what training has seen. Where the file for
# length control lay is the author's business: the checks fit with the hub's.
FREE = {"grade": ("judge", "judge_runs", "length_control"), "prompts": ("contaminated",)}


@dataclass(frozen=True)
class RecipeFindings:
    """What comparing with the recipe gave: faults, and why there was nothing to compare with, where there was not."""

    faults: list[str] = field(default_factory=list)
    unknown: str | None = None


def recipe_findings(run: Path, name: str, root: Path = RECIPES) -> RecipeFindings:
    """Returns in what the stages of a run, by its name, differ from its recipe here under what overrides it.

    A recipe that is not in this checkout, or whose data were a folder of the author's, cannot be compared.
    """
    manifests = _manifests(run)
    about = manifests.get("report")
    if about is None:
        return RecipeFindings(["report: the ledger has no manifest of it"])
    recipe, overrides = str(about["recipe"]), [str(each) for each in about["overrides"]]
    if name not in (recipe, f"{recipe}-seed{about['seed']}"):
        return RecipeFindings([f"the ledger is of run {name}, and its report of recipe {recipe} with seed {about['seed']}"])
    # Without this a run could pass for the recipe itself, and fill its cells in the papers' tables.
    if ("+" in recipe) != bool(overrides):
        return RecipeFindings([f"the run is of recipe {recipe}, and what overrides it is said to be {overrides}"])
    reason = _unknown(name, overrides, root)
    return RecipeFindings(unknown=reason) if reason else _compared(run, name, overrides, manifests, root)


def _unknown(name: str, overrides: list[str], root: Path) -> str | None:
    """Returns why a run cannot be compared with a recipe; None where it can."""
    bare = name.partition("+")[0]
    try:
        read_name(bare, root)
    except UserError:
        return f"no recipe here is called {bare}"
    return "its data are files of its author's machine" if has_gaps(overrides) else None


def _compared(run: Path, name: str, overrides: list[str], manifests: Mapping[str, Json], root: Path) -> RecipeFindings:
    """Returns what comparing the stages of a run with its recipe found."""
    try:
        resolved = _resolved(name, overrides, run, root)
    except UserError as error:
        # An override may name a file of its author's; the recipe alone names none that is not here.
        return RecipeFindings(unknown=str(error.args[0])) if overrides else RecipeFindings([str(each) for each in error.args])
    if resolved.name != name:
        return RecipeFindings(
            [f"the run is called {name}, but with {' '.join(overrides) or 'no override'} it is {resolved.name}"]
        )
    return RecipeFindings(list(_faults(manifests, resolved)))


def _resolved(name: str, overrides: list[str], run: Path, root: Path) -> Run:
    """Returns the run of a name; the labels of overrides are part of the name, and follow from them."""
    bare, plus, rest = name.partition("+")
    # `tiny-selm+train.beta-0.5-seed2`: the seed stands behind the labels.
    seed = rest.rpartition("-seed")[2] if plus and "-seed" in rest else ""
    asked = f"{bare}-seed{seed}" if seed.isdigit() else bare
    parsed = parse_set(" ".join(map(shlex.quote, overrides)), "overrides")
    return resolve(asked, root, overrides=parsed, engines=lambda _: begun_with(run))


def _manifests(run: Path) -> Mapping[str, Json]:
    """Returns the manifest of each stage of the run by its artifact."""
    found = {str(artifact.relative_to(run)): finished_manifest(artifact) for artifact in artifacts_of(run)}
    return {name: manifest for name, manifest in found.items() if manifest is not None}


def _faults(manifests: Mapping[str, Json], run: Run) -> Iterator[str]:
    """Yields the stages of the recipe that are missing, those that it has not, and the settings in which one differs."""
    loop = run_rules(run)
    # Whoever submits chooses which policies were evaluated, and on which of the recipe's sets.
    benchmarks = run.settings.benchmarks
    chosen = benchmark_rules(replace(run, sets=benchmarks.evaluations, released=bool(benchmarks.released)))
    rules = {rule.artifact: rule for rule in [*loop, *chosen]}
    for rule in loop:
        if rule.artifact not in manifests:
            yield f"{rule.artifact}: the recipe has it, and the ledger has no manifest of it"
    for artifact, manifest in manifests.items():
        if artifact not in rules:
            yield f"{artifact}: is inside, and no stage of recipe {run.recipe} makes it"
            continue
        stated, wanted = (identity(each) for each in (manifest["settings"], rules[artifact].settings.model_dump(mode="json")))
        for key, packed, here in differences(stated, without_paths(wanted)):
            if key.partition(".")[0] in FREE.get(str(manifest["stage"]), ()):
                continue
            yield f"{artifact}: {key} is {packed!r}, and recipe {run.recipe} has {here!r}"
