"""A judge's limits: of a reply, of a question, of time and rate; what is cut is no verdict, and one question stops no stage."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from handbook_ext.core.errors import UserError
from handbook_ext.core.records import user
from handbook_ext.judging.ranker import CandidateSet, Verdict
from handbook_ext.judging.verdict_cache import VerdictCache

pytest.importorskip("openai")
from handbook_ext.judging.endpoint_judge import EndpointJudge
from handbook_ext.judging.judge_client import Endpoint
from tests.judging.misbehaving_server import Behaviour, MisbehavingServer, drips, raw, refuses, says, status

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
    ranker = judge(requests_per_minute=1200)  # One each 50 ms.
    for number in range(6):
        ranker.judge([CandidateSet(user(f"q{number}"), ["bb"])])
    assert server.log.times[-1] - server.log.times[0] > 0.05 * 5 * 0.9


@pytest.mark.parametrize(
    "refusal",
    [
        refuses("This model's maximum context length is 512 tokens. However, you requested 900 tokens"), refuses("", 413),
        refuses("Input is too long for requested model."), refuses("prompt exceeds the 4096 tokens of the window"),
    ],
)  # fmt: skip
def test_a_question_that_is_too_long_is_a_failed_verdict_alone(server: Server, judge: Open, refusal: Behaviour) -> None:
    server.spoilt = refusal
    ranker = judge()
    assert ranker.judge(SETS) == [[Verdict(0.0, failed=True), Verdict(7.0)]]
    assert ranker.facts()["judge"]["too_long"] == 1 and len(server.log.questions) == 2
    server.spoilt = None
    assert judge().judge(SETS) == [[Verdict(7.0), Verdict(7.0)]]  # Not kept: a larger window may be had.


def test_another_refusal_ends_the_stage(server: Server, judge: Open) -> None:
    server.spoilt = refuses("Unsupported parameter: 'max_tokens'")
    with pytest.raises(UserError, match=r"answers 400 .*Unsupported parameter.*check rank.judge"):
        judge().judge(SETS)


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
