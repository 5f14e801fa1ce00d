"""The policy as its own judge: what it is asked, how points are read, what becomes of a judgement without any."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

import handbook_ext.judging.self_judge as judging
from handbook_ext.core.errors import UserError
from handbook_ext.core.records import OfflinePair, assistant, user
from handbook_ext.judging.ranker import Unjudged, Verdict, ranking
from handbook_ext.policies.chat import ChatEncoder
from handbook_ext.recipes.settings import SelectSettings
from handbook_ext.sampling.generation import Request, Sample
from handbook_ext.selection.rules import Material, select_pairs
from tests.conftest import BuildPolicy


@pytest.fixture
def asked(tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The questions that reached the policy; it answers "Score: <words of the response>", or nothing for "mute"."""
    questions: list[str] = []

    def answer(policy: Any, tokens: Any, requests: list[Request], *, temperature: float, **_: Any) -> list[Sample]:
        assert temperature == 0.0
        texts = [tokenizer.decode(request.prompt_ids) for request in requests]
        questions.extend(texts)
        replies = [text.split("answer ")[1].split("</s>")[0] for text in texts]
        return [Sample("no idea" if reply == "mute" else f"Score: {len(reply.split())}", 3, "stop") for reply in replies]

    monkeypatch.setattr(judging, "sample_batch", answer)
    return questions


def judge_of(tokenizer: PreTrainedTokenizerFast, build: BuildPolicy) -> judging.SelfJudge:
    rubric = judging.rubric_text("tiny")
    return judging.SelfJudge(build(), tokenizer, ChatEncoder(tokenizer, 200, long_prompts="drop"), rubric, 8, 2)


def test_points_are_read_and_failures_told(tokenizer: PreTrainedTokenizerFast, build: BuildPolicy, asked: list[str]) -> None:
    items = [(user("which?"), text) for text in ("one two three", "mute", "one")]
    verdicts = judge_of(tokenizer, build).score(items)
    assert verdicts == [Verdict(3.0), Verdict(0.0, failed=True), Verdict(1.0)]
    assert len(asked) == 3
    assert any("judge which? answer one two three" in question for question in asked)
    candidates = [Unjudged("on_policy", index, text, f"id {index}") for index, (_, text) in enumerate(items)]
    ranked = ranking("p", user("which?"), list(zip(candidates, verdicts, strict=True)))
    assert [(each.rank, each.failed) for each in ranked.candidates] == [(1, False), (3, True), (2, False)]
    offline = OfflinePair.of("p", user("which?"), assistant("x"), assistant("y"))
    [pair] = select_pairs(Material([offline], rankings=[ranked]), SelectSettings(rule="best_and_worst")).pairs
    assert (pair.chosen, pair.rejected) == (assistant("one two three"), assistant("one"))


def test_a_question_that_is_too_long_is_a_failed_judgement(
    tokenizer: PreTrainedTokenizerFast, build: BuildPolicy, asked: list[str]
) -> None:
    verdicts = judge_of(tokenizer, build).score([(user("which? " * 200), "one"), (user("which?"), "one two")])
    assert verdicts == [Verdict(0.0, failed=True), Verdict(2.0)]


def test_a_rubric_is_ours_the_tiny_one_or_a_file(tmp_path: Path) -> None:
    assert judging.rubric_text(None) is None
    (tmp_path / "own.jinja").write_text("{{ prompt }} {{ response }}")
    assert judging.rubric_text(str(tmp_path / "own.jinja")) == "{{ prompt }} {{ response }}"
    with pytest.raises(UserError, match=r"rank.rubric: 'nowhere' is neither `tiny` nor a file"):
        judging.rubric_text("nowhere")


def test_several_turns_are_shown_with_their_roles() -> None:
    turns = [*user("Hi."), *assistant("Yes?"), *user("Well.")]
    assert judging.conversation(turns) == "user: Hi.\nassistant: Yes?\nuser: Well."
