"""A judge that is read by the log-probabilities of its reply: the whole first choice is kept, not its text alone."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from pydantic import Field, ValidationError

from handbook_ext.core.errors import UserError
from handbook_ext.core.records import Messages
from handbook_ext.judging.endpoint import Endpoint
from handbook_ext.judging.judge_client import MINUTE, JudgeClient
from handbook_ext.judging.judge_reply import Body, UnusableReplyError
from handbook_ext.judging.verdict_cache import Reply, VerdictCache, key_of

Choice = dict[str, Any]
"""The first choice of a reply as OpenAI's protocol has it, with its `text` and the `total_tokens` of question and reply."""


class _WholeBody(Body):
    """A reply of which no part of a choice is left out."""

    choices: Annotated[list[Choice], Field(min_length=1)]  # type: ignore[assignment]


class ChoiceClient(JudgeClient):
    """Asks with messages and options of its own. A choice that has come is kept, and never asked for again."""

    def __init__(
        self, model: str, endpoint: Endpoint, cache: VerdictCache, options: Mapping[str, Any], *, longest_pause: float = MINUTE
    ) -> None:
        """Takes what stands in a request beside the messages; of the endpoint, temperature and max_new_tokens play no part."""
        super().__init__(model, endpoint, cache, longest_pause=longest_pause)
        self.options = dict(options)

    def choices(self, questions: Sequence[Messages]) -> list[Choice | None]:
        """Returns the first choice of the reply to each list of messages, None where the endpoint refuses it alone.

        Raises UserError as `ask` does, and where the endpoint gives no log-probabilities; choices that have come are kept.
        """
        replies = self.ask([json.dumps(messages, ensure_ascii=False) for messages in questions])
        return [json.loads(reply) if reply else None for reply in replies]

    def _key_of(self, question: str) -> str:
        """Returns the name of a question in the cache."""
        return key_of(self.endpoint.name, self.model, self.options, question)

    def _asked(self, question: str) -> tuple[Any, dict[str, Any]]:
        """Returns the messages, and the options beside them."""
        return json.loads(question), self.options

    def _read(self, body: bytes) -> Reply:
        """Returns the first choice as JSON; raises UnusableReplyError where there is none."""
        try:
            found = _WholeBody.model_validate_json(body)
        except ValidationError:
            raise UnusableReplyError from None
        choice, usage = found.choices[0], found.usage
        total = usage.prompt_tokens + usage.completion_tokens
        if choice.get("finish_reason") == "abort" or not isinstance(choice.get("message"), dict):
            raise UnusableReplyError(total)
        text = choice["message"].get("content") or ""
        # A reply that was filtered has none; any other without them comes from an endpoint that does not compute them.
        if text and not choice.get("logprobs") and choice.get("finish_reason") != "content_filter":
            raise UserError(
                f"{self.endpoint.setting}: {self.endpoint.name} answers without log-probabilities, by which this judge is read; "
                "name an endpoint and a model that give logprobs and top_logprobs, as OpenAI's chat models and vLLM do"
            )
        whole = json.dumps({**choice, "text": text or " ", "total_tokens": total}, ensure_ascii=False)
        return Reply(whole, usage.prompt_tokens, usage.completion_tokens)
