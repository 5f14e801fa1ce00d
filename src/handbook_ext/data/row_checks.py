"""What is checked in every raw row of a data set: columns, messages, scores, empty answers, ties."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from handbook_ext.core.errors import UserError
from handbook_ext.core.records import Messages

RawRow = dict[str, Any]


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


def refuse_empty(where: str, texts: dict[str, str], rules: Rules) -> None:
    """Raises for the first empty text, given by its name: Unusable where the recipe drops the row, else UserError."""
    for name, text in texts.items():
        if text.strip():
            continue
        if rules.drop_empty:
            raise Unusable(f"empty {name}")
        what = name if name in ("turn", "completion") else f"{name} completion"
        raise UserError(f"{where}: the {what} is empty; repair the row, or set data.empty_completions: drop")


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
    if isinstance(value, bool) or not isinstance(value, int | float) or math.isinf(value):
        raise UserError(f"{where}: '{name}' is {str(value)[:40]!r}, but a score is a number or null; repair the row")
    return float(value)


def messages(where: str, name: str, value: Any) -> Messages:
    """Returns messages with role and content alone; raises UserError for anything else."""
    sound = isinstance(value, list) and all(
        isinstance(message, dict) and isinstance(message.get("role"), str) and isinstance(message.get("content"), str)
        for message in value
    )
    if not sound:
        raise UserError(f"{where}: '{name}' must be a string or a list of messages with 'role' and 'content'")
    return [{"role": message["role"], "content": message["content"]} for message in value]
