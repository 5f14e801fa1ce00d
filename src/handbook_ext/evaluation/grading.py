"""Grades of answers by a language model: points from 1 to 10 for each turn, and win rates over other answers.

The questions are in our own words, in the formats of FastChat's single-answer and pairwise grading, which both papers' judges
were asked in; reference answers are shown where the set has them (mathematics, reasoning, coding).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from handbook_ext.core.set_records import SetAnswer, SetPrompt
from handbook_ext.evaluation.set_answers import asked_so_far
from handbook_ext.evaluation.set_evaluation import Grader, MeasuredValue
from handbook_ext.judging.judge_client import JudgeClient
from handbook_ext.judging.judge_questions import SINGLE, ask_beside, ask_one, ask_two, parse_rating, parse_winner
from handbook_ext.policies.conversations import conversation

Verdicts = list[list[float | None]]
"""Of a prompt: a number, or None where no reply can be read, for each turn of each judge run."""


@dataclass(frozen=True)
class Judged:
    """The verdicts of a measure, prompt by prompt."""

    kind: str
    verdicts: list[Verdicts]


def graded(prompts: Sequence[SetPrompt], answers: Sequence[SetAnswer], runs: Sequence[JudgeClient]) -> Judged:
    """Returns points from 1 to 10 for every turn, from each run of the judge: single-answer grading."""
    questions = [
        _points_question(prompt, answer, turn) for prompt, answer in _aligned(prompts, answers) for turn in _turns(answer)
    ]
    columns = [iter([parse_rating(reply) for reply in run.ask(questions)]) for run in runs]
    return Judged("single", [[[next(column) for _ in _turns(answer)] for column in columns] for answer in answers])


def compared(prompts: Sequence[SetPrompt], ours: Sequence[str], theirs: Sequence[str], runs: Sequence[JudgeClient]) -> Judged:
    """Returns 1 where our first answer wins over theirs, 0 where it loses, 0.5 for a tie.

    Both orders are asked; where they disagree it is a tie. None where one of the two replies cannot be read; equal texts are a
    tie that nobody is asked about.
    """
    asked = [(prompt, a, b) for prompt, a, b in zip(prompts, ours, theirs, strict=True) if a != b]
    questions = []
    for prompt, a, b in asked:
        text = conversation(prompt.prompt)
        questions += [ask_two(None, text, a, b), ask_two(None, text, b, a)]
    columns = []
    for run in runs:
        replies = [parse_winner(reply) for reply in run.ask(questions)]
        columns.append(iter([_won(*both) for both in zip(replies[::2], replies[1::2], strict=True)]))
    differing = [a != b for a, b in zip(ours, theirs, strict=True)]
    return Judged("pairwise", [[[next(column) if differs else 0.5] for column in columns] for differs in differing])


def measured(
    judged: Judged, judge: Grader, unit: str, *, turn: int | None = None, scale: float = 1.0, runs: int = 1
) -> MeasuredValue:
    """Returns a measure: the mean over prompts of each one's mean verdict, of one turn or of all, with its standard error.

    scale: what verdicts are multiplied by, 100 for percent. `missing` are the verdicts that nobody could read.
    """
    chosen = [
        [value for run in prompt for value in (run if turn is None else run[turn : turn + 1])] for prompt in judged.verdicts
    ]
    known = [[value for value in prompt if value is not None] for prompt in chosen]
    means = [scale * fmean(prompt) for prompt in known if prompt]
    missing = sum(map(len, chosen)) - sum(map(len, known))
    return MeasuredValue(
        value=fmean(means) if means else None,
        standard_error=stdev(means) / len(means) ** 0.5 if len(means) > 1 else None,
        n=len(means), missing=missing, unit=unit, judge=judge, runs=runs,
        not_run=None if means else f"the judge {judge.model} gave no readable verdict",
    )  # fmt: skip


def not_run(unit: str, reason: str) -> MeasuredValue:
    """Returns a measure that has no value, and why."""
    return MeasuredValue(value=None, unit=unit, not_run=reason)


def _points_question(prompt: SetPrompt, answer: SetAnswer, turn: int) -> str:
    """Returns the question about the answer of a turn, beside the reference answer where the set has one."""
    asked = conversation(asked_so_far(prompt, [each.text for each in answer.answers], turn))
    text = answer.answers[turn].text
    if turn < len(prompt.references):
        return ask_beside(asked, text, prompt.references[turn])
    return ask_one("single", SINGLE, asked, text)


def _aligned(prompts: Sequence[SetPrompt], answers: Sequence[SetAnswer]) -> list[tuple[SetPrompt, SetAnswer]]:
    """Returns prompts and answers by pairs; both files have them in one order."""
    return list(zip(prompts, answers, strict=True))


def _turns(answer: SetAnswer) -> range:
    """Returns the numbers of the turns, from 0."""
    return range(len(answer.answers))


def _won(forward: float | None, backward: float | None) -> float | None:
    """Returns what the answer shown first in `forward` wins by both orders."""
    if forward is None or backward is None:
        return None
    return forward if forward == 1 - backward else 0.5
