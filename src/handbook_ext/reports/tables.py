"""Tables over many recipes and seeds: the numbers of their rows; those of their claims are in `claims`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations_with_replacement
from statistics import fmean
from typing import Any

from handbook_ext.core.errors import UserError
from handbook_ext.core.kept import iteration_of
from handbook_ext.objectives.metrics import Interval, Scores, comparable, compare_scores, hierarchical_interval, share_prompts
from handbook_ext.recipes.table_files import TableRow
from handbook_ext.reports.evaluations import Evaluator, judged_by_all
from handbook_ext.reports.row_sources import Source, evaluation_of, implicit_of, log_ratios, name_of, pairs_of
from handbook_ext.selection.sera import jaccard


@dataclass(frozen=True)
class Measured:
    """A row's policy over its seeds, one list entry per seed: scores by decoding, single numbers, and what evaluated it.

    `initial_scores` are those of the policy that the loop starts from. `swapped` maps the prompt id of each offline pair that
    was trained on to whether its label is flipped; a seed that trains on none has no entry.
    """

    row: TableRow
    policy: str
    scores: dict[str, list[Scores]]
    initial_scores: dict[str, list[Scores]]
    numbers: dict[str, list[float]]
    evaluators: list[Evaluator]
    swapped: list[dict[str, bool]]


def measure(row: TableRow, sources: Sequence[Source], start: str, last: str) -> Measured:
    """Returns a row's scores and numbers, from one run folder or kept row per seed; the recipe goes from `start` to `last`.

    Raises UserError where a policy and its start were not evaluated alike.
    """
    policy = row.shown(start, last)
    scores: dict[str, list[Scores]] = {}
    initial_scores: dict[str, list[Scores]] = {}
    numbers: dict[str, list[float]] = {}
    evaluators, swapped = [], []
    for source in sources:
        (ours, evaluator), (theirs, other) = (evaluation_of(source, name) for name in (policy, start))
        if evaluator != other or not comparable(ours, theirs):
            raise UserError(
                f"{name_of(source)}: {policy} has not the judge, prompts and decodings of {start}; evaluate both alike"
            )
        both, _ = judged_by_all({"ours": ours, "theirs": theirs})
        for by_decoding, name in ((scores, "ours"), (initial_scores, "theirs")):
            for decoding, one in both[name].items():
                by_decoding.setdefault(decoding, []).append(one)
        evaluators.append(evaluator)
        pairs = pairs_of(source, iteration_of(policy))
        found = implicit_of(source, policy)
        if pairs is not None and pairs.pairs:
            found = found | {"on_policy": pairs.on_policy / pairs.pairs}
        for name, value in found.items():
            numbers.setdefault(name, []).append(value)
        swapped += [pairs.flipped] if pairs is not None and pairs.swapped else []
    return Measured(row, policy, scores, initial_scores, numbers, evaluators, swapped)


def summarise_row(measured: Measured, **bootstrap: Any) -> dict[str, Any]:
    """Returns a row's numbers: rewards, tokens, win rates, shares with bootstrap intervals; others as mean and range of seeds."""
    row = measured.row
    summary: dict[str, Any] = {"name": row.name, "recipe": row.recipe, "policy": measured.policy, "decodings": {}}
    summary |= {"paper": row.paper, "x": row.x, "tuned": row.tuned}
    for decoding, scores in measured.scores.items():
        crossed = share_prompts(scores)
        summary["decodings"][decoding] = {
            "reward": hierarchical_interval([one.rewards for one in scores], crossed=crossed, **bootstrap),
            "tokens": hierarchical_interval([one.tokens for one in scores], crossed=crossed, **bootstrap),
            "win_rate": compare_scores(scores, measured.initial_scores[decoding], **bootstrap)["win_rate"],
        }
    for name, values in measured.numbers.items():
        summary[name] = Interval(fmean(values), min(values), max(values))
    if measured.swapped:
        summary["swapped_kept"] = hierarchical_interval([list(flags.values()) for flags in measured.swapped], **bootstrap)
    return summary


def flip_rate_difference(ours: Sequence[dict[str, bool]], theirs: Sequence[dict[str, bool]], **bootstrap: Any) -> Interval:
    """Returns our share of flipped labels less theirs, in [-1, 1], with its interval over seeds and pairs.

    ours, theirs: one dictionary per seed, from the prompt id of a kept offline pair to whether its label is flipped. Raises
    UserError where a row keeps no offline pairs.
    """
    if not ours or len(ours) != len(theirs):
        raise UserError("flipped labels are compared between rows that train on offline pairs; compare these by win rate")
    groups = []
    for mine, other in zip(ours, theirs, strict=True):
        pairs = mine | other
        share, against = fmean(mine.values()), fmean(other.values())
        # The rows keep overlapping sets of pairs, so one draw of pairs has to serve both. Each pair therefore enters with its
        # linearised contribution to the difference of the two shares (delta method): flips are centred on the row's share, or
        # the random number of its pairs in a draw would widen the interval.
        groups.append([
            share - against
            + len(pairs) * ((name in mine) * (flipped - share) / len(mine) - (name in other) * (flipped - against) / len(other))
            for name, flipped in pairs.items()
        ])  # fmt: skip
    return hierarchical_interval(groups, **bootstrap)


def kept_ids(source: Source, iteration: str) -> set[str]:
    """Returns the prompts of an iteration's offline pairs, by `short_id`; raises UserError where there are no pairs."""
    pairs = pairs_of(source, iteration)
    if pairs is None or pairs.offline is None:
        raise UserError(f"{name_of(source)}: has no pairs of {iteration}; run make, which makes them")
    return {*pairs.offline}


def overlap_between_rows(sources: dict[str, Sequence[Source]], iteration: str) -> dict[tuple[str, str], float]:
    """Returns the Jaccard similarity of the kept offline pairs of every two rows, a mean over seeds."""
    kept = {name: [kept_ids(source, iteration) for source in each] for name, each in sources.items()}
    return {
        (ours, theirs): fmean(jaccard(a, b) for a, b in zip(kept[ours], kept[theirs], strict=True))
        for ours, theirs in combinations_with_replacement(kept, 2)
    }


def overlap_between_iterations(sources: Sequence[Source], iterations: Sequence[str]) -> float:
    """Returns the Jaccard similarity of the offline pairs that one recipe kept in two iterations, a mean over seeds."""
    return fmean(jaccard(*(kept_ids(source, iteration) for iteration in iterations)) for source in sources)


def reward_differences(ours: Source, theirs: Source, side: str) -> dict[str, float]:
    """Returns our policy's log-ratio to the initial policy less theirs by prompt id, in nats.

    ours, theirs: eval.json of each, or its kept row. side: chosen or rejected compare the same held-out completions (SELM,
    figure 4), sample each policy's own (figure 5).
    """
    values = [log_ratios(each, side) for each in (ours, theirs)]
    return {name: value - values[1][name] for name, value in values[0].items() if name in values[1]}
