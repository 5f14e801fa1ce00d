"""What a task of lm-evaluation-harness found, and the measures of eval.json that are made of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

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


def measures_of(results: Sequence[TaskResult]) -> dict[str, dict[str, Any]]:
    """Returns eval.json's measures: one per task, and the average where the six tasks of SELM's table 2 were asked for.

    A share is in %; a standard error is that of the harness, over documents.
    """
    found = {each.task: _measure(each) for each in results}
    if PAPER_TASKS.keys() <= found.keys():
        found[AVERAGE] = _average([found[name] for name in PAPER_TASKS], list(PAPER_TASKS))
    return found


def _measure(result: TaskResult) -> dict[str, Any]:
    """Returns the measure of one task."""
    scale = 100.0 if result.unit == "%" else 1.0
    value, error = ((None if number is None else scale * number) for number in (result.value, result.standard_error))
    return _entry(value, error, result.n, result.unit, result.not_run)


def _average(six: Sequence[dict[str, Any]], names: Sequence[str]) -> dict[str, Any]:
    """Returns the mean of the paper's six, EQ-Bench's points among the percentages as in the paper; n counts all documents."""
    missing = [name for name, each in zip(names, six, strict=True) if each["value"] is None]
    if missing:
        return _entry(None, None, 0, "%", f"not all six tasks were run: {', '.join(missing)} lack{'s' * (len(missing) == 1)}")
    errors = [each["standard_error"] for each in six]
    # The tasks share no document, so their errors are independent.
    error = None if None in errors else math.sqrt(sum(each**2 for each in errors)) / len(six)
    return _entry(fmean(each["value"] for each in six), error, sum(each["n"] for each in six), "%", None)


def _entry(value: float | None, error: float | None, n: int, unit: str, not_run: str | None) -> dict[str, Any]:
    """Returns a measure in the form of eval.json; no judge has a part in it."""
    return {
        "value": value, "standard_error": error, "n": n, "missing": 0, "unit": unit, "judge": None, "runs": 1, "not_run": not_run,
    }  # fmt: skip
