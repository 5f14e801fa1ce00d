"""A judge's stage that one question ends: no request begins any more, and what was sent is waited for and kept."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest

from handbook_ext.core.errors import UserError
from handbook_ext.core.records import user
from handbook_ext.judging.ranker import CandidateSet, Verdict
from handbook_ext.judging.verdict_cache import VerdictCache

pytest.importorskip("openai")
from handbook_ext.judging.endpoint import Endpoint
from handbook_ext.judging.endpoint_judge import EndpointJudge
from tests.judging.misbehaving_server import Behaviour, MisbehavingServer, body_of, says, status

AT_ONCE, QUESTIONS = 8, 20
LATER = 0.4  # Seconds, in which a client hears of a refusal.
ANSWERS = [f"answer {number:02d}" for number in range(QUESTIONS)]
SETS = [CandidateSet(user("q"), ANSWERS)]
Open = Callable[..., EndpointJudge]


class Server(MisbehavingServer):
    """Gives seven points, but meets single answers as `spoilt` has it."""

    def __init__(self) -> None:
        self.spoilt: dict[str, Behaviour] = {}
        self.refused = threading.Event()
        super().__init__(lambda question: "[[7]]", self._met)

    def _met(self, question: str, attempt: int) -> Behaviour | None:
        return next((behaviour for answer, behaviour in self.spoilt.items() if answer in question), self.after(says("[[7]]")))

    def asked(self) -> dict[str, int]:
        """How often each answer was asked about."""
        return {answer: sum(answer in question for question in self.log.questions) for answer in ANSWERS}

    def refuses(self, others: int) -> Behaviour:
        """Refuses the key, once so many requests are on their way."""

        def answer(handler: BaseHTTPRequestHandler, reply: str) -> None:
            until = time.monotonic() + 20
            while len(self.log.questions) < others and time.monotonic() < until:
                time.sleep(0.01)
            body_of(401, '{"error": {"message": "the key has run out"}}')(handler, reply)
            self.refused.set()

        return answer

    def after(self, behaviour: Behaviour) -> Behaviour:
        """Behaves so some time after the refusal, where there is to be one."""

        def answer(handler: BaseHTTPRequestHandler, reply: str) -> None:
            if not self.refused.is_set():
                self.refused.wait(20)
                time.sleep(LATER)
            behaviour(handler, reply)

        return answer


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server()
    yield made
    made.close()


@pytest.fixture
def judge(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Open:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-very-secret-0123456789")

    def opened(**more: object) -> EndpointJudge:
        values = {"base_url": server.url, "timeout": 30.0, "max_retries": 2, "concurrency": AT_ONCE, **more}
        cache = VerdictCache(tmp_path / "verdicts.sqlite", "iter1 rank")
        return EndpointJudge("m", Endpoint(**values), cache=cache, kind="single", question=None, longest_pause=0.01)  # type: ignore[arg-type]

    return opened


def test_after_a_failure_and_a_repeat_no_question_was_asked_twice(server: Server, judge: Open) -> None:
    server.spoilt = {ANSWERS[3]: server.refuses(AT_ONCE)}
    ranker = judge()
    with pytest.raises(UserError, match="the key has run out"):
        ranker.judge(SETS)
    assert len(server.log.questions) == server.log.most == AT_ONCE
    assert ranker.client.asked == ranker.client.cache.totals()["replies"] == AT_ONCE - 1
    server.spoilt = {}
    assert judge().judge(SETS) == [[Verdict(7.0)] * QUESTIONS]
    assert server.asked() == {answer: 1 + (answer == ANSWERS[3]) for answer in ANSWERS}


def test_what_was_sent_is_not_sent_again_after_a_failure(server: Server, judge: Open) -> None:
    server.spoilt = {ANSWERS[3]: server.refuses(AT_ONCE), ANSWERS[5]: server.after(status(500))}
    with pytest.raises(UserError, match="the key has run out"):
        judge().judge(SETS)
    assert len(server.log.questions) == AT_ONCE


def test_a_failure_waits_for_no_pause_and_for_no_turn(server: Server, judge: Open) -> None:
    server.spoilt = {ANSWERS[0]: status(429, Retry_After="60"), ANSWERS[3]: server.refuses(AT_ONCE)}
    started = time.monotonic()
    with pytest.raises(UserError, match="the key has run out"):
        judge().judge(SETS)
    server.spoilt = {ANSWERS[0]: server.refuses(1)}
    with pytest.raises(UserError, match="the key has run out"):
        judge(requests_per_minute=1).judge([CandidateSet(user("in turns"), ANSWERS)])
    assert time.monotonic() - started < 30
    assert server.asked()[ANSWERS[0]] == 2  # Once for each prompt.
