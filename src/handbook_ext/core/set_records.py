"""Rows of public prompt sets: their prompts, and the answers of a policy."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from handbook_ext.core.jsonl import Row
from handbook_ext.core.records import Messages


class SetPrompt(Row):
    """A prompt of a set. `follow_ups` are the user's further turns, each asked after the answer before it.

    `references` are reference answers by turn, or none; `outputs` stored answers of other models by their names; `seen` tells
    whether the prompt is among those of training.
    """

    prompt_id: str
    prompt: Messages
    follow_ups: list[str] = Field(default_factory=list)
    category: str = ""
    references: list[str] = Field(default_factory=list)
    outputs: dict[str, str] = Field(default_factory=dict)
    seen: bool = False


class SetTurn(Row):
    """An answer of one turn; tokens include the end token."""

    text: str
    tokens: int
    finish_reason: Literal["stop", "length"]


class SetAnswer(Row):
    """A policy's answers to a prompt, one for each turn; `seed` is that of the first turn's request."""

    prompt_id: str
    answers: list[SetTurn]
    seed: int
