"""What the policies of a run, and released checkpoints beside them, measured on prompt sets."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from handbook_ext.evaluation.set_evaluation import SetEvaluation, current_evaluations
from handbook_ext.graph.rules_benchmarks import RELEASED
from handbook_ext.reports.compare_sets import in_words
from handbook_ext.reports.evaluations import Json

PAIRWISE = "pairwise"
"""The kind of question whose measures share no verdicts."""


def sets_of(folder: Path, policies: Iterable[str]) -> Json | None:
    """Returns the measures of a run's finished set evaluations, None where there are none.

    `policies` are those of the run in their order; released checkpoints follow. `rows` have a measure each: its set, unit, judge
    and a value in words by policy. `remarks` say how many of a set's prompts were asked, what training has seen, what is missing.
    An evaluation of a policy that was trained again since is left out, and a remark says so.
    """
    found, stale = current_evaluations(folder)
    released = sorted({policy for policy, _ in found if policy.startswith(RELEASED)})
    names = [name for name in (*policies, *released) if any(policy == name for policy, _ in found)]
    if not names and not stale:
        return None
    rows, remarks = [], [f"left out: {told}: make {folder.name}-eval SETS={chosen}" for (_, chosen), told in stale.items()]
    for chosen in sorted({name for policy, name in found if policy in names}):
        by_policy = {name: found[name, chosen] for name in names if (name, chosen) in found}
        remarks += _remarks(chosen, by_policy)
        for measure in dict.fromkeys(key for one in by_policy.values() for key in one.measures):
            measured = {name: one.measures[measure] for name, one in by_policy.items() if measure in one.measures}
            judges = {each.judge.model + " (local)" * each.judge.local for each in measured.values() if each.judge is not None}
            values = {name: in_words([each]) for name, each in measured.items()}
            unit = next(each.unit for each in measured.values())
            rows.append({"set": chosen, "measure": measure, "unit": unit, "judge": ", ".join(sorted(judges)), "values": values})
    return {"policies": names, "rows": rows, "remarks": remarks}


def _remarks(name: str, by_policy: dict[str, SetEvaluation]) -> list[str]:
    """Returns what a reader of a set's values must know."""
    asked = {policy: (one.set.prompts, one.set.of) for policy, one in by_policy.items()}
    seen = {policy: (one.contaminated.overlap, one.contaminated.of) for policy, one in by_policy.items()}
    remarks = [f"{name}: the first {count} of its {of} prompts{whose}" for (count, of), whose in _by_value(asked) if count < of]
    remarks += [
        f"{name}: training has seen {count} of the {of} prompts{whose}" for (count, of), whose in _by_value(seen) if count
    ]
    missing = {policy: _missing(found) for policy, found in by_policy.items()}
    told = ", ".join(f"{count} of {policy}" for policy, count in missing.items() if count)
    return [*remarks, *([f"{name}: verdicts that could not be read: {told}"] if told else [])]


def _by_value(values: dict[str, tuple[int, int]]) -> list[tuple[tuple[int, int], str]]:
    """Returns each value once, with the policies that have it in words; without words where all have the same."""
    every = list(dict.fromkeys(values.values()))
    named = {one: ", ".join(policy for policy, value in values.items() if value == one) for one in every}
    return [(one, f" ({named[one]})" if len(every) > 1 else "") for one in every]


def _missing(found: SetEvaluation) -> int:
    """Returns how many verdicts of an evaluation could not be read, each counted once.

    Measures of one kind of question are made of the same verdicts (MT-Bench's turns of those of its average, a length-controlled
    win rate of those of the plain one), but for win rates over several models, each of which has its own.
    """
    by_kind: dict[str, list[int]] = {}
    for each in found.measures.values():
        by_kind.setdefault("" if each.judge is None else each.judge.kind, []).append(each.missing)
    return sum(sum(counts) if kind == PAIRWISE else max(counts) for kind, counts in by_kind.items())
