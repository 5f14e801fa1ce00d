"""What an iteration may override, and what its selection and training ask of the iterations before it."""

from __future__ import annotations

from collections.abc import Sequence

from handbook_ext.core.errors import UserError
from handbook_ext.recipes.checks import mentioned, written
from handbook_ext.recipes.iteration import Iteration
from handbook_ext.recipes.yaml_tree import Tree, nearest

OVERRIDABLE = ("generate", "rank", "score", "select", "train", "evaluate")


def check_override(name: str, own: Tree) -> None:
    """Raises UserError when an iteration overrides what belongs to the whole run."""
    if not isinstance(own.values, dict):
        raise UserError(f"{own.where(())}: iterations.{name}: {written(own.values)} is not a mapping of sections")
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
    if ("generate", "engine") in own.marks:
        raise UserError(
            f"{own.where(('generate', 'engine'))}: iterations.{name} cannot change generate.engine: one engine samples in the "
            "whole run; state it in the section `generate`"
        )
    if ("evaluate", "judge") in own.marks:
        raise UserError(
            f"{own.where(('evaluate', 'judge'))}: iterations.{name} cannot change evaluate.judge: one judge marks all "
            "policies of a run; state it in the section `evaluate`"
        )


def check_first_pairs(each: Iteration, *, first: bool) -> None:
    """Raises UserError for exploration where nothing is sampled, or margins where no iteration has trained a policy yet."""
    name, select, train = each.name, each.settings.select, each.settings.train
    message = None
    if not each.needs.samples and train.alpha > 0:
        keeps = "keeps the original labels and " if select.rule == "dataset" else ""
        message = (
            f"select.rule {select.rule} {keeps}samples nothing to explore, but train.alpha is {train.alpha}; "
            f"set train.alpha: 0 in {name}"
        )
    if first and each.needs.margins and train.reward_form.reference:
        message = (
            f"select.rule {select.rule} needs a policy that an iteration before has trained, and {name} is the first; "
            "give it select.rule: dataset"
        )
    if message is not None:
        raise UserError(f"{each.tree.where(mentioned(message, (), each.tree))}: {name}: {message}")


def check_lengths(iterations: Sequence[Iteration]) -> None:
    """Raises UserError where margins compare log-probs of completions that iterations encode or cut in different ways."""
    names = ("max_length", "max_prompt_length", "truncation", "legacy_template")
    limits = [tuple(getattr(each.settings.train, name) for name in names) for each in iterations]
    if len(set(limits)) == 1 or not any(each.needs.log_probs for each in iterations):
        return
    odd = iterations[next(index for index, each in enumerate(limits) if each != limits[0])]
    raise UserError(
        f"{odd.tree.where(('train', 'max_length'))}: {odd.name}: train.{', '.join(names)} must be the same in "
        f"all iterations where select.rule {next(each.settings.select.rule for each in iterations if each.needs.log_probs)} "
        "compares log-probs between them; state them once, under `train`"
    )
