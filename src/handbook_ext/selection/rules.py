"""The selection rules, one row each: which pairs a rule makes, what it needs, and one line about it.

Settings, graph and stages read this table, and a test holds recipes/README.md against it; a new rule is one function and one
row, a new `select.keep_by` one function and one row of `KEEP_BY`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, replace

from handbook_ext.core.errors import UserError
from handbook_ext.core.jsonl import uncollected
from handbook_ext.core.records import PreferencePair
from handbook_ext.selection.judged import against_chosen_pairs, best_and_worst_pairs
from handbook_ext.selection.keep_by import KEEP_BY
from handbook_ext.selection.material import Material, Needs, Selected, SelectOptions, by_prompt, portion, require
from handbook_ext.selection.offline import curriculum_pairs, dataset_pairs, gold_over_sample
from handbook_ext.selection.own_labels import LABELS
from handbook_ext.selection.sera import counts, sera_needs, sera_pairs

__all__ = [
    "KEEP_BY", "LABELS", "Material", "Needs", "RULES", "Rule", "SelectOptions", "Selected", "by_prompt", "most_pairs", "needs_of",
    "portion", "require", "select_pairs",
]  # fmt: skip


@dataclass(frozen=True)
class Rule:
    """A way to make preference pairs: the function from material to pairs, what it needs, and one line about it.

    `most` gives the pairs that it makes at most of a number of prompts: one of each, unless the rule says otherwise.
    """

    pairs: Callable[[Material, SelectOptions], Selected]
    needs: Callable[[SelectOptions], Needs]
    summary: str
    most: Callable[[int, SelectOptions], int] = lambda prompts, options: prompts


def always(needs: Needs) -> Callable[[SelectOptions], Needs]:
    """Returns the needs of a rule whose other settings do not matter."""
    return lambda options: needs


JUDGED = always(Needs(samples=True, rankings=True))
BOTH_JUDGED = always(Needs(samples=True, rankings=True, offline_ranked=True))
RULES = {
    "dataset": Rule(dataset_pairs, always(Needs()), "the original labels"),
    "best_and_worst": Rule(best_and_worst_pairs, JUDGED, "best and worst of samples and offline completions (SELM's rule A)"),
    "against_chosen": Rule(against_chosen_pairs, BOTH_JUDGED, "the sample replaces chosen or rejected (SELM's rule B)"),
    "sera": Rule(
        sera_pairs,
        sera_needs,
        "offline pairs of largest keep_by, and pairs of the policy's own samples (SeRA)",
        lambda prompts, options: sum(counts(prompts, options.keep, options.bootstrap)),
    ),
    "curriculum": Rule(curriculum_pairs, always(Needs(rated_answers=True)), "the best rated answer over a worse one (Curry-DPO)"),
    "gold_over_sample": Rule(gold_over_sample, always(Needs(samples=True)), "the data's chosen over the first sample (SPIN)"),
}


def needs_of(options: SelectOptions) -> Needs:
    """Returns what the rule of these settings reads besides the offline pairs."""
    return _rule(options).needs(options)


def most_pairs(prompts: int, options: SelectOptions) -> int:
    """Returns how many pairs the rule of these settings makes at most of a number of prompts."""
    return _rule(options).most(prompts, options)


def select_pairs(material: Material, options: SelectOptions) -> Selected:
    """Returns the pairs that the rule makes; `facts` counts them by origin, by flipped label and by explored sample."""
    with uncollected():
        selected = _rule(options).pairs(material, options)
    # After the rule, so that every rule that explores has the setting.
    pairs = skip_explored_chosen(selected.pairs) if options.explore_as_chosen == "skip" else selected.pairs
    explored = [pair for pair in pairs if pair.explore is not None]
    facts = {
        "origins": dict(Counter(f"{pair.chosen_origin} over {pair.rejected_origin}" for pair in pairs)),
        "swapped": sum(pair.swapped for pair in pairs), "explored": len(explored),
        "explore_is_chosen": sum(pair.explore == pair.chosen for pair in explored),
    }  # fmt: skip
    return replace(selected, pairs=pairs, facts=facts | selected.facts)


def skip_explored_chosen(pairs: Iterable[PreferencePair]) -> list[PreferencePair]:
    """Returns the pairs, without the explored sample where it is chosen: there the exploration term works against the loss."""
    return [pair.exploring(None) if pair.explore == pair.chosen else pair for pair in pairs]


def _rule(options: SelectOptions) -> Rule:
    """Returns the row of the table; raises UserError for a name that is not in it."""
    tables: dict[str, Collection[str]] = {"rule": RULES, "keep_by": KEEP_BY, "bootstrap_labels": LABELS}
    for setting, table in tables.items():
        if (name := getattr(options, setting)) not in table:
            raise UserError(f"select.{setting}: {name!r} is not part of this version; it has: {', '.join(table)}")
    return RULES[options.rule]
