"""A policy's evaluation on a prompt set, as runs/<run>/<policy>/<set>/eval.json holds it: what was measured, by whom, on what."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from handbook_ext.core.artifacts import finished_manifest
from handbook_ext.core.errors import UserError
from handbook_ext.core.integrity import unchanged
from handbook_ext.core.set_records import SetTurn
from handbook_ext.graph.stages_benchmarks import SET_FORMAT


class _Part(BaseModel):
    """A part of the file; unknown and missing entries are errors, and so are numbers that are none."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class EvaluatedPolicy(_Part):
    """The policy: its folder in the run, its hash, and the released checkpoint that it is, where it is one."""

    name: str
    sha256: str
    checkpoint: str | None = None


class EvaluatedSet(_Part):
    """The prompts: how many of how many were asked, and the hash of their file."""

    name: str
    prompts: int
    of: int
    sha256: str


class Decoding(_Part):
    """How the policy answered; `temperatures` are of single categories."""

    temperature: float
    top_p: float
    max_new_tokens: int
    temperatures: dict[str, float] = {}


class Grader(_Part):
    """Who graded, and how: `kind` is the question that was asked. `local` where the endpoint was on the same machine."""

    model: str
    kind: str
    local: bool = False
    temperature: float | None = None


class MeasuredValue(_Part):
    """A measure: mean, standard error of the mean, and how many prompts it is over; `missing` had no readable verdict.

    `value` is None where nothing was measured, and `not_run` says why.
    """

    value: float | None
    standard_error: float | None = None
    n: int = 0
    missing: int = 0
    unit: str
    judge: Grader | None = None
    runs: int = 1
    not_run: str | None = None


class Contamination(_Part):
    """The prompts of the set that training has seen."""

    overlap: int
    of: int
    prompt_ids: list[str]


class EvaluatedRow(_Part):
    """A prompt's answers, one per turn, and its verdicts by measure: a number, or None, for each turn of each judge run."""

    prompt_id: str
    category: str
    answers: list[SetTurn]
    verdicts: dict[str, list[list[float | None]]]


class SetEvaluation(_Part):
    """The whole file."""

    format: int = SET_FORMAT
    policy: EvaluatedPolicy
    set: EvaluatedSet
    seed: int
    decoding: Decoding | None
    contaminated: Contamination
    measures: dict[str, MeasuredValue]
    rows: list[EvaluatedRow]


def read_set_evaluation(path: Path) -> SetEvaluation:
    """Returns an evaluation; raises UserError where it cannot be read, was edited, or has the format of another version."""
    if finished_manifest(path) is not None:
        unchanged(path)
    return parsed_set_evaluation(path)


def parsed_set_evaluation(path: Path) -> SetEvaluation:
    """Returns an evaluation whose manifest others check, as those of ledgers; raises UserError where it is none."""
    try:
        content: Any = json.loads(path.read_text(encoding="utf-8"))
        found = content.get("format") if isinstance(content, dict) else None
        if found != SET_FORMAT:
            raise UserError(
                f"{path}: is an evaluation of format {found}, and this version reads {SET_FORMAT}; delete it and evaluate again"
            )
        return SetEvaluation.model_validate(content)
    except (OSError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        first = error.errors()[0] if isinstance(error, ValidationError) else None
        reason = str(error) if first is None else f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
        raise UserError(f"{path}: is no usable evaluation ({reason}); delete it and evaluate again") from None


def of_another_policy(path: Path, evaluation: SetEvaluation) -> str | None:
    """Returns what is wrong with an evaluation whose policy was trained again since; None where it is that of the policy."""
    policy = path.parents[1] / "policy"
    if (finished_manifest(policy) or {}).get("policy") in (None, evaluation.policy.sha256):
        return None
    return f"{path} is of another policy than {policy} now is; evaluate it again"


def set_evaluations(run: Path) -> dict[tuple[str, str], Path]:
    """Returns the evaluations that are finished in a run's folder, by policy and set."""
    found = sorted(run.glob("*/*/eval.json"))
    return {(path.parts[-3], path.parts[-2]): path for path in found if path.with_name("eval.manifest.json").is_file()}


def current_evaluations(run: Path) -> tuple[dict[tuple[str, str], SetEvaluation], dict[tuple[str, str], str]]:
    """Returns a run's finished evaluations by policy and set, and of those whose policy was trained again since, what is wrong.

    Raises UserError for one that cannot be read.
    """
    current, stale = {}, {}
    for key, path in set_evaluations(run).items():
        one = read_set_evaluation(path)
        if (told := of_another_policy(path, one)) is None:
            current[key] = one
        else:
            stale[key] = told
    return current, stale
