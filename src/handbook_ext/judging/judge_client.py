"""Asks many questions of an endpoint that speaks OpenAI's protocol. The only module that imports the client."""

from __future__ import annotations

import asyncio
import base64
import os
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import unquote, urlsplit

import openai
from aiolimiter import AsyncLimiter
from tenacity import AsyncRetrying, RetryError, retry_if_exception_type, stop_after_attempt, wait_random_exponential
from tqdm import tqdm

from handbook_ext.core.errors import UserError
from handbook_ext.judging.judge_reply import UnusableReplyError, reply_of
from handbook_ext.judging.verdict_cache import Reply, VerdictCache, key_of

MINUTE = 60.0
SHOWN = 160  # Characters of a server's message that a UserError repeats.
NO_KEY = "none"  # What a local server is given, which asks for no key.


@dataclass(frozen=True)
class Endpoint:
    """Where and how to ask: seconds, requests, tokens, and USD per million tokens. The key is read from the environment alone."""

    base_url: str | None = None
    key_variable: str = "OPENAI_API_KEY"
    temperature: float = 0.0
    max_new_tokens: int = 512
    concurrency: int = 8
    requests_per_minute: int | None = None
    timeout: float = 60.0
    max_retries: int = 6
    input_price: float | None = None
    output_price: float | None = None

    @property
    def url(self) -> str:
        """Returns the address that is asked; raises UserError for one that is none."""
        found = self.base_url or os.environ.get("OPENAI_BASE_URL") or "https://api.openai.com/v1"
        try:
            parts = urlsplit(found)
            good = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        except ValueError:
            good = False
        if not good:
            # What it holds is not repeated: it may have a password.
            raise UserError(
                "rank.judge: the address of the judge is no http(s) URL, such as http://127.0.0.1:8000/v1; "
                "correct rank.judge.base_url, or OPENAI_BASE_URL in the environment"
            )
        return found

    @property
    def name(self) -> str:
        """Returns the address without what a URL may hold of names and passwords."""
        parts = urlsplit(self.url)
        return f"{parts.scheme}://{parts.hostname}{f':{parts.port}' if parts.port else ''}{parts.path.rstrip('/')}"

    def key(self) -> str:
        """Returns the key; raises UserError for one that cannot be sent, and where OpenAI's own endpoint wants one."""
        found = os.environ.get(self.key_variable, "").strip()
        if not (found.isascii() and found.isprintable()):
            raise UserError(
                f"rank.judge: {self.key_variable} holds characters that no key has; set it to the key alone, one line of ASCII"
            )
        if not found and urlsplit(self.url).hostname == "api.openai.com":
            raise UserError(f"rank.judge: {self.name} wants a key; set the environment variable {self.key_variable}")
        return found or NO_KEY

    def secrets(self) -> list[str]:
        """Returns what no text may show: the key, and a password in the address as it is written, meant and sent."""
        parts = urlsplit(self.url)
        name, password = unquote(parts.username or ""), unquote(parts.password or "")
        sent = base64.b64encode(f"{name}:{password}".encode()).decode() if name or password else ""
        return [each for each in (os.environ.get(self.key_variable, "").strip(), sent, parts.password, password) if each]

    def cost(self, prompt_tokens: int, completion_tokens: int) -> float | None:
        """Returns USD for so many tokens, None where a price is not given."""
        if self.input_price is None or self.output_price is None:
            return None
        return (self.input_price * prompt_tokens + self.output_price * completion_tokens) / 1e6


class JudgeClient:
    """Asks questions concurrently, with repeats and within the limits of an endpoint; replies go to the cache as they come."""

    def __init__(self, model: str, endpoint: Endpoint, cache: VerdictCache, *, longest_pause: float = 30.0) -> None:
        """Takes the model's name at the endpoint; longest_pause between two tries of an unusable reply is in seconds."""
        self.model, self.endpoint, self.cache, self.longest_pause = model, endpoint, cache, longest_pause
        self.asked = self.from_cache = 0

    def ask(self, questions: Sequence[str]) -> list[str]:
        """Returns the reply to each question, empty where every try gave something unusable; equal questions are asked once.

        Raises UserError where the endpoint refuses, or still fails after all retries; replies that have come are kept.
        """
        keys = [self._key_of(question) for question in questions]
        known = {key: reply.text for key in set(keys) if (reply := self.cache.get(key)) is not None}
        wanted = {key: question for key, question in zip(keys, questions, strict=True) if key not in known}
        self.from_cache += len(known)
        if wanted:
            known |= asyncio.run(self._ask_all(wanted))
        return [known[key] for key in keys]

    def _key_of(self, question: str) -> str:
        """Returns the name of a question in the cache."""
        return key_of(self.endpoint.name, self.model, self.endpoint.temperature, self.endpoint.max_new_tokens, question)

    async def _ask_all(self, wanted: dict[str, str]) -> dict[str, str]:
        """Asks the questions by name; the first failure cancels those that wait."""
        endpoint = self.endpoint
        slots = asyncio.Semaphore(endpoint.concurrency)
        rate = None if endpoint.requests_per_minute is None else AsyncLimiter(1, MINUTE / endpoint.requests_per_minute)
        progress = tqdm(total=len(wanted), desc="judge", unit="reply", mininterval=1.0, leave=False)

        async def in_turn(request: object) -> None:
            """Holds a request until its turn; the client's own repeats are requests as well."""
            if rate is not None:
                await rate.acquire()

        client = openai.AsyncOpenAI(
            api_key=endpoint.key(), base_url=endpoint.url, timeout=endpoint.timeout, max_retries=endpoint.max_retries,
            http_client=openai.DefaultAsyncHttpxClient(event_hooks={"request": [in_turn]}),
        )  # fmt: skip

        async def one(key: str, question: str) -> tuple[str, str]:
            """Asks one question."""
            async with slots:
                reply = await self._ask(client, question)
            if reply is not None:
                self.cache.put(key, reply)
            self.asked += 1
            progress.update()
            return key, "" if reply is None else reply.text

        try:
            async with client, asyncio.TaskGroup() as group:
                tasks = [group.create_task(one(key, question)) for key, question in wanted.items()]
        except* UserError as errors:
            raise errors.exceptions[0] from None
        finally:
            progress.close()
        return dict(task.result() for task in tasks)

    async def _ask(self, client: openai.AsyncOpenAI, question: str) -> Reply | None:
        """Returns the reply to one question, None where every try gave something unusable.

        HTTP failures are repeated by the client, bodies that cannot be read here.
        """
        tries = AsyncRetrying(
            stop=stop_after_attempt(self.endpoint.max_retries + 1),
            wait=wait_random_exponential(multiplier=0.5, max=self.longest_pause),
            retry=retry_if_exception_type(UnusableReplyError),
        )
        try:
            async for attempt in tries:
                with attempt:
                    answer = await client.chat.completions.with_raw_response.create(
                        model=self.model, messages=[{"role": "user", "content": question}],
                        temperature=self.endpoint.temperature, max_tokens=self.endpoint.max_new_tokens,
                    )  # fmt: skip
                    return reply_of(answer.content)
        except RetryError:
            pass
        except openai.APIStatusError as error:
            raise UserError(self._refused(error)) from None
        except openai.APIConnectionError as error:
            raise UserError(
                f"rank.judge: {self.endpoint.name} does not answer after {self.endpoint.max_retries + 1} tries "
                f"({self._clean(error)}); start it or wait, and run make again: replies that came are kept"
            ) from None
        return None

    def _refused(self, error: openai.APIStatusError) -> str:
        """Returns what a status means, and what to do."""
        status, name = error.status_code, self.endpoint.name
        todo = {
            401: f"set the environment variable {self.endpoint.key_variable} to a valid key",
            403: f"the key of {self.endpoint.key_variable} may not use this model; take another key or rank.model",
            404: f"check rank.judge.base_url, and that the endpoint has a model '{self.model}' (rank.model)",
            429: "wait, or lower rank.judge.requests_per_minute and concurrency, and run make again: replies that came are kept",
        }.get(status, "run make again later: replies that came are kept" if status >= 500 else "check rank.judge and rank.model")
        return f"rank.judge: {name} answers {status} ({self._clean(error)}); {todo}"

    def _clean(self, error: openai.OpenAIError) -> str:
        """Returns the first words of an error without the key and passwords, which a server may repeat."""
        text = " ".join(str(error).split()) or type(error).__name__
        for secret in self.endpoint.secrets():
            text = text.replace(secret, "***")
        return text[:SHOWN]
