"""A judge behind an endpoint under attack: odd bodies, odd settings, verdicts that are not its own, limits under retries."""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
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
from tests.judging.misbehaving_server import Behaviour, MisbehavingServer, completion, raw, status

KEY = "sk-very-secret-0123456789"
NO_TEXT = b'{"choices": "\xff\xfe"}'
SETS = [CandidateSet(user("q"), ["aa", "bb"])]


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    """A key, and nobody's address."""
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)


class Stage:
    """A server whose first reply to the answer `aa` may be spoilt, and a judge that asks it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.reply = folder, "Fine. [[7]]"
        self.first: Behaviour | None = None
        self.always: Behaviour | None = None
        self.server = MisbehavingServer(lambda question: self.reply, self.behave)

    def behave(self, question: str, attempt: int) -> Behaviour | None:
        return self.always or (self.first if "aa" in question and attempt == 0 else None)

    def judge(self, kind: str = "single", **more: object) -> EndpointJudge:
        endpoint = Endpoint(**{"base_url": self.server.url, "timeout": 5.0, "max_retries": 2, **more})  # type: ignore[arg-type]
        cache = VerdictCache(self.folder / "verdicts.sqlite", "iter1 rank")
        return EndpointJudge("m", endpoint, cache=cache, kind=kind, longest_pause=0.01)  # type: ignore[arg-type]


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    made = Stage(tmp_path)
    yield made
    made.server.close()


def body(**other: object) -> Behaviour:
    """A good reply but for some of its fields."""
    return raw(json.dumps(json.loads(completion("[[7]]")) | other))


def no_utf8(handler: BaseHTTPRequestHandler, reply: str) -> None:
    """Answers with bytes that are no text."""
    handler.send_response(200)
    handler.send_header("Content-Type", "application/json")
    handler.send_header("Content-Length", str(len(NO_TEXT)))
    handler.end_headers()
    handler.wfile.write(NO_TEXT)


@pytest.mark.parametrize(
    "spoilt",
    [
        body(choices={"a": 1}), body(choices=5), body(choices=[None]), body(choices=[{"message": "hm"}]),
        body(choices=[{"message": {"content": [{"text": "[[7]]"}]}}]), raw(completion("[[7]] \ud83d")), raw("[" * 100_000),
        raw("null"), raw("<html>busy</html>"), no_utf8,
    ],
)  # fmt: skip
def test_a_body_of_another_shape_is_asked_for_again(stage: Stage, spoilt: Behaviour) -> None:
    stage.first = spoilt
    ranker = stage.judge()
    assert ranker.judge(SETS) == [[Verdict(7.0), Verdict(7.0)]]
    assert len(stage.server.log.questions) == 3
    assert ranker.facts()["judge"]["replies"] == 2 and ranker.facts()["judge"]["prompt_tokens"] == 200


@pytest.mark.parametrize(
    "usage",
    [
        None,
        "free",
        {},
        {"prompt_tokens": "many", "completion_tokens": [1]},
        {"prompt_tokens": 10**25},
        {"prompt_tokens": 2**63},
        {"prompt_tokens": -5},
    ],
)
def test_a_verdict_counts_where_its_account_cannot_be_read(stage: Stage, usage: object) -> None:
    stage.first = body(usage=usage)
    ranker = stage.judge()
    assert ranker.judge(SETS) == [[Verdict(7.0), Verdict(7.0)]]
    assert len(stage.server.log.questions) == 2
    assert ranker.facts()["judge"]["prompt_tokens"] == 100


def test_a_judge_that_uses_up_its_tokens_in_silence_is_paid_and_not_asked_again(stage: Stage) -> None:
    stage.always = body(choices=[{"message": {"content": None}, "finish_reason": "length"}])
    for asked in (2, 0):
        ranker = stage.judge()
        assert ranker.judge(SETS) == [[Verdict(0.0, failed=True)] * 2]
        facts = ranker.facts()["judge"]
        assert (facts["asked"], facts["completion_tokens"], facts["unreadable"]) == (asked, 20, 2)
    assert len(stage.server.log.questions) == 2


def test_retries_keep_to_the_rate_as_well(stage: Stage) -> None:
    sets = [CandidateSet(user(f"q{number}"), ["a"]) for number in range(4)]
    busy = status(429, Retry_After="0.001")
    stage.server.close()
    stage.server = MisbehavingServer(lambda question: "[[7]]", lambda question, attempt: busy if attempt < 3 else None)
    stage.judge(requests_per_minute=1200, max_retries=5).judge(sets)  # One each 50 ms.
    times = stage.server.log.times
    assert len(times) == 16
    assert times[-1] - times[0] > 0.05 * 15 * 0.9


def test_equal_texts_are_a_tie_and_nobody_is_asked(stage: Stage) -> None:
    stage.reply = "[[A]]"
    sets = [CandidateSet(user("q"), ["same", "same", "other"])]
    assert stage.judge("pairwise").judge(sets) == [
        [Verdict(0.5, disagreements=1), Verdict(0.5, disagreements=1), Verdict(0.5, disagreements=2)]
    ]
    assert len(stage.server.log.questions) == 2  # `same` beside `other`, in both orders, for both of them.


def test_a_password_in_the_address_is_in_no_error_and_no_file(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", stage.server.url.replace("//", "//me:hunter%32pass@"))
    assert stage.judge(base_url=None).judge(SETS) == [[Verdict(7.0), Verdict(7.0)]]
    stage.always = status(401)
    with pytest.raises(UserError) as caught:
        stage.judge(base_url=None).judge([CandidateSet(user("another"), ["aa"])])
    sent = b64encode(b"me:hunter2pass").decode()
    assert stage.server.log.keys == {f"Basic {sent}"} and "key Basic ***" in str(caught.value)
    written = b"".join(path.read_bytes() for path in stage.folder.iterdir()).decode("latin-1")
    for secret in (sent, "hunter2pass", "hunter%32pass"):
        assert secret not in str(caught.value) and secret not in written


@pytest.mark.parametrize(
    "address", ["http://127.0.0.1:abc/v1", "http://me:pw-0@/v1", "localhost:8000/v1", "http://[::1/v1", "ftp://h/v1"]
)
def test_an_address_that_is_none_is_one_line(stage: Stage, monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", address)
    with pytest.raises(UserError, match=r"no http\(s\) URL.*correct rank.judge.base_url, or OPENAI_BASE_URL") as caught:
        stage.judge(base_url=None).judge(SETS)
    assert "pw-0" not in str(caught.value)


def test_a_key_that_cannot_be_sent_is_one_line_and_blanks_around_it_are_none_of_it(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    for odd in (f"{KEY}\u00e9", f"{KEY}\n{KEY}"):
        monkeypatch.setenv("OPENAI_API_KEY", odd)
        with pytest.raises(UserError, match="OPENAI_API_KEY holds characters that no key has") as caught:
            stage.judge().judge(SETS)
        assert KEY not in str(caught.value)
    monkeypatch.setenv("OPENAI_API_KEY", f" {KEY}\n")
    assert stage.judge().judge(SETS) == [[Verdict(7.0), Verdict(7.0)]]
    assert stage.server.log.keys == {f"Bearer {KEY}"}


def test_another_file_in_the_place_of_the_replies_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "verdicts.sqlite"
    path.write_bytes(b"no database at all, " * 300)
    with pytest.raises(UserError, match=r"cannot be opened as a judge's replies .*move it away"):
        VerdictCache(path)


@pytest.mark.parametrize(
    ("text", "rating"),
    [
        ("They claim [[10]]; I say [[8/10]].", None), ("They claim [[10]]; I say [[-3]].", None),
        ("They claim [[10]]; [[N/A]]", None), ("They claim [[10]]; I say [[7,5]]", None),
        ("They claim [[10]], and I say [[7", None), ("[[10]] [[1e1]]", None),
        ("[[" + "1" * 5000 + "]]", None), ("[[٣]]", None), ("[[10]] [[٣]]", None),
        ("[[10]] is wrong: [[2]].", 2.0), ("[[[8]]]", 8.0),
    ],
)  # fmt: skip
def test_a_verdict_out_of_the_answer_is_not_the_judges_rating(text: str, rating: float | None) -> None:
    assert parse_rating(text) == rating


@pytest.mark.parametrize("text", ["[[A]], they say; [[b]]", "[[A]], they say; [[Tie]]", "[[A]] or [[A or B]]", "[[A]], and [["])
def test_a_verdict_out_of_an_answer_is_not_the_judges_winner(text: str) -> None:
    assert parse_winner(text) is None


def test_replies_that_are_damaged_behind_their_first_page_are_one_line(tmp_path: Path) -> None:
    path = tmp_path / "verdicts.sqlite"
    cache = VerdictCache(path, "rank")
    for number in range(200):
        cache.put(f"{number}", Reply("a" * 100, 1, 1))
    cache.close()
    content = path.read_bytes()
    path.write_bytes(content[:8192] + b"\xff" * (len(content) - 8192))
    damaged = VerdictCache(path, "rank")
    with pytest.raises(UserError, match=r"verdicts.sqlite: cannot be opened as a judge's replies .*move it away"):
        for number in range(200):
            damaged.get(f"{number}")
