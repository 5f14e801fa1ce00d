"""What stands above and below a filled table: judges, scale, sample sizes, intervals, and what is missing and why."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from handbook_ext.reports.measurements import WAYS, Filling, Lack, Measurement
from handbook_ext.reports.paper_claims import claim_rule, summary_of
from handbook_ext.reports.paper_headings import Column
from handbook_ext.reports.paper_tables import PaperTable
from handbook_ext.reports.paper_verdicts import Verdicts, judge_of, rule_in_words

SEEN = "\u2020"  # A dagger: behind a value whose prompts training has seen in part.


def lead_of(table: PaperTable, filling: Filling, verdicts: Verdicts) -> list[str]:
    """Returns the sentences above a table: what its cells hold, whether ours can be compared at all, and the verdicts in one."""
    if not filling.stands:
        return []
    level = next((f"{each.confidence:.0%} ".replace("%", " %") for each in filling.ours.values()), "")
    lines = [
        f"In brackets behind the paper's number: ours with its {level}interval, its difference to the paper's, and the verdict; "
        "or not run."
    ]
    if filling.released is not None:
        lines.append(
            "Behind each column the released checkpoint under our evaluation: its difference to the paper's is the error of the "
            "evaluation, ours less it is the error of the training."
        )
    if filling.model is not None:
        lines.append(f"Ours are runs of {filling.model}, another model than the paper's: no cell of it reproduces the paper.")
    lines += other_judges(table, filling)
    return [*lines, summary_of(table, filling, verdicts)]


def other_judges(table: PaperTable, filling: Filling) -> list[str]:
    """Returns a line for each judge of ours that is not the paper's."""
    found: dict[tuple[str, str], dict[str, None]] = {}
    for key, each in _values(filling):
        column = _column(table, key[2])
        paper = judge_of(table, column)
        if each.judge is not None and paper is not None and not paper.is_model(each.judge.model):
            found.setdefault((each.judge.model, paper.words), {})[column.name] = None
    return [
        f"Judged by {model}, not by the paper's judge, {paper}: {_listed(columns)} cannot be compared with the paper's."
        for (model, paper), columns in found.items()
    ]


def footers_of(table: PaperTable, filling: Filling) -> list[str]:
    """Returns the lines below a table: scale, judges and sample sizes, intervals, contamination, what is lacking, the rule."""
    lines = [*_scale(filling), *_samples(table, filling), *_intervals(filling), *_seen(table, filling), *filling.notes]
    lines += lacking([*filling.lacks.values()], released=False)
    if filling.released is not None:
        lines += lacking([*filling.released_lacks.values()], released=True)
    return [*lines, *rule_in_words(table, filling), *claim_rule(table, filling)]


def lacking(lacks: Sequence[Lack], *, released: bool) -> list[str]:
    """Returns why cells have no value: what was never evaluated by recipe and policy, and each other reason once."""
    wanted: dict[str, dict[str, dict[str, None]]] = {}
    reasons: dict[str, int] = {}
    for lack in lacks:
        if lack.set:
            wanted.setdefault(lack.recipe, {}).setdefault(lack.set, {})[lack.policy] = None
        elif lack.reason:
            reasons[lack.reason] = reasons.get(lack.reason, 0) + 1
    groups: dict[tuple[str, ...], list[str]] = {}
    for recipe, sets in wanted.items():
        policies = dict.fromkeys(policy for each in sets.values() for policy in each)
        groups.setdefault(tuple(sorted(sets)), []).append(f"{recipe} ({', '.join(policies)})")
    checkpoints = " CHECKPOINTS=released" if released else ""
    lines = []
    for sets_of, recipes in groups.items():
        quoted = f'"{" ".join(sets_of)}"' if len(sets_of) > 1 else sets_of[0]
        goal = f"make <recipe>-eval SETS={quoted}{checkpoints}"
        lines.append(f"Not evaluated on {', '.join(sets_of)}: {'; '.join(recipes)}. {goal}")
    whose = "Released checkpoints, " if released else ""
    return [*lines, *(f"{whose}{count} {'cell' if count == 1 else 'cells'} not run: {text}." for text, count in reasons.items())]


def _scale(filling: Filling) -> list[str]:
    """Returns which recipes the values of ours are of, and over how many seeds."""
    found: dict[str, set[int]] = {}
    for key, each in filling.ours.items():
        if key in filling.stands:
            found.setdefault(filling.stands[key].recipe, set()).add(each.seeds)
    told = [f"{recipe} ({_range(seeds)} {'seed' if seeds == {1} else 'seeds'})" for recipe, seeds in found.items()]
    return [f"Scale: {', '.join(told)}."] if told else []


def _samples(table: PaperTable, filling: Filling) -> list[str]:
    """Returns for each prompt set and judge how much was judged, and how the answers were drawn."""
    found: dict[tuple[str, str, str], list[Measurement]] = {}
    for key, each in _values(filling):
        column = _column(table, key[2])
        judge = "no judge" if each.judge is None else f"judge {each.judge.model}"
        if each.judge is not None and each.judge.temperature is not None:
            judge += f" at temperature {each.judge.temperature:g}"
        if each.judge is not None:
            judge += f", {each.judge_runs} {'run' if each.judge_runs == 1 else 'runs'}" + (", local" if each.judge.local else "")
        drawn = ""
        if each.decoding is not None:
            drawn = f"; answers at temperature {each.decoding.temperature:g}, {each.decoding.max_new_tokens} tokens at most"
        found.setdefault((str(column.set), judge, drawn), []).append(each)
    lines = []
    for (name, judge, drawn), values in found.items():
        asked = _range({each.prompts for each in values})
        of = _range({each.of for each in values})
        missing = sum(each.missing for each in values)
        lines.append(
            f"{name}: {judge}; {asked} of {of} prompts, {_range({each.n for each in values})} verdicts a cell, "
            f"{missing} without a reading{drawn}."
        )
    return lines


def _intervals(filling: Filling) -> list[str]:
    """Returns how the intervals were made, and of how many values."""
    counts: dict[str, int] = {}
    for _, each in _values(filling):
        counts[each.way] = counts.get(each.way, 0) + 1
    told = [f"{WAYS[way]} ({count})" for way, count in counts.items()]
    return [f"Intervals: {'; '.join(told)}."] if told else []


def _seen(table: PaperTable, filling: Filling) -> list[str]:
    """Returns which values are marked because training has seen prompts of their set."""
    found: dict[str, int] = {}
    for key, each in _values(filling):
        if each.seen:
            name = str(_column(table, key[2]).set)
            found[name] = max(found.get(name, 0), each.seen)
    return [f"{SEEN} Contaminated: up to {count} prompts of {name} are among those of training." for name, count in found.items()]


def _values(filling: Filling) -> Iterable[tuple[tuple[str, str, str], Measurement]]:
    """Yields all values of a filling, those of released checkpoints last."""
    yield from filling.ours.items()
    yield from (filling.released or {}).items()


def _column(table: PaperTable, name: str) -> Column:
    """Returns a column by name."""
    return next(each for each in table.heading.columns if each.name == name)


def _range(numbers: set[int]) -> str:
    """Returns one number, or the least and the greatest."""
    return str(min(numbers)) if len(numbers) == 1 else f"{min(numbers)} to {max(numbers)}"


def _listed(names: Iterable[str]) -> str:
    """Returns names with commas and an `and`."""
    *rest, last = names
    return f"{', '.join(rest)} and {last}" if rest else last
