"""Evaluations on prompt sets in an unpacked ledger: held to answers, prompts and settings beside them, and worked out again."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from handbook_ext.core.artifacts import finished_manifest
from handbook_ext.core.errors import UserError
from handbook_ext.core.jsonl import read_rows
from handbook_ext.core.set_records import SetAnswer, SetPrompt
from handbook_ext.evaluation.harness_measures import TaskResult, harness_evaluation
from handbook_ext.evaluation.set_evaluation import EvaluatedRow, MeasuredValue, SetEvaluation, parsed_set_evaluation
from handbook_ext.graph.rules_benchmarks import PROMPTS
from handbook_ext.recipes.settings_benchmarks import HARNESS
from handbook_ext.reports.ledger_lengths import CONTROLLED, VERDICTS, controlled_again, controlled_fault
from handbook_ext.reports.ledger_numbers import deviations, first_of

PromptVerdicts = list[list[list[float | None]]]
"""Prompt by prompt a number, or None where no reply can be read, for each turn of each judge run."""

LENGTH = "length"  # In characters, of the answers themselves.
# What each measure of a recipe leaves; pairwise one for each model whose answers the set has, and for the start.
MEASURES = {
    "alpaca_eval": {CONTROLLED, VERDICTS, LENGTH},
    "mt_bench": {"average", "turn1", "turn2"},
    "single": {"single"},
    "pairwise": {"vs_start"},
}


@dataclass(frozen=True)
class Recomputed:
    """A measure worked out from rows: its value and what goes with it."""

    value: float | None
    standard_error: float | None
    n: int
    missing: int


def from_verdicts(verdicts: PromptVerdicts, scale: float) -> Recomputed:
    """Returns the mean over prompts of each one's mean verdict, over turns and judge runs, with the standard error of that mean.

    scale: what verdicts are multiplied by, 100 for percent. Verdicts that nobody could read are counted and left out.
    """
    chosen = [[value for run in prompt for value in run] for prompt in verdicts]
    known = [[value for value in prompt if value is not None] for prompt in chosen]
    means = [scale * fmean(prompt) for prompt in known if prompt]
    error = stdev(means) / len(means) ** 0.5 if len(means) > 1 else None
    missing = sum(map(len, chosen)) - sum(map(len, known))
    return Recomputed(fmean(means) if means else None, error, len(means), missing)


def recomputed(name: str, stated: MeasuredValue, rows: Sequence[EvaluatedRow]) -> Recomputed | None:
    """Returns a measure from the rows of its evaluation; None where they do not hold what it is made of."""
    if name == LENGTH:
        texts = [row.answers[0].text for row in rows if row.answers]
        return Recomputed(float(sum(map(len, texts)) // len(texts)), None, len(texts), 0) if texts else None
    verdicts = [row.verdicts[name] for row in rows if name in row.verdicts]
    return from_verdicts(verdicts, 100.0 if stated.unit == "%" else 1.0) if verdicts else None


def set_faults(path: Path, run: Path, gamed: Path | None = None) -> Iterator[str]:
    """Yields in what an evaluation on a prompt set differs from what lies beside it, and its measures from its own rows.

    gamed: the file for length control, None for the hub's.
    """
    name = str(path.relative_to(run))
    try:
        found = parsed_set_evaluation(path)
        if found.set.name == HARNESS:
            yield from (f"{name}: {fault}" for fault in _harness_faults(found, path, run))
            return
        yield from (f"{name}: {fault}" for fault in [*_beside(found, path, run), *_measure_faults(found)])
        if (stated := found.measures.get(CONTROLLED)) is not None and stated.value is not None:
            again, _ = controlled_again(found, path, _prompts_of(found, run), gamed)
            fault = None if again is None else controlled_fault(stated, again)
            yield from [] if fault is None else [f"{name}: {fault}"]
    except UserError as error:
        yield str(error.args[0])


def not_recomputed(path: Path, run: Path, gamed: Path | None = None) -> list[str]:
    """Returns the measures of an evaluation that have a value which was not worked out again, and why."""
    found = parsed_set_evaluation(path)
    if found.set.name == HARNESS:
        return ["the scores of the tasks, of whose answers nothing is inside"]
    taken = []
    for name, one in found.measures.items():
        if one.value is None or recomputed(name, one, found.rows) is not None:
            continue
        again, reason = None, "it has no verdicts"
        if name == CONTROLLED:
            again, reason = controlled_again(found, path, _prompts_of(found, run), gamed)
        taken += [f"{name} ({reason})"] if again is None else []
    return taken


def _harness_faults(found: SetEvaluation, path: Path, run: Path) -> Iterator[str]:
    """Yields in what an evaluation by lm-evaluation-harness differs from the tasks' results, as its manifest has them."""
    manifest = finished_manifest(path) or {}
    policy = path.relative_to(run).parts[0]
    results = [TaskResult.model_validate(each) for each in manifest["harness"]["tasks"].values()]
    stated = found.policy.model_copy(update={"name": policy})
    again = harness_evaluation(stated, results, seed=manifest["settings"]["seed"])
    yield from first_of(deviations(found.model_dump(), again.model_dump()))


def _prompts_of(found: SetEvaluation, run: Path) -> Path:
    """Returns the rows of an evaluation's prompt set."""
    return run / PROMPTS / found.set.name / "prompts.jsonl"


def _measure_faults(found: SetEvaluation) -> Iterator[str]:
    """Yields the measures that do not follow from the verdicts."""
    for name, stated in found.measures.items():
        if (stated.value is None) != (stated.not_run is not None):
            yield f"{name} is {stated.value}, and it was not run because of {stated.not_run!r}"
        given = sum(name in row.verdicts for row in found.rows)
        if given not in (0, len(found.rows)):
            yield f"{name} has verdicts on {given} of {len(found.rows)} prompts"
        again = recomputed(name, stated, found.rows)
        if again is None:
            # A length-controlled win rate has those of the plain one, and lm-evaluation-harness leaves no rows at all.
            if stated.value is not None and found.rows and name != CONTROLLED:
                yield f"{name} is {stated.value}, and there are no verdicts that it follows from"
            continue
        values = {"value": again.value, "standard_error": again.standard_error, "n": again.n, "missing": again.missing}
        yield from first_of(deviations({key: getattr(stated, key) for key in values}, values, name))


def _beside(found: SetEvaluation, path: Path, run: Path) -> Iterator[str]:
    """Yields in what an evaluation differs from its folder, its settings, the answers and the prompts."""
    policy, chosen = path.relative_to(run).parts[:2]
    if (found.policy.name, found.set.name) != (policy, chosen):
        yield f"is of {found.policy.name} on {found.set.name}, and lies with {policy} on {chosen}"
    settings = (finished_manifest(path) or {}).get("settings", {})
    yield from deviations({"seed": found.seed}, {"seed": settings.get("seed")})
    if found.decoding is not None:
        stated = found.decoding.model_dump()
        yield from first_of(deviations(stated, {key: (settings.get("decoding") or {}).get(key) for key in stated}, "decoding"))
    if "measures" in settings:
        asked = {name for each in settings["measures"] for name in MEASURES[each]}
        asked |= {f"vs_{name}" for name in settings["outputs"] if "pairwise" in settings["measures"]}
        yield from (f"{name} is no measure of its settings" for name in found.measures if name not in asked)
    judge = (settings.get("judge") or {}).get("model")
    for name, measure in found.measures.items():
        if measure.judge is not None and measure.judge.model != judge:
            yield f"{name} was judged by {measure.judge.model}, and the settings name {judge}"
    answered = (finished_manifest(path.with_name("answers.jsonl")) or {}).get("policy")
    if found.rows and answered != found.policy.sha256:
        yield f"policy.sha256 is {found.policy.sha256[:12]}, and the answers are of {str(answered)[:12]}"
    yield from _answers_beside(found, path.with_name("answers.jsonl"))
    yield from _prompts_beside(found, _prompts_of(found, run))


def _answers_beside(found: SetEvaluation, path: Path) -> Iterator[str]:
    """Yields in what the answers that were graded differ from those of the policy."""
    if not found.rows:
        return
    answers = read_rows(path, SetAnswer) if path.is_file() else []
    if [row.prompt_id for row in found.rows] != [row.prompt_id for row in answers]:
        yield f"has not the prompts of {path.name}"
        return
    for row, answer in zip(found.rows, answers, strict=True):
        if row.answers != answer.answers:
            yield f"prompt {row.prompt_id}: the graded answer is not the one in {path.name}"


def _prompts_beside(found: SetEvaluation, path: Path) -> Iterator[str]:
    """Yields in what an evaluation differs from the prompts of its set."""
    if not found.rows and not path.is_file():
        return
    prompts: list[SetPrompt] = read_rows(path, SetPrompt) if path.is_file() else []
    about = (finished_manifest(path) if path.is_file() else None) or {}
    names = [each.prompt_id for each in prompts if each.seen]
    seen: dict[str, Any] = {"overlap": len(names), "prompt_ids": names, "of": len(prompts)}
    yield from first_of(deviations(found.contaminated.model_dump(), seen, "contaminated"))
    if about.get("seen", len(names)) != len(names):
        yield f"the manifest of its prompts says that training has seen {about['seen']}, and {len(names)} are marked"
    read = {"name": found.set.name, "prompts": len(prompts), "of": about.get("of"), "sha256": about.get("sha256")}
    yield from first_of(deviations(found.set.model_dump(), read, "set"))
    if found.rows and [row.prompt_id for row in found.rows] != [each.prompt_id for each in prompts]:
        yield f"has not the prompts of {PROMPTS}/{found.set.name}/prompts.jsonl"
    for row, prompt in zip(found.rows, prompts, strict=False):
        if row.category != prompt.category:
            yield f"prompt {row.prompt_id}: category is {row.category!r}, in the set {prompt.category!r}"
