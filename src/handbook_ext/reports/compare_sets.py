"""Runs beside each other on prompt sets: measure by measure, and paired tests where verdicts of the same prompts are left."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from statistics import fmean
from typing import Any

import numpy as np

from handbook_ext.evaluation.set_evaluation import MeasuredValue, SetEvaluation, current_evaluations
from handbook_ext.objectives.metrics import Scores
from handbook_ext.reports.evaluations import Json, read_json
from handbook_ext.reports.pairing import Compared, correct, paired, same_seeds
from handbook_ext.reports.run_report import FinishedRun

VS_START = "vs_start"
Sets = dict[str, SetEvaluation]


def summarise_sets(compared: Sequence[Compared], **bootstrap: Any) -> Json:
    """Returns the measures of the sets that several runs' last policies have: `rows`, `tests`, and what is left out, in words."""
    found = {each.label: [read_sets(run, each.last) for run in each.runs] for each in compared}
    names = list(dict.fromkeys(name for runs in found.values() for run in runs for name in run))
    stale = [current_evaluations(run.folder)[1] for each in compared for run in each.runs]
    rows, tests, left_out = [], [], [told for each in stale for told in each.values()]
    for name in names:
        of_set = {label: [run[name] for run in runs if name in run] for label, runs in found.items()}
        if sum(map(bool, of_set.values())) < 2:
            continue
        left_out += [
            f"{name}: {one.contaminated.overlap} of its {one.contaminated.of} prompts are in the training data of {label}"
            for label, evaluations in of_set.items()
            for one in evaluations[:1]
            if one.contaminated.overlap
        ]
        every = [one for evaluations in of_set.values() for one in evaluations]
        for measure in dict.fromkeys(key for one in every for key in one.measures):
            unit = next(one.measures[measure].unit for one in every if measure in one.measures)
            values = [in_words([one.measures[measure] for one in each if measure in one.measures]) for each in of_set.values()]
            rows.append({"set": name, "measure": measure, "unit": unit, "values": values})
            family, reasons = _tests(compared, found, name, measure, **bootstrap)
            where = f"on {name} {measure}"
            correct(family, bootstrap["confidence"], (f"is higher {where} than", f"is lower {where} than"))
            tests += family
            left_out += reasons
    return {"rows": rows, "tests": tests, "left_out": left_out}


def read_sets(run: FinishedRun, policy: str) -> Sets:
    """Returns the finished evaluations of a run's policy by set, without those made before it was trained again."""
    current, _ = current_evaluations(run.folder)
    return {name: one for (owner, name), one in current.items() if owner == policy}


def in_words(measures: Sequence[MeasuredValue]) -> str:
    """Returns the value of a measure with its standard error; of several seeds their mean; or why there is none."""
    known = [one.value for one in measures if one.value is not None]
    if not known:
        reasons = [one.not_run for one in measures if one.not_run]
        return f"not run: {reasons[0]}" if reasons else "-"
    if len(known) > 1:
        return f"{fmean(known):.2f} ({len(known)} seeds)"
    error = next(one.standard_error for one in measures if one.value is not None)
    return f"{known[0]:.2f}" + (f" ± {error:.2f}" if error is not None else "")


def _tests(
    compared: Sequence[Compared], found: dict[str, list[Sets]], name: str, measure: str, **bootstrap: Any
) -> tuple[list[Json], list[str]]:
    """Returns the paired tests of every two runs on a measure, and why some that have its value were not tested."""
    tests: list[Json] = []
    reasons = []
    for ours, theirs in combinations(compared, 2):
        pairs, reason = [], ""
        for our, their in same_seeds(ours, theirs):
            first, second = (found[side.label][side.runs.index(run)].get(name) for side, run in ((ours, our), (theirs, their)))
            if first is None or second is None:
                continue
            why = "each is held against its own start" if measure == VS_START and _start(our) != _start(their) else ""
            why, matched = (why, None) if why else matched_verdicts(first, second, measure)
            reason = reason or why
            pairs += [matched] if matched else []
        if pairs:
            about = {"ours": f"{ours.label} {ours.last}", "theirs": f"{theirs.label} {theirs.last}"}
            tests.append({"set": name, "measure": measure} | about | paired(pairs, **bootstrap))
        elif reason:
            reasons.append(f"{name} {measure}: {ours.label} and {theirs.label} are not tested against each other: {reason}")
    return tests, reasons


def matched_verdicts(our: SetEvaluation, their: SetEvaluation, measure: str) -> tuple[str, tuple[Scores, Scores] | None]:
    """Returns two policies' verdicts on the prompts that both have, or why they do not compare; neither where there are none."""
    first, second = our.measures.get(measure), their.measures.get(measure)
    if first is None or second is None or first.value is None or second.value is None:
        return "", None
    if our.set.sha256 != their.set.sha256:
        return "their sets have other prompts", None
    if first.judge != second.judge:
        judges = [f"{one.model} ({one.kind})" if one else "nobody" for one in (first.judge, second.judge)]
        alike = "the same model under other settings" if judges[0] == judges[1] else f"{judges[0]}, the other by {judges[1]}"
        return f"one is judged by {alike}", None
    ours, theirs = by_prompt(our, measure), by_prompt(their, measure)
    names = sorted(ours.keys() & theirs.keys())
    if not names:  # As of lengths, and of the harness, which keeps no rows.
        return "", None
    nothing = np.zeros(len(names))
    one, other = (Scores(tuple(names), np.array([found[name] for name in names]), nothing) for found in (ours, theirs))
    return "", (one, other)


def by_prompt(evaluation: SetEvaluation, measure: str) -> dict[str, float]:
    """Returns a measure by prompt id: the mean over the judge's runs and the prompt's turns, without failed verdicts."""
    found = {}
    for row in evaluation.rows:
        numbers = [one for turns in row.verdicts.get(measure, []) for one in turns if one is not None]
        if numbers:
            found[row.prompt_id] = fmean(numbers)
    return found


def _start(run: FinishedRun) -> str:
    """Returns the hash of the policy that a run starts from."""
    return str(read_json(run.folder / next(iter(run.policies)) / "eval.json")["policy"]["sha256"])
