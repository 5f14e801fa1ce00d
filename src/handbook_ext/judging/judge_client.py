"""Asks many questions of an endpoint that speaks OpenAI's protocol. The only module that imports the client."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import openai
from aiolimiter import AsyncLimiter
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception, stop_after_attempt, stop_any, wait_exponential_jitter

from handbook_ext.core.bars import Bar
from handbook_ext.core.errors import UserError
from handbook_ext.judging.endpoint import Endpoint
from handbook_ext.judging.judge_reply import UnusableReplyError, refused_alone, reply_of, said_in, without
from handbook_ext.judging.verdict_cache import Reply, VerdictCache, key_of

MINUTE = 60.0
SHOWN = 160  # Characters of a server's message that a UserError repeats.
LONGEST_TOLD = 120.0  # Seconds that a server may tell us to wait before the next try.
SHORTEST_SECRET = 8  # Characters: a local server's key may be `1`, which verdicts are full of.
SEVERAL = 8  # Questions of which one at least should fit.


class JudgeClient:
    """Asks questions concurrently, with repeats and within the limits of an endpoint; replies go to the cache as they come."""

    def __init__(
        self, model: str, endpoint: Endpoint, cache: VerdictCache, *, longest_pause: float = MINUTE, run: int = 0
    ) -> None:
        """Takes the model's name at the endpoint; longest_pause between two tries is in seconds.

        run: questions of another run are asked anew, so that a judge that samples can be asked several times.
        """
        self.model, self.endpoint, self.cache, self.run = model, endpoint, cache, run
        self.asked = self.from_cache = self.refused = 0
        self.unusable: list[int] = []  # Tokens of each try whose reply could not be used.
        self._pauses = wait_exponential_jitter(initial=min(1.0, longest_pause), max=longest_pause)
        self._apart = 0.0 if endpoint.requests_per_minute is None else MINUTE / endpoint.requests_per_minute
        self._next = 0.0  # When the rate allows the next request; a stage asks shard by shard.
        self._sent: set[asyncio.Task[None] | None] = set()  # Those that wait for a reply.
        self._failures: list[UserError] = []

    def ask(self, questions: Sequence[str]) -> list[str]:
        """Returns the reply to each question; equal questions are asked once.

        It is empty where no reply can be used: every try gave none, it was cut, the question alone is refused. Raises UserError
        where the endpoint refuses all, or still fails after all retries; replies that have come are kept.
        """
        keys = [self._key_of(question) for question in questions]
        known = {key: reply for key in set(keys) if (reply := self.cache.get(key)) is not None}
        wanted = {key: question for key, question in zip(keys, questions, strict=True) if key not in known}
        self.from_cache += len(known)
        before = self.refused
        if wanted:
            known |= asyncio.run(self._ask_all(wanted))
        if self.refused - before == len(wanted) >= SEVERAL:
            raise UserError(
                f"{self.endpoint.setting}: {self.endpoint.name} refuses every question, as too long or by its filter; take a "
                "model with a longer context, or a shorter question"
            )
        # What stands last in a reply that was cut need not be its verdict.
        return [known[key].text if key in known and not known[key].cut else "" for key in keys]

    def _key_of(self, question: str) -> str:
        """Returns the name of a question in the cache."""
        later = [self.run] if self.run else []
        return key_of(self.endpoint.name, self.model, self.endpoint.temperature, self.endpoint.max_new_tokens, question, *later)

    def _asked(self, question: str) -> tuple[Any, dict[str, Any]]:
        """Returns the messages that ask a question, and the options beside them."""
        options: dict[str, Any] = {self.endpoint.limit_name: self.endpoint.max_new_tokens}
        if self.endpoint.temperature is not None:
            options["temperature"] = self.endpoint.temperature
        return [{"role": "user", "content": question}], options

    def _read(self, body: bytes) -> Reply:
        """Returns what is kept of a reply; raises UnusableReplyError where it has none."""
        return reply_of(body)

    async def _ask_all(self, wanted: dict[str, str]) -> dict[str, Reply]:
        """Asks the questions by name, and returns the replies that came; raises the first UserError of any.

        After it no request begins. Those that were sent are waited for, though not repeated: their replies are paid for.
        """
        endpoint = self.endpoint
        slots = asyncio.Semaphore(endpoint.concurrency)
        rate = AsyncLimiter(1, self._apart) if self._apart else None
        await asyncio.sleep(self._next - time.monotonic())
        replies: dict[str, Reply] = {}
        self._failures = []
        client = openai.AsyncOpenAI(api_key=endpoint.key(), base_url=endpoint.url, timeout=endpoint.timeout, max_retries=0)

        async def one(key: str, question: str) -> None:
            """Asks one question."""
            async with slots:
                try:
                    reply = await self._ask(client, question, rate)
                except UserError as error:
                    self._failures.append(error)
                    for task in tasks - self._sent - {asyncio.current_task()}:
                        task.cancel()
                    return
            if reply is not None:
                self.cache.put(key, reply)
                replies[key] = reply
            self.asked += 1
            progress.update()

        with Bar("judge", len(wanted), "replies") as progress:
            async with client, asyncio.TaskGroup() as group:
                tasks = {group.create_task(one(key, question)) for key, question in wanted.items()}
        if self._failures:
            raise self._failures[0]
        return replies

    async def _ask(self, client: openai.AsyncOpenAI, question: str, rate: AsyncLimiter | None) -> Reply | None:
        """Returns the reply to one question, None where every try gave something unusable, or it is too long."""
        tries = AsyncRetrying(
            stop=stop_any(stop_after_attempt(self.endpoint.max_retries + 1), lambda _: bool(self._failures)), wait=self._pause,
            retry=retry_if_exception(_may_pass), reraise=True,
        )  # fmt: skip
        try:
            async for attempt in tries:
                with attempt:
                    return await self._try(client, question, rate)
        except UnusableReplyError:
            return None
        except openai.APIStatusError as error:
            if refused_alone(error.status_code, said_in(error.response.text)):
                self.refused += 1
                return None
            raise UserError(self._refused(error)) from None
        except (openai.APIConnectionError, TimeoutError) as error:
            late = isinstance(error, (openai.APITimeoutError, TimeoutError))
            what = f"no whole reply within {self.endpoint.timeout:g} s" if late else without(str(error), self.endpoint.secrets())
            raise UserError(
                f"{self.endpoint.setting}: {self.endpoint.name} does not answer after {self.endpoint.max_retries + 1} tries "
                f"({what}); start it or wait, and run make again: replies that came are kept"
            ) from None
        return None

    async def _try(self, client: openai.AsyncOpenAI, question: str, rate: AsyncLimiter | None) -> Reply:
        """Returns the reply to a question asked once, in its turn, without what may not be shown."""
        if rate is not None:
            await rate.acquire()
            self._next = time.monotonic() + self._apart
        endpoint, (messages, options) = self.endpoint, self._asked(question)
        # The client's own limit is between two reads, so that a reply may drip for ever.
        async with self._awaited(), asyncio.timeout(endpoint.timeout):
            answer = await client.chat.completions.with_raw_response.create(
                model=self.model, messages=messages, extra_body=options
            )
        try:
            reply = self._read(answer.content)
        except UnusableReplyError as error:
            self.unusable.append(error.tokens)
            raise
        secrets = [secret for secret in endpoint.secrets() if len(secret) >= SHORTEST_SECRET]
        return replace(reply, text=without(reply.text, secrets))

    @asynccontextmanager
    async def _awaited(self) -> AsyncIterator[None]:
        """Returns a context in which the failure of another question does not cancel this one: its request is sent."""
        task: asyncio.Task[None] | None = asyncio.current_task()
        self._sent.add(task)
        try:
            yield
        finally:
            self._sent.discard(task)

    def _pause(self, state: RetryCallState) -> float:
        """Returns the seconds until the next try: longer each time, and at least what the server says."""
        error = None if state.outcome is None else state.outcome.exception()
        told = error.response.headers.get("retry-after", "") if isinstance(error, openai.APIStatusError) else ""
        try:
            seconds = float(told)
        except ValueError:  # None, or a date, for which our own pauses do.
            seconds = 0.0
        return max(self._pauses(state), min(seconds, LONGEST_TOLD))

    def _refused(self, error: openai.APIStatusError) -> str:
        """Returns what a status means, and what to do."""
        status, name = error.status_code, self.endpoint.name
        setting, model = self.endpoint.setting, self.endpoint.model_setting
        todo = {
            401: f"set the environment variable {self.endpoint.key_variable} to a valid key",
            403: f"the key of {self.endpoint.key_variable} may not use this model; take another key or {model}",
            404: f"check {setting}.base_url, and that the endpoint has a model '{self.model}' ({model})",
            429: f"wait, or lower {setting}.requests_per_minute and concurrency, and run make again: replies that came are kept",
        }.get(status, "run make again later: replies that came are kept" if status >= 500 else f"check {setting} and {model}")
        said = said_in(error.response.text) or str(error)
        text = " ".join(without(said, self.endpoint.secrets()).split())[:SHOWN]
        return f"{setting}: {name} answers {status} ({text}); {todo}"


def _may_pass(error: BaseException) -> bool:
    """Tells whether the same request may succeed later."""
    if isinstance(error, openai.APIStatusError):
        return error.status_code in (408, 409, 429) or error.status_code >= 500
    return isinstance(error, (UnusableReplyError, TimeoutError, openai.APIConnectionError))
