"""Runs beside each other on prompt sets: measure by measure, and paired tests where verdicts of the same prompts are left."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import combinations
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from handbook_ext.objectives.metrics import Scores
from handbook_ext.reports.evaluations import Json, read_json
from handbook_ext.reports.pairing import Compared, correct, paired, same_seeds

FORMAT = 6  # Of a set's eval.json; the loop's own evaluation, of another format, lies one folder higher.


def set_files(folder: Path, policy: str) -> dict[str, Path]:
    """Returns the evaluations of a policy on prompt sets, by the name of the set."""
    return {path.parent.name: path for path in sorted((folder / policy).glob("*/eval.json"))}


def summarise_sets(compared: Sequence[Compared], **bootstrap: Any) -> Json:
    """Returns the measures of each set that two runs or more have: `rows` of values, `tests`, and sentences on what is left out."""
    found = [[_read(run.folder, each.last) for run in each.runs] for each in compared]
    names = list(dict.fromkeys(name for runs in found for run in runs for name in run))
    shared = [name for name in names if sum(any(name in run for run in runs) for runs in found) > 1]
    rows, tests, left_out = [], [], []
    for name in shared:
        left_out += [
            f"{name}: {one['contaminated']['overlap']} of {one['contaminated']['of']} prompts are in the training data of {each.label}"
            for each, runs in zip(compared, found, strict=True)
            for one in [run[name] for run in runs if name in run][:1]
            if (one.get("contaminated") or {}).get("overlap")
        ]  # fmt: skip
        measures = dict.fromkeys(key for runs in found for run in runs for key in run.get(name, {}).get("measures", {}))
        for measure in measures:
            values = [_in_words([run[name]["measures"].get(measure) for run in runs if name in run]) for runs in found]
            unit = next(_units(name, measure, found), "")
            rows.append({"set": name, "measure": measure, "unit": unit, "values": values})
            family, reasons = _tests(compared, name, measure, **bootstrap)
            correct(
                family, bootstrap["confidence"], (f"is higher on {name} {measure} than", f"is lower on {name} {measure} than")
            )
            tests += family
            left_out += reasons
    return {"rows": rows, "tests": tests, "left_out": left_out}


def _read(folder: Path, policy: str) -> dict[str, Json]:
    """Returns the evaluations of a policy by set."""
    found = {name: read_json(path) for name, path in set_files(folder, policy).items()}
    return {name: one for name, one in found.items() if one.get("format") == FORMAT and "measures" in one}


def _units(name: str, measure: str, found: Sequence[Sequence[dict[str, Json]]]) -> Iterable[str]:
    """Yields the unit of a measure as the evaluations have it."""
    for run in (run for runs in found for run in runs if name in run):
        if one := run[name]["measures"].get(measure):
            yield str(one.get("unit") or "")


def _in_words(measures: Sequence[Json | None]) -> str:
    """Returns the value of a measure with its standard error; of several seeds their mean; or why there is none."""
    known = [one for one in measures if one is not None and one.get("value") is not None]
    if not known:
        reasons = [str(one["not_run"]) for one in measures if one is not None and one.get("not_run")]
        return f"not run: {reasons[0]}" if reasons else "-"
    if len(known) > 1:
        return f"{fmean(one['value'] for one in known):.2f} ({len(known)} seeds)"
    error = known[0].get("standard_error")
    return f"{known[0]['value']:.2f}" + (f" ± {error:.2f}" if error is not None else "")


def _tests(compared: Sequence[Compared], name: str, measure: str, **bootstrap: Any) -> tuple[list[Json], list[str]]:
    """Returns the paired tests of every two runs on a measure, and why some that have its value were not tested."""
    tests: list[Json] = []
    reasons = []
    for ours, theirs in combinations(compared, 2):
        pairs, reason = [], ""
        for our, their in same_seeds(ours, theirs):
            both = [_read(run.folder, side.last).get(name) for run, side in ((our, ours), (their, theirs))]
            if None in both:
                continue
            why, matched = _matched(both[0] or {}, both[1] or {}, measure)
            reason = reason or why
            pairs += [matched] if matched else []
        if pairs:
            about = {"ours": f"{ours.label} {ours.last}", "theirs": f"{theirs.label} {theirs.last}"}
            tests.append({"set": name, "measure": measure} | about | paired(pairs, **bootstrap))
        elif reason:
            reasons.append(f"{name} {measure}: {ours.label} and {theirs.label} are not tested against each other: {reason}")
    return tests, reasons


def _matched(our: Json, their: Json, measure: str) -> tuple[str, tuple[Scores, Scores] | None]:
    """Returns two policies' verdicts on the prompts that both have, or why they do not compare; neither where there are none."""
    first, second = (one["measures"].get(measure) for one in (our, their))
    if first is None or second is None or first.get("value") is None or second.get("value") is None:
        return "", None
    if our["set"].get("sha256") != their["set"].get("sha256"):
        return "their sets have other prompts", None
    if first.get("judge") != second.get("judge"):
        judges = [str((one.get("judge") or {}).get("model")) for one in (first, second)]
        return f"one is judged by {judges[0]}, the other by {judges[1]}", None
    ours, theirs = (_by_prompt(one, measure) for one in (our, their))
    names = sorted(ours.keys() & theirs.keys())
    if not names:  # As of measures of lengths, and of the harness, which keeps no rows.
        return "", None
    nothing = np.zeros(len(names))
    scores = [Scores(tuple(names), np.array([one[name] for name in names]), nothing) for one in (ours, theirs)]
    return "", (scores[0], scores[1])


def _by_prompt(evaluation: Json, measure: str) -> dict[str, float]:
    """Returns a measure by prompt id: the mean over the judge's runs and the prompt's turns, without failed verdicts."""
    found = {}
    for row in evaluation.get("rows") or []:
        runs = (row.get("verdicts") or {}).get(measure) or []
        numbers = [float(one) for turns in runs for one in turns if one is not None]
        if numbers:
            found[str(row["prompt_id"])] = fmean(numbers)
    return found
