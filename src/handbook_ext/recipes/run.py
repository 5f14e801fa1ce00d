"""Recipes by name, and the runs and iterations that their files describe."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from handbook_ext.core.artifacts import START
from handbook_ext.core.errors import UserError
from handbook_ext.core.kept import iteration_of
from handbook_ext.recipes.checks import derived, validated
from handbook_ext.recipes.iteration import Iteration
from handbook_ext.recipes.iteration_checks import check_first_pairs, check_lengths, check_override
from handbook_ext.recipes.launch_checks import Launch, check_batches, check_devices, engine_of, launch_of
from handbook_ext.recipes.names import RECIPES, RunName, read_name, varied
from handbook_ext.recipes.overrides import Override, labels_of, laid_over
from handbook_ext.recipes.settings import RankSettings, Recipe
from handbook_ext.recipes.tuned import Tuned, tuned_of
from handbook_ext.recipes.yaml_tree import Mark, Tree, merged, nearest, shown

__all__ = ["RECIPES", "Run", "resolve"]

UNNAMED = ("slurm", "benchmarks")
"""Sections whose overrides leave the policies of a run what they are, and so its name."""


@dataclass(frozen=True)
class Run:
    """A recipe with what overrides it, after inheritance and the overrides of each iteration.

    `recipe` is the name without the seed: runs of one recipe that differ in the seed are one group of a report.
    `sets` are the prompt sets on which its policies are to be evaluated, or with `released` the released checkpoints. `tuned`
    is what trials have chosen for the recipe, where there were any: a part of `settings` below what overrides the recipe.
    """

    name: str
    recipe: str
    file: Path
    variants: tuple[str, ...]
    overrides: tuple[str, ...]
    settings: Recipe
    tree: Tree
    launch: Launch
    iterations: tuple[Iteration, ...]
    sets: tuple[str, ...] = ()
    released: bool = False
    tuned: Tuned | None = None

    @property
    def start(self) -> str:
        """Returns the folder of the policy that the loop starts from: that of SFT, or `start` for the recipe's checkpoint."""
        return self.iterations[0].starts_from

    @property
    def policies(self) -> list[str]:
        """Returns the names of the run's policies: the start, and of each iteration those kept on the way and its own."""
        return [self.start, *(name for each in self.iterations for name in (*each.kept, each.name))]

    @property
    def evaluator(self) -> RankSettings:
        """Returns who marks all policies of the run, whoever labels the pairs of an iteration."""
        rank = self.settings.rank
        if self.settings.data.dataset == "tiny_world":
            return rank.model_copy(update={"ranker": "oracle"})  # Whoever labels the pairs, the true reward measures answers.
        if rank.tournament:
            return rank.model_copy(update={"tournament": False})  # Rewards are scores, not the places of best and worst.
        if rank.ranker == "self":
            return rank.model_copy(update={"ranker": "reward_model"})  # No policy marks its own exam.
        return rank

    @property
    def judged_apart(self) -> bool:
        """Tells whether a second reward model, which labels no pair, marks the policies."""
        return self.settings.evaluate.judge == "apart"

    @property
    def rankers(self) -> list[RankSettings]:
        """Returns the evaluator, and the ranker of each iteration that judges its samples."""
        return [self.evaluator, *(each.settings.rank for each in self.iterations if each.needs.rankings)]

    @property
    def trains_reward_model(self) -> bool:
        """Tells whether the run trains its own reward model: one of its rankers is a reward model, and no checkpoint."""
        return any(_fitted(rank) for rank in (self.rankers[1:] if self.judged_apart else self.rankers))

    @property
    def reward_models(self) -> dict[str, Literal["all", "labels", "judge"]]:
        """Returns the reward models that the run fits, by the name of their stage, each with its part of the pairs."""
        found: dict[str, Literal["all", "labels", "judge"]] = {}
        if self.trains_reward_model:
            found["ranker"] = "labels" if self.judged_apart else "all"
        if self.judged_apart:
            found["judge"] = "judge" if self.trains_reward_model else "all"
        return found

    def check_policy(self, name: str) -> None:
        """Raises UserError where the run has no such policy."""
        if name in self.policies:
            return
        each = self.iteration(iteration_of(name))
        raise UserError(
            f"{shown(self.tree.where(()).file)}: recipe {self.recipe} keeps no policy {name}{nearest(name, each.kept)}; "
            f"train.keep_at of {each.name} keeps: {', '.join(each.kept) or 'none'}"
        )

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


def resolve(
    name: str, root: Path = RECIPES, *, overrides: Sequence[Override] = (), launch: str | None = None, gpus: int | None = None,
    cluster: bool = False, engines: Callable[[str], str | None] = lambda run: None, batches: bool = True, tuned: bool = True,
) -> Run:  # fmt: skip
    """Returns a run, `<recipe>[-<variant>...][-seed<K>]`, with everything checked.

    `overrides` are part of the run's name; `launch`, `gpus`, `cluster` and the section `slurm` decide where it runs, and never
    what comes out, so no override of that section is part of the name; nor is one of `benchmarks`, which trains nothing.
    `engines` tells by the run's name which engine it has begun with, where its recipe leaves that open. Without `batches` the
    launch may be one that cannot meet them: a plan of hardware looks for another. Without `tuned` the recipe is as its own
    files have it: a trial, and what is chosen by trials, is of that.

    Raises:
        UserError: no recipe of that name, or any mistake in its files or in what overrides them.

    """
    parsed = read_name(name, root)
    tree, choice = _overridden(parsed, overrides, root if tuned else None)
    stated = tree.below(("iterations",)) if "iterations" in tree.values else Tree({}, {(): tree.where(())})
    tree = tree.without("iterations")
    named = [each for each in overrides if each.key[0] not in UNNAMED]
    recipe = "-".join([parsed.recipe, *parsed.variants]) + labels_of(named)
    full = recipe if parsed.seed is None else f"{recipe}-seed{parsed.seed}"
    checked = validated(tree)
    slurm = checked.slurm if cluster else None
    where = launch_of(checked.launch, tree, root, stated_gpus=checked.gpus, launch=launch, gpus=gpus, slurm=slurm)
    engine = engine_of(checked.generate.engine, where, engines(full))
    settings = derived(checked, tree, engine)
    if batches:
        check_batches(settings, tree, where)
        check_devices(settings, tree, where)
    iterations = _iterations(stated, settings, tree, engine)
    for each in iterations if batches else ():
        check_batches(each.settings, each.tree, where, each.name)
        check_devices(each.settings, each.tree, where)
    texts = tuple(each.text for each in named)
    run = Run(full, recipe, parsed.file, parsed.variants, texts, settings, tree, where, iterations, tuned=choice)
    if run.judged_apart and not _fitted(run.evaluator):
        raise UserError(
            f"{tree.where(('evaluate', 'judge'))}: evaluate.judge: apart fits a second reward model like the ranker, but "
            f"here the ranker is {run.evaluator.model or run.evaluator.ranker}; set rank.ranker: reward_model and no "
            "rank.model, or evaluate.judge: ranker"
        )
    return run


def _fitted(rank: RankSettings) -> bool:
    """Tells whether the run trains this ranker: a reward model that is no checkpoint."""
    return rank.ranker == "reward_model" and rank.model is None


def _overridden(name: RunName, overrides: Sequence[Override], root: Path | None) -> tuple[Tree, Tuned | None]:
    """Returns the recipe's tree under its variants, then what trials chose, then the overrides, then the seed of the run's name.

    root: where choices are looked for; None leaves them out.
    """
    tree = varied(name)
    tuned = None if root is None else tuned_of(name, tree, root)
    tree = laid_over(tree if tuned is None else tuned.laid_over(tree), overrides)
    if name.seed is not None:
        tree = merged(tree, Tree({"seed": name.seed}, {("seed",): Mark(Path(f"run name {name.full}"), 0)}))
    return tree, tuned


def _iterations(stated: Tree, base: Recipe, tree: Tree, engine: str) -> tuple[Iteration, ...]:
    """Returns the iterations in order, each with its overrides over the recipe, checked."""
    if not isinstance(stated.values, dict):
        raise UserError(f"{stated.where(())}: iterations must be a mapping, such as {{iter1: {{}}, iter2: {{}}}}")
    result: list[Iteration] = []
    previous = START if base.sft is None else "sft"
    for name in _ordered(stated):
        own = stated.below((name,))
        check_override(name, own)
        whole = merged(tree, own.inside())
        # Sections that an iteration leaves alone were checked with the recipe.
        settings = derived(validated(whole, name), whole, engine) if own.values else base
        result.append(Iteration(name, settings, whole, previous, len(result) if base.data.portions > 1 else 0))
        check_first_pairs(result[-1], first=len(result) == 1)
        previous = name
    check_lengths(result)
    if 1 < base.data.portions < len(result):
        raise UserError(
            f"{tree.where(('data', 'portions'))}: data.portions is {base.data.portions} but there are {len(result)} "
            f"iterations; raise portions to {len(result)}, remove iterations, or set 1: each then uses all rows"
        )
    return tuple(result)


def _ordered(stated: Tree) -> list[str]:
    """Returns the names of the iterations by number; null has removed an inherited one."""
    numbers: dict[int, str] = {}
    for name, value in stated.values.items():
        match = re.fullmatch(r"iter(0|[1-9][0-9]{0,2})", name, re.ASCII)
        if not match:
            raise UserError(f"{stated.where((name,))}: iterations: '{name}' is not iter0, iter1, ... up to iter999; rename it")
        if value is not None:
            numbers[int(match[1])] = name
    if not numbers:
        raise UserError(f"{stated.where(())}: a recipe needs an iteration; add `iterations: {{iter1: {{}}}}`")
    first = min(numbers)
    expected = next((first + step for step in range(len(numbers)) if first + step not in numbers), None)
    if expected is not None:
        after = numbers[min(number for number in numbers if number > expected)]
        removed = (f"iter{expected}",)
        raise UserError(
            f"{stated.where(removed if removed in stated.marks else (after,))}: iterations: iter{expected} is "
            f"missing before {after}; number them without "
            f"a gap (an iteration without changes is `iter{expected}: {{}}`; null removes an inherited one)"
        )
    return [numbers[number] for number in sorted(numbers)]
