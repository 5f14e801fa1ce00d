"""A judge's limits: of a reply, of a question, of time and rate; what is cut is no verdict, and one question stops no stage."""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path

import pytest

from handbook_ext.core.errors import UserError
from handbook_ext.core.records import user
from handbook_ext.judging.ranker import CandidateSet, Verdict
from handbook_ext.judging.verdict_cache import VerdictCache, _patiently

pytest.importorskip("openai")
import httpx2
import openai
from tenacity import RetryCallState, Retrying

from handbook_ext.judging.endpoint import Endpoint
from handbook_ext.judging.endpoint_judge import EndpointJudge
from handbook_ext.judging.judge_client import LONGEST_TOLD
from tests.judging.misbehaving_server import Behaviour, MisbehavingServer, body_of, drips, raw, refuses, says, status

KEY = "sk-very-secret-0123456789"
SETS = [CandidateSet(user("q"), ["aa", "bb"])]
SEVEN = "Fine. [[7]]"
Open = Callable[..., EndpointJudge]


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)


class Server(MisbehavingServer):
    """Gives seven points, but meets the answer `aa` with `spoilt`, the first `times` times."""

    def __init__(self) -> None:
        self.spoilt: Behaviour | None = None
        self.times = 10**9
        super().__init__(lambda question: SEVEN, lambda question, n: self.spoilt if "aa" in question and n < self.times else None)


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server()
    yield made
    made.close()


@pytest.fixture
def judge(server: Server, tmp_path: Path) -> Open:
    def opened(kind: str = "single", question: str | None = None, **more: object) -> EndpointJudge:
        endpoint = Endpoint(**{"base_url": server.url, "timeout": 5.0, "max_retries": 2, **more})  # type: ignore[arg-type]
        cache = VerdictCache(tmp_path / "verdicts.sqlite", "iter1 rank")
        return EndpointJudge("m", endpoint, cache=cache, kind=kind, question=question, longest_pause=0.01)  # type: ignore[arg-type]

    return opened


def test_a_reply_that_was_cut_is_no_verdict_paid_once(server: Server, judge: Open) -> None:
    server.spoilt = says("They write [[10]], which I", "length")
    for asked in (2, 0):
        ranker = judge()
        assert ranker.judge(SETS) == [[Verdict(0.0, failed=True), Verdict(7.0)]]
        assert (ranker.facts()["judge"]["asked"], ranker.facts()["judge"]["unreadable"]) == (asked, 1)


def test_a_key_in_a_reply_gets_into_no_file(server: Server, judge: Open, tmp_path: Path) -> None:
    server.spoilt = says(f"Your key is {KEY}. [[3]]")
    assert judge().judge(SETS) == [[Verdict(3.0), Verdict(7.0)]]
    assert KEY.encode() not in b"".join(path.read_bytes() for path in tmp_path.iterdir())


def test_a_reply_that_drips_is_late(server: Server, judge: Open) -> None:
    server.spoilt, server.times = drips, 1
    started = time.monotonic()
    assert judge(timeout=0.4).judge(SETS) == [[Verdict(7.0), Verdict(7.0)]]
    assert time.monotonic() - started < 2  # The whole of it takes over 3 seconds.
    server.times = 10
    with pytest.raises(UserError, match=r"does not answer after 2 tries \(no whole reply within 0.3 s\)"):
        judge(timeout=0.3, max_retries=1).judge([CandidateSet(user("other"), ["aa"])])


def test_the_rate_holds_over_the_calls_of_a_stage(server: Server, judge: Open) -> None:
    ranker = judge(requests_per_minute=150)  # One each 400 ms; a call alone takes up to 120.
    for number in range(4):
        ranker.judge([CandidateSet(user(f"q{number}"), ["bb"])])
    assert server.log.times[-1] - server.log.times[0] > 0.4 * 3 * 0.9


@pytest.mark.parametrize(
    "refusal",
    [
        refuses("This model's maximum context length is 512 tokens. However, you requested 900 tokens"), refuses("", 413),
        refuses("Input is too long for requested model."), refuses("prompt exceeds the 4096 tokens of the window"),
        refuses("maximum context length is 512 tokens", 422), refuses("the request exceeds the available context size"),
        refuses("'max_tokens' is too large: 96. The context has 512 tokens, and your request has 500 input tokens"),
        refuses("The response was filtered due to Azure OpenAI's content management policy."),
        body_of(400, json.dumps({"detail": [{"msg": "maximum context length is 512", "input": "x"}]})),
        body_of(400, json.dumps({"error": "Input validation error: `inputs` must have less than 512 tokens"})),
        body_of(400, "This model's maximum context length is 512"),
    ],
)  # fmt: skip
def test_a_question_that_is_too_long_is_a_failed_verdict_alone(server: Server, judge: Open, refusal: Behaviour) -> None:
    server.spoilt = refusal
    ranker = judge()
    assert ranker.judge(SETS) == [[Verdict(0.0, failed=True), Verdict(7.0)]]
    assert ranker.facts()["judge"]["refused"] == 1 and len(server.log.questions) == 2
    server.spoilt = None
    assert judge().judge(SETS) == [[Verdict(7.0), Verdict(7.0)]]  # Not kept: a larger window may be had.


@pytest.mark.parametrize(
    "refusal",
    [
        refuses("Unsupported parameter: 'max_tokens'"), refuses("max_tokens is too large: 50000. This model supports 4096"),
        body_of(400, json.dumps({"detail": [{"msg": "no such field", "input": "the context length is 5"}]})),
        refuses("key too long", 401), refuses("key too long", 403), refuses("name too long", 404),
    ],
)  # fmt: skip
def test_another_refusal_ends_the_stage_and_is_shown(server: Server, judge: Open, refusal: Behaviour) -> None:
    server.spoilt = refusal
    with pytest.raises(UserError, match=r"answers 40. \((Unsupported parameter|max_tokens is|no such field|key too|name too)"):
        judge().judge(SETS)


def test_a_stage_whose_every_question_is_refused_is_told(server: Server, judge: Open) -> None:
    server.spoilt = refuses("maximum context length is 5 tokens")
    with pytest.raises(UserError, match="refuses every question, as too long"):
        judge().judge([CandidateSet(user(f"q{number}"), ["aa"]) for number in range(8)])


@pytest.mark.parametrize(("code", "again"), [(408, True), (409, True), (429, True), (500, True), (502, True), (418, False)])
def test_what_may_pass_is_asked_again(server: Server, judge: Open, code: int, again: bool) -> None:
    server.spoilt, server.times = status(code, Retry_After="0"), 1
    with nullcontext() if again else pytest.raises(UserError, match="answers 418"):
        assert judge().judge(SETS) == [[Verdict(7.0), Verdict(7.0)]]


def test_no_server_may_stop_a_stage_for_hours(judge: Open) -> None:
    for told, least, most in (("7200", LONGEST_TOLD, LONGEST_TOLD), ("-5", 0, 1), ("3", 3, 3)):
        answer = httpx2.Response(429, headers={"retry-after": told}, request=httpx2.Request("POST", "http://h"))
        state = RetryCallState(Retrying(), None, (), {})
        state.set_exception((openai.APIStatusError, openai.APIStatusError("", response=answer, body=None), None))
        assert least <= judge().client._pause(state) <= most


@pytest.mark.parametrize("written", ["hunter%32pass", "hunter2pass"])
def test_a_password_that_is_echoed_is_scrubbed(server: Server, judge: Open, tmp_path: Path, written: str) -> None:
    address = server.url.replace("//", "//me:hunter%32pass@")
    server.spoilt = says(f"You came by {written}. [[3]]")
    assert judge(base_url=address).judge(SETS) == [[Verdict(3.0), Verdict(7.0)]]
    assert written.encode() not in b"".join(path.read_bytes() for path in tmp_path.iterdir())
    server.spoilt = refuses("x" * 130 + f" {written}")  # The cut comes after the scrubbing, or half of it stays.
    with pytest.raises(UserError) as caught:
        judge(base_url=address).judge([CandidateSet(user("another"), ["aa"])])
    assert "hunter" not in str(caught.value)


def test_a_key_that_verdicts_are_made_of_leaves_them_whole(server: Server, judge: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "1")
    server.spoilt = says("[[10]]")
    assert judge().judge(SETS) == [[Verdict(10.0), Verdict(7.0)]]


def test_a_newline_behind_the_address_is_none_of_it(server: Server, judge: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", f" {server.url}\n")
    assert judge(base_url=None).judge(SETS) == [[Verdict(7.0), Verdict(7.0)]]
    for odd in ("http://127.0.0.1:1/v1\x01", "http://ho st/v1"):
        with pytest.raises(UserError, match=r"no http\(s\) URL"):
            judge(base_url=odd).judge(SETS)
    assert Endpoint(base_url="http://[::1]:1/v1").name == "http://[::1]:1/v1"


def test_an_aborted_reply_is_asked_for_again_and_a_filtered_one_is_no_verdict(server: Server, judge: Open) -> None:
    server.spoilt, server.times = says("They write [[10]], which I", "abort"), 1
    assert judge().judge(SETS) == [[Verdict(7.0), Verdict(7.0)]]
    server.spoilt = says("They write [[10]], which I", "content_filter")
    assert judge().judge([CandidateSet(user("r"), ["aa"])]) == [[Verdict(0.0, failed=True)]]


def test_what_is_sent_fits_reasoning_models_too(server: Server, judge: Open) -> None:
    judge().judge(SETS[:1])
    judge(limit_name="max_completion_tokens", temperature=None, max_new_tokens=77).judge([CandidateSet(user("r"), ["bb"])])
    names = [set(body) & {"max_tokens", "max_completion_tokens", "temperature"} for body in server.log.bodies]
    assert names[:2] == [{"max_tokens", "temperature"}] * 2 and names[2] == {"max_completion_tokens"}
    assert server.log.bodies[2]["max_completion_tokens"] == 77


def test_a_server_that_names_a_pause_is_given_it(server: Server, judge: Open) -> None:
    server.spoilt, server.times = status(429, Retry_After="0.4"), 1
    assert judge().judge(SETS) == [[Verdict(7.0), Verdict(7.0)]]
    assert server.log.times[-1] - server.log.times[0] > 0.35
    server.spoilt = status(429, Retry_After="Fri, 31 Dec 1999 23:59:59 GMT")
    assert judge().judge([CandidateSet(user("r"), ["aa"])]) == [[Verdict(7.0)]]


def test_what_tries_without_a_verdict_took_is_told(server: Server, judge: Open) -> None:
    server.spoilt, server.times = says(" "), 2
    ranker = judge()
    assert ranker.judge(SETS) == [[Verdict(7.0), Verdict(7.0)]]
    facts = ranker.facts()["judge"]
    assert (facts["unusable_tries"], facts["unusable_tokens"], facts["prompt_tokens"]) == (2, 220, 200)
    server.spoilt = raw("no JSON")
    judge().judge([CandidateSet(user("r"), ["aa"])])


@pytest.mark.parametrize("kind", ["single", "pairwise"])
def test_a_question_that_asks_for_no_verdict_is_refused(judge: Open, kind: str) -> None:
    with pytest.raises(UserError, match=r"rank.rubric: it does not ask for a verdict in double brackets"):
        judge(kind, "Is {{ response }} good for {{ prompt }}?")


def test_many_open_a_new_file_at_once(tmp_path: Path) -> None:
    for number in range(20):
        with ThreadPoolExecutor(8) as pool:
            for each in [pool.submit(lambda path=tmp_path / f"{number}": VerdictCache(path).close()) for _ in range(16)]:
                each.result()


@pytest.mark.parametrize(
    ("code", "waits"), [(sqlite3.SQLITE_BUSY, True), (sqlite3.SQLITE_BUSY_RECOVERY, True), (sqlite3.SQLITE_CANTOPEN, False)]
)
def test_only_a_busy_file_is_waited_for(code: int, waits: bool) -> None:
    class Base:
        tries = 0

        def execute(self, statement: str) -> None:
            self.tries += 1
            if self.tries < 3:
                error = sqlite3.OperationalError(statement)
                error.sqlite_errorcode = code
                raise error

    base = Base()
    with nullcontext() if waits else pytest.raises(sqlite3.OperationalError):
        _patiently(base, "x")  # type: ignore[arg-type]
    assert base.tries == (3 if waits else 1)
