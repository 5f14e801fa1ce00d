"""Rows of a run's files: prompts, completions, rankings and preference pairs; every completion carries its id."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal, Self

from pydantic import Field

from handbook_ext.core.jsonl import Row

Message = dict[str, str]
Messages = list[Message]
Origin = Literal["offline", "on_policy"]

LABELLER = "labeller_reward"
"""In eval.json, a completion's reward from the ranker that labelled the pairs, where another one judges."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A completion in the form that all stages exchange: its messages, its id in the score store, and its origin."""

    messages: Messages
    completion_id: str
    origin: Origin

    @property
    def text(self) -> str:
        """Returns the text of the completion."""
        return self.messages[-1]["content"]


class RatedAnswer(Row):
    """One of several completions of a prompt with the score that the data set gives it; higher is better."""

    text: str
    score: float
    completion_id: str

    @property
    def answer(self) -> Answer:
        """Returns the completion without its score."""
        return Answer(assistant(self.text), self.completion_id, "offline")


class OfflinePair(Row):
    """A labelled pair as the data set gives it; `swapped` is true where label noise flipped it.

    `answers` are all rated completions, best first, where the data set rates several; label noise does not touch them.
    `raw_row` is the row's number in the raw data, from 0, and `raw_rows` how many those are, dropped ones included.
    """

    prompt_id: str
    prompt: Messages
    chosen: Messages
    rejected: Messages
    chosen_id: str
    rejected_id: str
    score_chosen: float | None = None
    score_rejected: float | None = None
    swapped: bool = False
    source: str = ""
    answers: list[RatedAnswer] = Field(default_factory=list)
    raw_row: int = 0
    raw_rows: int = 0

    @classmethod
    def of(
        cls, prompt_id: str, prompt: Messages, chosen: Messages, rejected: Messages, *,
        answers: Iterable[tuple[str, float]] = (), **columns: Any,
    ) -> Self:  # fmt: skip
        """Returns the pair with the ids of its completions; `answers` are texts with scores, `columns` the remaining columns."""
        rated = [
            RatedAnswer(text=text, score=score, completion_id=completion_id(prompt_id, prompt, assistant(text)))
            for text, score in answers
        ]
        ids = [completion_id(prompt_id, prompt, completion) for completion in (chosen, rejected)]
        return cls(
            prompt_id=prompt_id, prompt=prompt, chosen=chosen, rejected=rejected, chosen_id=ids[0], rejected_id=ids[1],
            answers=rated, **columns,
        )  # fmt: skip

    def renamed(self, prompt_id: str) -> Self:
        """Returns the pair under another prompt id, on which the ids of its completions depend."""
        # Made anew rather than copied: the ids hash the prompt id, and a copy would keep those of the old one.
        others = self.model_dump(include={"score_chosen", "score_rejected", "swapped", "source", "raw_row", "raw_rows"})
        answers = [(each.text, each.score) for each in self.answers]
        return self.of(prompt_id, self.prompt, self.chosen, self.rejected, answers=answers, **others)

    @property
    def chosen_answer(self) -> Answer:
        """Returns the chosen completion with its id."""
        return Answer(self.chosen, self.chosen_id, "offline")

    @property
    def rejected_answer(self) -> Answer:
        """Returns the rejected completion with its id."""
        return Answer(self.rejected, self.rejected_id, "offline")


class Demonstration(Row):
    """A prompt with its demonstration for supervised fine-tuning; `raw_row` and `raw_rows` as in OfflinePair."""

    prompt_id: str
    prompt: Messages
    completion: Messages
    source: str = ""
    raw_row: int = 0
    raw_rows: int = 0


class Completion(Row):
    """One sample of a policy; `seed` is that of the request, token counts include the end token."""

    prompt_id: str
    sample: int
    prompt: Messages
    text: str
    completion_id: str
    finish_reason: Literal["stop", "length"]
    seed: int
    prompt_tokens: int
    completion_tokens: int

    @classmethod
    def of(cls, prompt_id: str, prompt: Messages, text: str, **columns: Any) -> Self:
        """Returns the sample with its id; `columns`: the remaining columns."""
        name = completion_id(prompt_id, prompt, assistant(text))
        return cls(prompt_id=prompt_id, prompt=prompt, text=text, completion_id=name, **columns)

    @property
    def answer(self) -> Answer:
        """Returns the completion without seed, token counts and finish reason."""
        return Answer(assistant(self.text), self.completion_id, "on_policy")


class Candidate(Row):
    """A candidate of a ranking; rank 1 is best, equal scores share the better rank; `failed`: the ranker gave no verdict."""

    origin: Origin
    sample: int | None
    text: str
    completion_id: str
    score: float
    rank: int
    truncated: bool = False
    failed: bool = False

    @property
    def answer(self) -> Answer:
        """Returns the completion without score and rank."""
        return Answer(assistant(self.text), self.completion_id, self.origin)


class Ranking(Row):
    """All candidates of one prompt, samples first, then the offline chosen and rejected.

    `ties` are the candidates that share their score with another; `disagreements` the comparisons whose two orders named
    different winners, where the ranker compares.
    """

    prompt_id: str
    prompt: Messages
    candidates: list[Candidate]
    ties: int
    disagreements: int = 0


class PreferencePair(Row):
    """A pair to train on; `explore` is the sample y of SELM's term, `margin` the implicit reward margin in nats."""

    prompt_id: str
    prompt: Messages
    chosen: Messages
    rejected: Messages
    explore: Messages | None
    chosen_id: str
    rejected_id: str
    explore_id: str | None
    chosen_origin: Origin
    rejected_origin: Origin
    margin: float | None
    swapped: bool

    @classmethod
    def joining(
        cls, row: OfflinePair | Completion | Ranking, chosen: Answer, rejected: Answer, *,
        explore: Answer | None = None, margin: float | None = None, swapped: bool = False,
    ) -> Self:  # fmt: skip
        """Returns the pair of two completions of the row's prompt, with their ids and origins."""
        pair = cls(
            prompt_id=row.prompt_id, prompt=row.prompt, chosen=chosen.messages, rejected=rejected.messages, explore=None,
            chosen_id=chosen.completion_id, rejected_id=rejected.completion_id, explore_id=None,
            chosen_origin=chosen.origin, rejected_origin=rejected.origin, margin=margin, swapped=swapped,
        )  # fmt: skip
        return pair if explore is None else pair.exploring(explore)

    @classmethod
    def of(cls, prompt_id: str, prompt: Messages, chosen: Messages, rejected: Messages, explore: Messages | None = None) -> Self:
        """Returns an offline pair, with the ids of its completions and optionally an explored sample."""
        row = OfflinePair.of(prompt_id, prompt, chosen, rejected)
        pair = cls.joining(row, row.chosen_answer, row.rejected_answer)
        if explore is None:
            return pair
        return pair.exploring(Answer(explore, completion_id(prompt_id, prompt, explore), "on_policy"))

    def exploring(self, answer: Answer | None) -> Self:
        """Returns the pair with this completion as the explored sample, or with none."""
        if answer is None:
            return self.model_copy(update={"explore": None, "explore_id": None})
        return self.model_copy(update={"explore": answer.messages, "explore_id": answer.completion_id})


def user(text: str) -> Messages:
    """Returns a single-turn prompt."""
    return [{"role": "user", "content": text}]


def assistant(text: str) -> Messages:
    """Returns a completion in the conversational format."""
    return [{"role": "assistant", "content": text}]


def content_id(*parts: Any) -> str:
    """Returns the first 16 hexadecimal digits of the sha256 of the parts."""
    return hashlib.sha256(json.dumps(parts, ensure_ascii=False, sort_keys=True).encode()).hexdigest()[:16]


def completion_id(prompt_id: str, prompt: Messages, completion: Messages) -> str:
    """Returns the id of a completion in the score store: equal for the same row of prompts and text."""
    # The prompt id is part of it, so that rows that repeat a prompt keep rows of their own in the score store.
    return content_id(prompt_id, prompt, completion)


def derived_seed(*parts: Any) -> int:
    """Returns a seed below 2**63 that depends on the parts alone, never on batch or clock."""
    # 63 bits, so that it fits the signed 64-bit integers of tables and of torch.
    return int.from_bytes(hashlib.sha256(json.dumps(parts).encode()).digest()[:8], "big") >> 1
