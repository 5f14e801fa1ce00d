"""A judge behind an endpoint that misbehaves: no verdict is lost, none counted twice, and no key gets into a file."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from handbook_ext.core.errors import UserError
from handbook_ext.core.records import user
from handbook_ext.judging.judge_questions import parse_rating, parse_winner
from handbook_ext.judging.ranker import CandidateSet, Verdict
from handbook_ext.judging.verdict_cache import Reply, VerdictCache

pytest.importorskip("openai")
from handbook_ext.judging.endpoint import Endpoint
from handbook_ext.judging.endpoint_judge import EndpointJudge
from handbook_ext.judging.judge_client import JudgeClient
from tests.judging.misbehaving_server import Behaviour, MisbehavingServer, hangs_up, raw, says, status, waits

KEY = "sk-very-secret-0123456789"
SETS = [CandidateSet(user(f"What is {n}?"), [f"It is {n} and {m}." for m in range(3)]) for n in range(8)]
Serve = Callable[..., MisbehavingServer]


@pytest.fixture
def serve() -> Iterator[Serve]:
    started: list[MisbehavingServer] = []

    def start(*arguments: object) -> MisbehavingServer:
        started.append(MisbehavingServer(*arguments))  # type: ignore[arg-type]
        return started[-1]

    yield start
    for each in started:
        each.close()


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    """A key, and nobody's address."""
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)


def answer_of(question: str) -> str:
    """The answer in a question that asks for points."""
    found = re.search(r"<(?:answer|response)>\n(.*)\n</", question)
    assert found is not None
    return found[1]


def rated(question: str) -> str:
    """Points that depend on the answer: `It is 3 and 2.` has 1 + (3 + 2) % 10."""
    return f"I think of [[99]] things.\n[[{1 + sum(map(int, re.findall('[0-9]+', answer_of(question)))) % 10}]]"


def points(sets: list[CandidateSet]) -> list[list[Verdict]]:
    return [[Verdict(1.0 + sum(map(int, re.findall("[0-9]+", text))) % 10) for text in each.texts] for each in sets]


def judge(
    server: MisbehavingServer, folder: Path, *, kind: str = "single", asker: str = "iter1 rank", **more: object
) -> EndpointJudge:
    endpoint = Endpoint(**{"base_url": server.url, "timeout": 5.0, "input_price": 2.0, "output_price": 8.0, **more})  # type: ignore[arg-type]
    cache = VerdictCache(folder / "verdicts.sqlite", asker)
    return EndpointJudge("m", endpoint, cache=cache, kind=kind, longest_pause=0.01)  # type: ignore[arg-type]


MISTAKES: list[Behaviour] = [
    status(429), status(429, Retry_After="0"), status(500), status(503), status(408), raw("{\"choices\": [{\"mess"), raw("[]"),
    raw('{"choices": []}'), raw('{"error": "busy"}'), says(None), says("  "), hangs_up,
]  # fmt: skip


def test_over_a_misbehaving_server_no_verdict_is_lost_or_counted_twice(serve: Serve, tmp_path: Path) -> None:
    """Each question meets one or two mistakes of all kinds before it is answered."""

    def misbehave(question: str, attempt: int) -> Behaviour | None:
        number = int.from_bytes(question.encode()[-40:], "big") % len(MISTAKES) + 5 * attempt
        return (
            MISTAKES[(number + len(answer_of(question)) + hash(answer_of(question)) % 7) % len(MISTAKES)] if attempt < 2 else None
        )

    server = serve(rated, misbehave)
    ranker = judge(server, tmp_path)
    assert ranker.judge(SETS) == points(SETS)
    assert set(server.log.count().values()) == {3} and len(server.log.count()) == 24
    facts = ranker.facts()["judge"]
    tries = facts["unusable_tries"]
    assert 0 < tries < 48 and facts["unusable_tokens"] <= 110 * tries
    assert facts == {
        "replies": 24, "prompt_tokens": 2400, "completion_tokens": 240, "cost_usd": pytest.approx((2 * 2400 + 8 * 240) / 1e6),
        "asked": 24, "from_cache": 0, "unreadable": 0, "refused": 0, "unusable_tries": tries,
        "unusable_tokens": facts["unusable_tokens"],
    }  # fmt: skip
    asked = len(server.log.questions)
    again = judge(server, tmp_path)
    assert again.judge(SETS) == points(SETS)
    assert len(server.log.questions) == asked
    assert again.facts()["judge"] == facts | {
        "asked": 0, "from_cache": 24, "unusable_tries": 0, "unusable_tokens": 0,
    }  # fmt: skip
    other = judge(server, tmp_path, asker="iter2 rank")
    other.judge(SETS)
    assert other.facts()["judge"]["cost_usd"] == 0 and other.facts()["judge"]["from_cache"] == 24


@pytest.mark.parametrize("mistake", MISTAKES[5:11])
def test_a_body_that_stays_unusable_is_a_failed_verdict_and_asked_again_later(
    serve: Serve, tmp_path: Path, mistake: Behaviour
) -> None:
    broken = True
    server = serve(rated, lambda question, attempt: mistake if broken and "3 and 1" in question else None)
    verdicts = judge(server, tmp_path, max_retries=2).judge(SETS)
    expected = points(SETS)
    expected[3][1] = Verdict(0.0, failed=True)
    assert verdicts == expected
    broken = False
    ranker = judge(server, tmp_path)
    assert ranker.judge(SETS) == points(SETS)
    assert ranker.facts()["judge"]["asked"] == 1


def test_what_cannot_be_read_is_counted_and_no_number(serve: Serve, tmp_path: Path) -> None:
    server = serve(rated, lambda question, attempt: says("It is fine, I'd say [[11]].") if "0." in question else None)
    ranker = judge(server, tmp_path)
    verdicts = ranker.judge(SETS)
    assert [each[0] for each in verdicts] == [Verdict(0.0, failed=True)] * 8
    assert ranker.facts()["judge"]["unreadable"] == 8
    assert max(server.log.count().values()) == 1  # The reply is the judge's verdict: it is paid for, and not asked for again.


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (401, "set the environment variable OPENAI_API_KEY to a valid key"), (404, "check rank.judge.base_url"),
        (400, "check rank.judge and rank.model"), (429, "lower rank.judge.requests_per_minute"), (500, "run make again later"),
    ],
)  # fmt: skip
def test_a_refusal_is_one_line_without_the_key_and_keeps_what_came(
    serve: Serve, tmp_path: Path, code: int, words: str, capfd: pytest.CaptureFixture[str]
) -> None:
    server = serve(rated, lambda question, attempt: status(code) if "It is 7 and 2." in question else None)
    with pytest.raises(UserError) as caught:
        judge(server, tmp_path, concurrency=1, max_retries=2).judge(SETS)
    [line] = caught.value.args
    assert line.startswith(f"rank.judge: {server.url} answers {code} (") and words in line and "\n" not in line
    assert server.log.count().most_common(1)[0][1] == (3 if code in (429, 500) else 1)
    assert VerdictCache(tmp_path / "verdicts.sqlite", "iter1 rank").totals()["replies"] == 23
    assert KEY not in line and KEY not in "".join(capfd.readouterr())
    assert server.log.keys == {f"Bearer {KEY}"}


def test_no_key_gets_into_a_file(serve: Serve, tmp_path: Path) -> None:
    server = serve(rated)
    ranker = judge(server, tmp_path)
    ranker.judge(SETS)
    assert KEY not in json.dumps(ranker.facts())
    ranker.cache.close()
    for path in tmp_path.iterdir():
        assert KEY.encode() not in path.read_bytes()
    named = Endpoint(base_url="http://someone:secret@host:81/v1/")
    assert named.name == "http://host:81/v1"


def test_openais_own_endpoint_wants_a_key_and_a_local_one_none(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OPENAI_API_KEY")
    server = serve(rated)
    assert judge(server, tmp_path).judge(SETS[:1]) == points(SETS[:1])
    cache = VerdictCache(tmp_path / "other.sqlite")
    with pytest.raises(UserError, match=r"wants a key; set the environment variable OPENAI_API_KEY"):
        EndpointJudge("m", Endpoint(), cache=cache).judge(SETS[:1])
    monkeypatch.setenv("OPENAI_BASE_URL", server.url)
    assert EndpointJudge("m", Endpoint(), cache=cache).judge(SETS[:1]) == points(SETS[:1])


def test_a_server_that_is_gone_or_too_slow_is_told(serve: Serve, tmp_path: Path) -> None:
    server = serve(rated, lambda question, attempt: waits(0.5))
    with pytest.raises(UserError, match=r"does not answer after 2 tries \(no whole reply within 0.05 s"):
        judge(server, tmp_path, timeout=0.05, max_retries=1).judge(SETS[:1])
    server.close()
    with pytest.raises(UserError, match=r"does not answer after 2 tries \(Connection error"):
        judge(server, tmp_path, max_retries=1).judge(SETS[:1])


def test_no_more_requests_at_once_and_per_minute_than_allowed(serve: Serve, tmp_path: Path) -> None:
    server = serve(rated, lambda question, attempt: waits(0.03))
    judge(server, tmp_path, concurrency=3).judge(SETS)
    assert server.log.most == 3
    slow = serve(rated)
    judge(slow, tmp_path / "slow", concurrency=8, requests_per_minute=1200).judge(SETS)  # One each 50 ms.
    gaps = [later - sooner for sooner, later in zip(slow.log.times, slow.log.times[1:], strict=False)]
    assert sum(gaps) > 0.05 * 22 * 0.9


def longer(question: str) -> str:
    """The better of two: the longer one, a tie where both are equal."""
    first, second = (re.search(rf"<answer-{side}>\n(.*)\n</answer-{side}>", question) for side in "ab")
    assert first is not None and second is not None
    sizes = len(first[1]), len(second[1])
    return f"[[{'A' if sizes[0] > sizes[1] else 'B' if sizes[0] < sizes[1] else 'C'}]]"


def test_pairs_are_asked_in_both_orders(serve: Serve, tmp_path: Path) -> None:
    sets = [CandidateSet(user("q"), ["a", "bb", "ccc"]), CandidateSet(user("r"), ["a", "b"]), CandidateSet(user("s"), ["a"])]
    server = serve(longer)
    ranker = judge(server, tmp_path, kind="pairwise")
    assert ranker.setwise
    assert ranker.judge(sets) == [[Verdict(0.0), Verdict(0.5), Verdict(1.0)], [Verdict(0.5), Verdict(0.5)], [Verdict(0.5)]]
    assert len(server.log.questions) == 8 and set(server.log.count().values()) == {1}


def test_orders_that_disagree_are_a_tie_and_half_read_pairs_count_nothing(serve: Serve, tmp_path: Path) -> None:
    sets = [CandidateSet(user("q"), ["a", "bb", "ccc"])]
    biased = judge(serve(lambda question: "[[A]]"), tmp_path / "1", kind="pairwise")
    assert biased.judge(sets) == [[Verdict(0.5, disagreements=2)] * 3]
    half = judge(serve(lambda q: "hm" if "<answer-a>\na\n" in q else longer(q)), tmp_path / "2", kind="pairwise")
    assert half.judge(sets) == [[Verdict(0.0, failed=True), Verdict(0.0), Verdict(1.0)]]
    assert half.facts()["judge"]["unreadable"] == 2


def test_additive_points_by_the_rubric(serve: Serve, tmp_path: Path) -> None:
    sets = [CandidateSet(user("q"), ["a", "bbbbbb"])]
    server = serve(lambda question: f"Good.\nScore: {len(answer_of(question)) % 6}")
    assert judge(server, tmp_path, kind="additive").judge(sets) == [[Verdict(1.0), Verdict(0.0)]]
    own = EndpointJudge(
        "m", Endpoint(base_url=server.url), cache=VerdictCache(tmp_path / "own"), kind="additive",
        question="<response>\n{{ response }}\n</response> to {{ prompt }}",
    )  # fmt: skip
    assert own.judge([CandidateSet(user("q"), ["abc"])]) == [[Verdict(3.0)]]
    with pytest.raises(UserError, match="uses the variables prompt and response_a and response_b"):
        EndpointJudge("m", Endpoint(), cache=own.cache, kind="pairwise", question="{{ prompt }} [[A]]").judge(SETS[:1])


@pytest.mark.parametrize(
    ("text", "rating"),
    [
        ("[[8]]", 8.0), ("[[ 7.5 ]] it is", 7.5), ("They wrote [[10]], I say [[2]].", 2.0), ("[[11]]", None), ("[[0]]", None),
        ("", None), ("8", None), ("[8]", None), ("[[8", None), ("[[-3]]", None), ("[[٣]]", None), ("[[3]] then [[11]]", None),
        ("[[A]]", None),
    ],
)  # fmt: skip
def test_ratings_are_read_strictly(text: str, rating: float | None) -> None:
    assert parse_rating(text) == rating


@pytest.mark.parametrize(
    ("text", "winner"),
    [("[[A]]", 1.0), ("[[ B ]]", 0.0), ("[[C]]", 0.5), ("[[A]] no, [[B]]", 0.0), ("[[D]]", None), ("A", None), ("", None)],
)
def test_winners_are_read_strictly(text: str, winner: float | None) -> None:
    assert parse_winner(text) == winner


def test_the_first_of_two_replies_to_a_question_counts(tmp_path: Path) -> None:
    one, other = (VerdictCache(tmp_path / "v.sqlite", name) for name in ("a", "b"))
    one.put("k", Reply("x", 1, 2))
    other.put("k", Reply("y", 10, 20))
    assert one.get("k") == other.get("k") == Reply("x", 1, 2)
    assert (one.totals()["replies"], other.totals()["replies"]) == (1, 0)


SCRIPT = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # Who starts the tests in the background has it ignored.
from pathlib import Path
from handbook_ext.core.records import user
from handbook_ext.judging.endpoint_judge import EndpointJudge
from handbook_ext.judging.endpoint import Endpoint
from handbook_ext.judging.ranker import CandidateSet
from handbook_ext.judging.verdict_cache import VerdictCache
sets = [CandidateSet(user(f"What is {n}?"), [f"It is {n} and {m}." for m in range(3)]) for n in range(8)]
EndpointJudge("m", Endpoint(base_url=sys.argv[1], concurrency=2), cache=VerdictCache(Path(sys.argv[2]), "iter1 rank")).judge(sets)
"""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_killed_judge_asks_only_what_is_missing(serve: Serve, tmp_path: Path, how: signal.Signals) -> None:
    server = serve(rated, lambda question, attempt: waits(0.1))
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, server.url, str(tmp_path / "verdicts.sqlite")],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    while len(server.log.questions) < 8:
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(how)
    assert process.wait(10) != 0
    kept = VerdictCache(tmp_path / "verdicts.sqlite", "iter1 rank").totals()["replies"]
    assert 4 <= kept < 24
    time.sleep(0.25)  # Those that were under way.
    before = len(server.log.questions)
    ranker = judge(server, tmp_path)
    assert ranker.judge(SETS) == points(SETS)
    assert len(server.log.questions) - before == 24 - kept
    assert ranker.facts()["judge"]["replies"] == 24


@pytest.mark.parametrize(
    "other", [{"temperature": 0.7}, {"temperature": None}, {"max_new_tokens": 77}, {"base_url": "http://h:2/v1"}]
)
def test_a_reply_is_kept_for_what_decides_it(tmp_path: Path, other: dict[str, object]) -> None:
    cache, plain = VerdictCache(tmp_path / "v"), Endpoint(base_url="http://h:1/v1")

    def key(endpoint: Endpoint, model: str = "m", question: str = "q") -> str:
        return JudgeClient(model, endpoint, cache)._key_of(question)

    assert key(plain) not in {key(replace(plain, **other)), key(plain, "n"), key(plain, question="r")}  # type: ignore[arg-type]
    # What does not decide it is none of it: a stage that goes on slower finds its replies.
    assert key(plain) == key(replace(plain, concurrency=1, timeout=9.0, max_retries=0, requests_per_minute=3))
