"""Measures of the harness: shares in %, points as they are, and the average of the paper's six, or why there is none."""

from __future__ import annotations

from typing import Any

import pytest

from handbook_ext.evaluation.harness_measures import TaskResult, facts_of, harness_evaluation, measures_of
from handbook_ext.evaluation.set_evaluation import EvaluatedPolicy, MeasuredValue, SetEvaluation
from handbook_ext.recipes.settings_harness import PAPER_TASKS

# SELM, table 2, SELM Iter 3 (Zephyr), whose average the paper prints as 58.9.
SELM_ITER_3 = {
    "gsm8k_cot": 0.438, "hellaswag": 0.854, "arc_challenge": 0.619, "truthfulqa_mc2": 0.524, "eq_bench": 69.9,
    "openbookqa": 0.398,
}  # fmt: skip


def result(name: str, **values: Any) -> TaskResult:
    unit = PAPER_TASKS.get(name, {}).get("unit", "%")
    return TaskResult(task=name, unit=unit, metric="m,none", num_fewshot=0, definition="x.yaml", **values)


def six(**changes: dict[str, Any]) -> list[TaskResult]:
    found = {name: {"value": value, "n": 10, "of": 20, "standard_error": 0.03} for name, value in SELM_ITER_3.items()}
    return [result(name, **changes.get(name, values)) for name, values in found.items()]


def test_a_share_is_in_percent_and_points_are_as_they_are() -> None:
    found = measures_of(six())
    assert found["gsm8k_cot"] == MeasuredValue(value=100 * 0.438, standard_error=3.0, n=10, unit="%")
    assert found["eq_bench"] == MeasuredValue(value=69.9, standard_error=0.03, n=10, unit="points")


def test_the_average_is_the_papers_with_the_error_of_independent_tasks() -> None:
    average = measures_of(six())["average"]
    assert round(average.value or 0, 1) == 58.9 and (average.n, average.unit, average.not_run) == (60, "%", None)
    assert average.standard_error == pytest.approx((5 * 3.0**2 + 0.03**2) ** 0.5 / 6)
    one = measures_of(six(hellaswag={"value": 0.5, "n": 1, "of": 1}))["average"]  # A single document has no error.
    assert one.value is not None and one.standard_error is None


def test_without_one_of_the_six_there_is_no_average_but_its_reason() -> None:
    found = measures_of(six(hellaswag={"not_run": "no hub"}, openbookqa={"not_run": "no hub"}))
    assert found["hellaswag"] == MeasuredValue(value=None, unit="%", not_run="no hub")
    assert found["average"].not_run == "not all six tasks were run: hellaswag, openbookqa are missing"
    assert "average" not in measures_of(six()[:5]) and "average" not in measures_of([result("own", value=0.5)])


def test_the_file_reads_back_and_the_manifest_has_the_details() -> None:
    policy = EvaluatedPolicy(name="iter3", sha256="abc")
    written = harness_evaluation(policy, six(), seed=5)
    assert SetEvaluation.model_validate_json(written.model_dump_json()) == written
    assert (written.set.prompts, written.set.of, written.contaminated.of, written.seed) == (60, 120, 0, 5)
    other = harness_evaluation(policy, [*six()[:5], result("openbookqa", value=0.4, sha256="other prompts")], seed=5)
    assert other.set.sha256 != written.set.sha256
    assert facts_of(six())["tasks"]["eq_bench"]["metric"] == "m,none"
