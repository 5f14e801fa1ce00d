"""What a task of lm-evaluation-harness found, and the measures of eval.json that are made of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from handbook_ext.core.provenance import package_versions
from handbook_ext.core.records import content_id
from handbook_ext.evaluation.set_evaluation import Contamination, EvaluatedPolicy, EvaluatedSet, MeasuredValue, SetEvaluation
from handbook_ext.recipes.settings_benchmarks import HARNESS
from handbook_ext.recipes.settings_harness import PAPER_TASKS

AVERAGE = "average"


class TaskResult(BaseModel):
    """A finished task, or one that could not be run and why (`not_run`).

    metric: name and filter as the harness writes them, `acc_norm,none`; value, standard_error: the metric's own scale; n, of:
    documents measured, and those that the task has; truncated: requests cut on the left to the policy's context; others: the
    task's other metrics; definition: its YAML file, in the harness or in include_path; sha256: of documents, prompts and
    targets, by the rule of the harness's own task hashes.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    task: str
    unit: Literal["%", "points"]
    metric: str | None
    num_fewshot: int | None
    definition: str
    version: str | float | None = None
    value: float | None = None
    standard_error: float | None = None
    n: int = 0
    of: int = 0
    truncated: int = 0
    others: dict[str, float] = {}
    sha256: str | None = None
    not_run: str | None = None


def measures_of(results: Sequence[TaskResult]) -> dict[str, MeasuredValue]:
    """Returns a measure per task, and the average where the six tasks of SELM's table 2 were asked for.

    A share is in %; a standard error is that of the harness, over documents.
    """
    found = {each.task: _measure(each) for each in results}
    if PAPER_TASKS.keys() <= found.keys():
        found[AVERAGE] = _average({name: found[name] for name in PAPER_TASKS})
    return found


def harness_evaluation(policy: EvaluatedPolicy, results: Sequence[TaskResult], *, seed: int) -> SetEvaluation:
    """Returns the content of eval.json; it has no rows, and no prompts were looked for in the training data."""
    whole = EvaluatedSet(
        name=HARNESS, prompts=sum(each.n for each in results), of=sum(each.of for each in results),
        sha256=content_id({each.task: each.sha256 for each in results}),
    )  # fmt: skip
    unchecked = Contamination(overlap=0, of=0, prompt_ids=[])
    return SetEvaluation(
        policy=policy, set=whole, seed=seed, decoding=None, contaminated=unchecked, measures=measures_of(results), rows=[]
    )


def facts_of(results: Sequence[TaskResult]) -> dict[str, Any]:
    """Returns what a manifest records of the harness: its version, and each task's metric, exemplars, version and hash."""
    return {"version": package_versions().get("lm-eval"), "tasks": {each.task: each.model_dump() for each in results}}


def _measure(result: TaskResult) -> MeasuredValue:
    """Returns the measure of one task."""
    scale = 100.0 if result.unit == "%" else 1.0
    value, error = ((None if number is None else scale * number) for number in (result.value, result.standard_error))
    return MeasuredValue(value=value, standard_error=error, n=result.n, unit=result.unit, not_run=result.not_run)


def _average(six: dict[str, MeasuredValue]) -> MeasuredValue:
    """Returns the mean of the paper's six, EQ-Bench's points among the percentages as in the paper; n counts all documents."""
    values, errors = [each.value for each in six.values()], [each.standard_error for each in six.values()]
    if None in values:
        absent = ", ".join(name for name, each in six.items() if each.value is None)
        verb = "are" if ", " in absent else "is"
        return MeasuredValue(value=None, unit="%", not_run=f"not all six tasks were run: {absent} {verb} missing")
    # The tasks share no document, so their errors are independent.
    error = None if None in errors else math.hypot(*errors) / len(six)
    return MeasuredValue(value=fmean(values), standard_error=error, n=sum(each.n for each in six.values()), unit="%")
