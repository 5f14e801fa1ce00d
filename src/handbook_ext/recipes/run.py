"""Recipes by name, and the runs and iterations that their files describe."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from handbook_ext.core.errors import UserError
from handbook_ext.recipes.checks import derived, mentioned, told, validated
from handbook_ext.recipes.iteration import Iteration
from handbook_ext.recipes.launch_checks import check_batches, launched_processes
from handbook_ext.recipes.settings import RankSettings, Recipe
from handbook_ext.recipes.yaml_tree import Mark, Tree, merged, nearest, read_recipe, shown

RECIPES = Path("recipes")
NO_RECIPES = ("accelerate", "tables")
OVERRIDABLE = ("generate", "rank", "score", "select", "train", "evaluate")


@dataclass(frozen=True)
class Run:
    """A recipe, perhaps under another seed, after inheritance and the overrides of each iteration."""

    name: str
    recipe: str
    settings: Recipe
    tree: Tree
    iterations: tuple[Iteration, ...]

    @property
    def start(self) -> str:
        """Returns the folder of the policy that the loop starts from."""
        return "start" if self.settings.sft is None else "sft"

    @property
    def ranks(self) -> list[RankSettings]:
        """Returns the run's own ranker, which marks all its policies, and that of each iteration, which labels its pairs."""
        return [self.settings.rank, *(each.settings.rank for each in self.iterations)]

    @property
    def trains_reward_model(self) -> bool:
        """Tells whether the run trains its own reward model."""
        judged_apart = self.settings.data.dataset != "tiny_world"  # There the true reward evaluates a self-judged run.
        fitted = ("reward_model", "self") if judged_apart else ("reward_model",)
        return any(rank.ranker in fitted and rank.model is None for rank in self.ranks)

    def iteration(self, name: str) -> Iteration:
        """Returns an iteration by name; a UserError names those that exist."""
        for each in self.iterations:
            if each.name == name:
                return each
        names = [each.name for each in self.iterations]
        raise UserError(
            f"{shown(self.tree.where(()).file)}: recipe {self.recipe} has no iteration '{name}'{nearest(name, names)}; "
            f"it has: {', '.join(names)}; add it under `iterations:`, or ask for one of these"
        )


def recipe_files(root: Path = RECIPES) -> dict[str, Path]:
    """Returns every recipe's name and file: recipes/<model>/<method>.yaml is <model>-<method>."""
    found: dict[str, Path] = {}
    for path in sorted(root.glob("*/*.yaml")):
        name = f"{path.parent.name}-{path.stem}"
        usable = all(re.fullmatch(r"\w[\w.-]*", part) for part in (path.parent.name, path.stem))
        if path.name == "base.yaml" or path.parent.name in NO_RECIPES or not usable:
            continue
        if name in found:
            raise UserError(f"{shown(path)}: {shown(found[name])} is called {name} as well; rename one of the two")
        found[name] = path
    return found


def resolve(name: str, root: Path = RECIPES) -> Run:
    """Returns a run, `<recipe>` or `<recipe>-seed<K>`, with everything checked.

    Raises:
        UserError: no recipe of that name, or any mistake in its files.

    """
    files = recipe_files(root)
    recipe, seed = name, None
    with_seed = re.fullmatch(r"(.+)-seed(0|[1-9]\d*)", name)
    if name not in files and with_seed:
        recipe, seed = with_seed[1], int(with_seed[2])
    if recipe not in files:
        raise _no_recipe(name, files, root)
    tree = read_recipe(files[recipe])
    if seed is not None:
        tree = merged(tree, Tree({"seed": seed}, {("seed",): Mark(Path(f"run name {name}"), 0)}))
    overrides = tree.below(("iterations",)) if "iterations" in tree.values else Tree({}, {(): tree.where(())})
    tree.values.pop("iterations", None)
    settings = derived(validated(tree), tree)
    processes = launched_processes(settings.launch, tree, root)
    check_batches(settings, tree, processes)
    iterations = _iterations(overrides, settings, tree)
    for each in iterations:
        check_batches(each.settings, each.tree, processes, each.name)
    return Run(name, recipe, settings, tree, iterations)


def _no_recipe(name: str, files: dict[str, Path], root: Path) -> UserError:
    """Returns the error for a name that is no recipe, perhaps because it is a target of make."""
    target = re.fullmatch(r"(.+?)-(iter\d+|report)", name)
    if target and target[1] in files:
        if target[2] != "report":
            resolve(target[1], root).iteration(target[2])
        return UserError(f"'{name}' is a target of make, not a recipe; give '{target[1]}' here")
    base = re.sub(r"-(iter|seed)\d+$|-report$", "", name)
    alike = [each for each in files if each.split("-")[0] == name.split("-", maxsplit=1)[0]] or list(files)[:8]
    tables = [f"table-{path.stem}" for path in root.glob("tables/*.yaml")]
    close = nearest(base, tables if base.startswith("table") else files)
    return UserError(
        f"no recipe is called '{name}'{close}; in {shown(root)} there are: "
        f"{', '.join(alike) or 'none'}; recipes/<model>/<method>.yaml is <model>-<method>, and make help lists all"
    )


def _iterations(overrides: Tree, base: Recipe, tree: Tree) -> tuple[Iteration, ...]:
    """Returns the iterations in order, each with its overrides over the recipe, checked."""
    if not isinstance(overrides.values, dict):
        raise UserError(f"{overrides.where(())}: iterations must be a mapping, such as {{iter1: {{}}, iter2: {{}}}}")
    result: list[Iteration] = []
    previous = None if base.sft is None else "sft"
    for name in _ordered(overrides):
        own = overrides.below((name,))
        _check_override(name, own)
        own.marks = {place: mark for place, mark in own.marks.items() if place}
        whole = merged(tree, own)
        settings = derived(validated(whole, name), whole)
        result.append(Iteration(name, settings, whole, previous, len(result) if base.data.portions > 1 else 0))
        _check_labels(result[-1], first=len(result) == 1)
        previous = name
    limits = [(each.settings.train.max_length, each.settings.train.max_prompt_length) for each in result]
    if len(set(limits)) > 1 and any(each.scores_before_selection for each in result):
        odd = result[next(place for place, each in enumerate(limits) if each != limits[0])]
        raise UserError(
            f"{odd.tree.where(('train', 'max_length'))}: {odd.name}: train.max_length and max_prompt_length must be the same in "
            "all iterations where select.rule sera compares log-probs between them; state them once, under `train`"
        )
    if 1 < base.data.portions < len(result):
        raise UserError(
            f"{tree.where(('data', 'portions'))}: data.portions is {base.data.portions} but there are {len(result)} "
            f"iterations; raise portions to {len(result)}, remove iterations, or set 1: each then uses all rows"
        )
    return tuple(result)


def _ordered(overrides: Tree) -> list[str]:
    """Returns the names of the iterations by number; null has removed an inherited one."""
    numbers: dict[int, str] = {}
    for name, value in overrides.values.items():
        match = re.fullmatch(r"iter(0|[1-9]\d*)", name)
        if not match:
            raise UserError(f"{overrides.where((name,))}: iterations: '{name}' is not iter0, iter1, ...; rename it")
        if value is not None:
            numbers[int(match[1])] = name
    if not numbers:
        raise UserError(f"{overrides.where(())}: a recipe needs an iteration; add `iterations: {{iter1: {{}}}}`")
    missing = sorted(set(range(min(numbers), max(numbers))) - set(numbers))
    if missing:
        after = numbers[min(number for number in numbers if number > missing[0])]
        removed = (f"iter{missing[0]}",)
        raise UserError(
            f"{overrides.where(removed if removed in overrides.marks else (after,))}: iterations: iter{missing[0]} is "
            f"missing before {after}; number them without "
            f"a gap (an iteration without changes is `iter{missing[0]}: {{}}`; null removes an inherited one)"
        )
    return [numbers[number] for number in sorted(numbers)]


def _check_override(name: str, own: Tree) -> None:
    """Raises when an iteration overrides what belongs to the whole run."""
    if not isinstance(own.values, dict):
        raise UserError(f"{own.where(())}: iterations.{name}: {told(own.values)} is not a mapping of sections")
    for section in own.values:
        if section not in OVERRIDABLE:
            raise UserError(
                f"{own.where((section,))}: iterations.{name} cannot change '{section}'{nearest(section, OVERRIDABLE)}; "
                f"an iteration may change: {', '.join(OVERRIDABLE)}"
            )
    if ("rank", "fit") in own.marks:
        raise UserError(
            f"{own.where(('rank', 'fit'))}: iterations.{name} cannot change rank.fit: a run fits one ranker; "
            "state it in the section `rank`"
        )


def _check_labels(each: Iteration, first: bool) -> None:
    """Raises when exploration is asked of an iteration that samples nothing, or margins of one without a trained policy."""
    name, select, train = each.name, each.settings.select, each.settings.train
    message = None
    if not each.generates and train.alpha > 0:
        keeps = "keeps the original labels and " if select.rule == "dataset" else ""
        message = (
            f"select.rule {select.rule} {keeps}samples nothing to explore, but train.alpha is {train.alpha}; "
            f"set train.alpha: 0 in {name}"
        )
    wants_margin = select.bootstrap > 0 or (select.keep > 0 and select.keep_by == "margin")
    if first and select.rule == "sera" and wants_margin and train.reward_form.reference:
        message = (
            f"select.rule sera needs a policy that an iteration before has trained, and {name} is the first; "
            "give it select.rule: dataset"
        )
    if message is not None:
        raise UserError(f"{each.tree.where(mentioned(message, (), each.tree))}: {name}: {message}")
