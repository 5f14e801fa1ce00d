"""Rows of a run's files: prompts, completions, rankings and preference pairs, and their JSONL form."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from handbook_ext.core.errors import UserError

Message = dict[str, str]
Messages = list[Message]
Origin = Literal["offline", "on_policy"]
R = TypeVar("R", bound="Row")


class Row(BaseModel):
    """One line of a JSONL file; unknown and missing columns are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class RatedAnswer(Row):
    """One of several answers to a prompt with the score that the data set gives it, higher is better."""

    text: str
    score: float


class OfflinePair(Row):
    """A labelled pair as the data set gives it; `swapped` is true where label noise flipped it.

    `answers` are all rated answers, best first, where the data set rates several; noise leaves them alone.
    """

    prompt_id: str
    prompt: Messages
    chosen: Messages
    rejected: Messages
    score_chosen: float | None = None
    score_rejected: float | None = None
    swapped: bool = False
    source: str = ""
    answers: list[RatedAnswer] = []


class Demonstration(Row):
    """A prompt with the answer that supervised fine-tuning imitates."""

    prompt_id: str
    prompt: Messages
    completion: Messages
    source: str = ""


class Completion(Row):
    """One sample of a policy; `seed` is that of the request, token counts include the end token."""

    prompt_id: str
    sample: int
    prompt: Messages
    text: str
    finish_reason: Literal["stop", "length"]
    seed: int
    prompt_tokens: int
    completion_tokens: int


class Candidate(Row):
    """A judged text of a ranking; rank 1 is best, equal scores share the better rank; `failed`: the judge gave no verdict."""

    origin: Origin
    sample: int | None
    text: str
    score: float
    rank: int
    truncated: bool = False
    failed: bool = False


class Ranking(Row):
    """All candidates of one prompt, samples first, then the offline chosen and rejected."""

    prompt_id: str
    prompt: Messages
    candidates: list[Candidate]
    ties: int


class PreferencePair(Row):
    """A pair to train on; `explore` is the sample y of SELM's term, `margin` the implicit reward margin in nats."""

    prompt_id: str
    prompt: Messages
    chosen: Messages
    rejected: Messages
    explore: Messages | None
    chosen_origin: Origin
    rejected_origin: Origin
    margin: float | None
    swapped: bool


def user(text: str) -> Messages:
    """Returns a single-turn prompt."""
    return [{"role": "user", "content": text}]


def assistant(text: str) -> Messages:
    """Returns a completion in the conversational format."""
    return [{"role": "assistant", "content": text}]


def content_id(*parts: Any) -> str:
    """Returns 16 hexadecimal digits that depend on the parts alone."""
    return hashlib.sha256(json.dumps(parts, ensure_ascii=False, sort_keys=True).encode()).hexdigest()[:16]


def completion_id(prompt_id: str, prompt: Messages, completion: Messages) -> str:
    """Returns the id of a completion in the score store: equal for the same row of prompts and text."""
    return content_id(prompt_id, prompt, completion)


def derived_seed(*parts: Any) -> int:
    """Returns a seed below 2**63 that depends on the parts alone, never on batch or clock."""
    return int.from_bytes(hashlib.sha256(json.dumps(parts).encode()).digest()[:8], "big") >> 1


def iter_jsonl(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yields line number and row; a line that is not a JSON object is a UserError with file and line."""
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise UserError(f"{path}:{number}: not valid JSON ({error.msg}); repair or delete this line") from None
            if not isinstance(row, dict):
                raise UserError(f"{path}:{number}: a JSON object is needed, found {type(row).__name__}; repair this line")
            yield number, row


def read_rows(path: Path, kind: type[R]) -> list[R]:
    """Returns the typed rows of a file; a UserError names file, line and column of the first bad one."""
    rows = []
    for number, row in iter_jsonl(path):
        try:
            rows.append(kind.model_validate(row))
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            raise UserError(f"{path}:{number}: {where}: {first['msg']}; make the file again") from None
    return rows


def write_rows(path: Path, rows: Iterable[Row | dict[str, Any]]) -> int:
    """Writes rows beside the file, flushes them to disk, renames; returns how many. Floats keep every bit."""
    partial = path.with_name(path.name + ".partial")
    count = 0
    with partial.open("w", encoding="utf-8") as out:
        for row in rows:
            values = row.model_dump() if isinstance(row, Row) else row
            out.write(json.dumps(values, ensure_ascii=False) + "\n")
            count += 1
        out.flush()
        os.fsync(out.fileno())
    partial.replace(path)
    return count
