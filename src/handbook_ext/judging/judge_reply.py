"""What a judge's endpoint sends back, as far as it is read: the text, and what it took."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from typing import Annotated, Any

from pydantic import BaseModel, Field, ValidationError, field_validator

from handbook_ext.judging.verdict_cache import Reply

CUT = ("length", "content_filter")
"""Why a reply ends that is no whole one, and would be none again."""
REASONS = ("error", "message", "detail", "msg")
_TOO_LONG = re.compile(
    r"context.?(length|window|size)|too (long|large|many tokens)|(exceeds?|longer than).{0,40}(tokens|length)"
    r"|must (be <=|have less than).{0,20}tokens", re.IGNORECASE,
)  # fmt: skip
_FILTERED = re.compile(r"content.?filter|content management policy", re.IGNORECASE)
_LIMIT = re.compile(r"max_(completion_)?tokens", re.IGNORECASE)

Tokens = Annotated[int, Field(ge=0, lt=2**31)]


class UnusableReplyError(Exception):
    """A reply without the text that was asked for: no JSON, no choice, or none with content. `tokens` are what it took."""

    def __init__(self, tokens: int = 0) -> None:
        """Takes the tokens of question and reply, as far as the body says them."""
        super().__init__(tokens)
        self.tokens = tokens


class Usage(BaseModel):
    """What a reply took, in tokens."""

    prompt_tokens: Tokens = 0
    completion_tokens: Tokens = 0


class _Message(BaseModel):
    """What the judge says."""

    content: str | None = None


class _Choice(BaseModel):
    """An answer, and why it ends: `length` where it met max_new_tokens."""

    message: _Message
    finish_reason: str | None = None


class Body(BaseModel):
    """What is read of a reply. The client takes any JSON for a reply, and fails on what is none."""

    choices: Annotated[list[_Choice], Field(min_length=1)]
    usage: Usage = Usage()

    @field_validator("usage", mode="wrap")
    @classmethod
    def _none_where_unreadable(cls, value: Any, read: Callable[[Any], Usage]) -> Usage:
        """Returns no tokens for an account that cannot be read: the verdict beside it is good."""
        try:
            return read(value)
        except ValidationError:
            return Usage()


def reply_of(body: bytes) -> Reply:
    """Returns the text of a reply and its tokens; raises UnusableReplyError where it has none.

    A judge that uses up its tokens before it says anything would do so again: its empty reply is one, and is paid for.
    """
    try:
        found = Body.model_validate_json(body)
    except ValidationError:
        raise UnusableReplyError from None
    choice = found.choices[0]
    text = choice.message.content or ""
    if choice.finish_reason == "abort" or (not text.strip() and choice.finish_reason not in CUT):
        raise UnusableReplyError(found.usage.prompt_tokens + found.usage.completion_tokens)
    return Reply(text, found.usage.prompt_tokens, found.usage.completion_tokens, choice.finish_reason in CUT)


def said_in(body: str) -> str:
    """Returns the reason that the body of a refusal gives, wherever servers put it; what is no JSON is the reason itself.

    A question that the body repeats is none of it.
    """
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):
        return body
    while not isinstance(found, str):
        if isinstance(found, list):
            found = found[0] if found else ""
        elif isinstance(found, dict):
            found = next((found[name] for name in REASONS if found.get(name)), "")
        else:
            return ""
    return found


def refused_alone(status: int, said: str) -> bool:
    """Tells whether a refusal is of this question, too long or filtered, so that others may be answered."""
    if status not in (400, 413, 422):
        return False
    # A limit that no model has is refused whatever the question is.
    setting = _LIMIT.search(said) and not re.search("context|input|prompt", said, re.IGNORECASE)
    return status == 413 or bool(_FILTERED.search(said) or (_TOO_LONG.search(said) and not setting))


def without(text: str, secrets: Sequence[str]) -> str:
    """Returns a text without the key and passwords, which a server may repeat."""
    for secret in secrets:
        text = text.replace(secret, "***")
    return text
