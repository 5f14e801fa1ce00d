"""What is checked in every raw row of a data set: columns, messages, scores, empty answers, ties."""

from __future__ import annotations

import math
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from handbook_ext.core.errors import UserError
from handbook_ext.core.records import Messages

RawRow = dict[str, Any]
ROLES = ("system", "user", "assistant")


@dataclass(frozen=True)
class Rules:
    """What to do with unusable rows: `ties` is error, drop or keep; empty completions are errors or, by `drop_empty`, dropped."""

    seed: int
    ties: str = "drop"
    drop_empty: bool = False


class Unusable(Exception):
    """A row of a known kind that gives nothing to train on; the message is the reason under which it is counted."""


def need(where: str, row: RawRow, names: tuple[str, ...], remedy: str) -> None:
    """Raises UserError for the first column that is missing or null."""
    for name in names:
        if row.get(name) is None:
            raise UserError(f"{where}: the row has no '{name}' (it has: {', '.join(sorted(row))}); {remedy}")


def refuse_empty(where: str, texts: dict[str, str], rules: Rules | None) -> None:
    """Raises for the first empty text, given by its name: Unusable where the recipe drops the row, else UserError.

    rules: None where no recipe has a say.
    """
    for name, text in texts.items():
        if text.strip():
            continue
        if rules is not None and rules.drop_empty:
            raise Unusable(f"empty {name}")
        what = name if name in ("turn", "prompt", "completion") else f"{name} completion"
        remedy = "" if rules is None else ", or set data.empty_completions: drop"
        raise UserError(f"{where}: the {what} is empty; repair the row{remedy}")


def refuse_tie(where: str, fault: str, rules: Rules) -> None:
    """Raises for equal scores: UserError or Unusable, as the recipe says, nothing where it keeps ties."""
    if rules.ties == "error":
        raise UserError(f"{where}: {fault}; repair the row, or set data.ties to drop or keep")
    if rules.ties == "drop":
        raise Unusable("equal scores")


def score(where: str, name: str, value: Any) -> float | None:
    """Returns a score, or None for null and NaN, which is null in a parquet table."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    # bool is an int in Python: a column of labels is no column of scores.
    sound = isinstance(value, int | float | Decimal) and not isinstance(value, bool)
    try:
        number = float(value) if sound else math.inf
    except OverflowError:  # An integer of hundreds of digits.
        number = math.inf
    if math.isinf(number):
        raise UserError(f"{where}: '{name}' is {str(value)[:40]!r}, but a score is a number or null; repair the row")
    return None if math.isnan(number) else number


def messages(where: str, name: str, value: Any) -> Messages:
    """Returns messages with role and content alone; raises UserError for anything else."""
    sound = isinstance(value, list) and all(
        isinstance(message, dict) and isinstance(message.get("role"), str) and isinstance(message.get("content"), str)
        for message in value
    )
    if not sound:
        raise UserError(f"{where}: '{name}' must be a string or a list of messages with 'role' and 'content', both text")
    for message in value:
        if message["role"] not in ROLES:
            raise UserError(f"{where}: '{name}' has the role {message['role'][:40]!r}; roles are {', '.join(ROLES)}: rename it")
    return [{"role": message["role"], "content": message["content"]} for message in value]


def check_prompt(where: str, prompt: Messages, rules: Rules | None) -> None:
    """Raises for what cannot be asked of a policy: as `refuse_empty` does for an empty prompt or turn, else UserError.

    Two turns of a role in a row are left to the chat template.
    """
    if not any(turn["content"].strip() for turn in prompt):
        refuse_empty(where, {"prompt": ""}, rules)
    if any(turn["role"] == "system" for turn in prompt[1:]):
        raise UserError(f"{where}: a system message stands behind another message; only the first may be one: repair the row")
    if prompt[-1]["role"] != "user":
        raise UserError(f"{where}: the prompt ends with a message of role {prompt[-1]['role']!r}, not 'user'; repair the row")
    # A system message may say nothing: some data sets give one to every row.
    turns = [turn["content"] for turn in prompt if turn["role"] != "system"]
    for text in turns:
        refuse_empty(where, {"prompt" if len(turns) == 1 else "turn": text}, rules)


def check_same_prompt(where: str, column: Any, before: Messages) -> None:
    """Raises UserError where the column `prompt` contradicts the messages before the answer, which win over it.

    A text agrees that is some message, or part of one, or holds one: it may be the first turn alone, or a rendered dialogue.
    Messages agree that stand so among the others.
    """
    if any(column == turn["content"] for turn in before):  # As in nearly every row there is.
        return
    if isinstance(column, str):
        text = _plain(column)
        known = [_plain(turn["content"]) for turn in before]
        agrees = not text or any(text in each or (each and each in text) for each in known)
    else:
        stated = messages(where, "prompt", column)
        agrees = any(before[start : start + len(stated)] == stated for start in range(len(before)))
    if not agrees:
        raise UserError(
            f"{where}: the column 'prompt' is not among the messages before the answer; make them agree, or remove the column"
        )


def row_name(where: str, value: Any) -> str | None:
    """Returns the name that a row brings, None where it brings none; raises UserError for what is no text or number."""
    if isinstance(value, list | dict):
        raise UserError(f"{where}: the row's name is {str(value)[:40]!r}, but must be a text or a number; repair the row")
    return None if value is None or value == "" else str(value)


def _plain(text: str) -> str:
    """Returns a text whose white space is single blanks."""
    return " ".join(text.split())
