"""Single rows of preference pairs and rated answers: what each becomes, and what a faulty one is told; single checks."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest

from handbook_ext.core.errors import UserError
from handbook_ext.core.records import Messages, OfflinePair, assistant, content_id, user
from handbook_ext.data.row_checks import Rules, Unusable, messages, need, refuse_empty, refuse_tie, score
from handbook_ext.data.schemas import (
    form_of,
    plain_pair,
    rated_pair,
)
from tests.dataset_rows import FOUR, hh, pair, tldr, uf

RULES = Rules(seed=1)
DROPPING = Rules(seed=1, drop_empty=True)
TURNS: Messages = [*user("a"), *assistant("b"), *user("c")]


def refused(words: str) -> Any:
    """A UserError that begins with these words."""
    return pytest.raises(UserError, match="^" + re.escape(words))


@pytest.mark.parametrize(
    ("row", "form"),
    [
        (tldr("p", "a", "b"), "tldr"),
        ({"info": 1, "summaries": 2, "choice": 0}, "tldr"),
        ({"info": 1, "summaries": 2, "chosen": "a"}, "pairs"),
        (uf("a", *FOUR), "ultrafeedback"),
        ({"instruction": 1, "completions": 2}, "ultrafeedback"),
        ({"instruction": 1, "chosen": "a"}, "pairs"),
        (hh("H: a A: b", "H: a A: c"), "hh_rlhf"),
        ({"chosen": "Human: a", "rejected": "b"}, "hh_rlhf"),
        ({"chosen": "Assistant:"}, "hh_rlhf"),
        ({"chosen": "Human:a"}, "pairs"),
        ({"chosen": "so Human: a"}, "pairs"),
        (hh("H: a", "H: b") | {"prompt": "a"}, "pairs"),
        (pair(), "pairs"),
        ({}, "pairs"),
    ],
)
def test_the_form_of_a_row_is_told_by_its_columns(row: dict[str, Any], form: str) -> None:
    assert form_of(row) == form


def test_a_pair_of_messages_shares_all_but_the_last() -> None:
    row = {"chosen": [*TURNS, *assistant("x")], "rejected": [*TURNS, *assistant("y")], "score_chosen": 2, "score_rejected": 0.5}
    found = plain_pair("f:1", row, RULES)
    assert found == OfflinePair.of(
        content_id(TURNS), TURNS, assistant("x"), assistant("y"), score_chosen=2.0, score_rejected=0.5, source="f:1"
    )
    assert plain_pair("f:1", row | {"prompt_id": "mine"}, RULES).prompt_id == "mine"
    assert plain_pair("f:1", row | {"prompt_id": 7}, RULES).prompt_id == "7"
    with refused("f:1: chosen and rejected answer different prompts; they must share all but the last message"):
        plain_pair("f:1", row | {"rejected": [*user("a"), *assistant("y")]}, RULES)


@pytest.mark.parametrize("prompt", ["ask", user("ask"), TURNS])
@pytest.mark.parametrize("answers", [("x", "y"), (assistant("x"), assistant("y"))])
def test_answers_alone_need_a_prompt_as_text_or_messages(prompt: Any, answers: tuple[Any, Any]) -> None:
    row = {"prompt": prompt, "chosen": answers[0], "rejected": answers[1]}
    found = plain_pair("f:1", row, RULES)
    turns = user(prompt) if isinstance(prompt, str) else prompt
    assert (found.prompt, found.chosen, found.rejected) == (turns, assistant("x"), assistant("y"))
    assert (found.score_chosen, found.score_rejected, found.answers) == (None, None, [])
    kind = "is a plain string" if isinstance(answers[0], str) else "holds the answer alone"
    with refused(f"f:1: 'chosen' {kind}, so the row needs a 'prompt'"):
        plain_pair("f:1", row | {"prompt": None}, RULES)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"rejected": None}, "f:1: the row has no 'rejected' (it has: chosen, prompt, rejected); every row needs prompt, chosen"),
        ({"prompt": 3}, "f:1: 'prompt' must be a string or a list of messages with 'role' and 'content'"),
        ({"chosen": 3}, "f:1: 'chosen' must be a string or a list of messages"),
        ({"chosen": assistant("x"), "prompt": [3]}, "f:1: 'prompt' must be a string or a list of messages"),
        ({"rejected": []}, "f:1: 'rejected' must end with a message of role 'assistant'"),
        ({"rejected": user("y")}, "f:1: 'rejected' must end with a message of role 'assistant'"),
        ({"rejected": [{"role": "assistant"}]}, "f:1: 'rejected' must be a string or a list of messages"),
        ({"chosen": " "}, "f:1: the chosen completion is empty; repair the row, or set data.empty_completions: drop"),
        ({"rejected": ""}, "f:1: the rejected completion is empty"),
        ({"score_chosen": "high"}, "f:1: 'score_chosen' is 'high', but a score is a number or null; repair the row"),
        ({"score_rejected": True}, "f:1: 'score_rejected' is 'True'"),
    ],
)
def test_a_faulty_pair_is_told_where_and_what(changes: dict[str, Any], words: str) -> None:
    with refused(words):
        plain_pair("f:1", {"prompt": "ask", "chosen": "x", "rejected": "y"} | changes, RULES)


def test_ties_of_a_pair_follow_the_rules() -> None:
    row = pair(1, score_chosen=4.0, score_rejected=4)
    with pytest.raises(Unusable, match=r"^equal scores$"):
        plain_pair("f:1", row, RULES)
    assert plain_pair("f:1", row, Rules(seed=1, ties="keep")).score_chosen == 4.0
    with refused("f:1: chosen and rejected have the same score 4.0; repair the row, or set data.ties to drop or keep"):
        plain_pair("f:1", row, Rules(seed=1, ties="error"))
    # Two missing scores are no tie, and one is none either.
    assert plain_pair("f:1", row | {"score_chosen": None, "score_rejected": math.nan}, RULES).score_rejected is None
    assert plain_pair("f:1", row | {"score_chosen": None}, RULES).score_rejected == 4.0


def test_a_rated_row_holds_all_answers_best_first_and_its_draw_is_fixed() -> None:
    """The draw belongs to the results: another one would make other pairs of the same data and seed."""
    found = rated_pair("f:1", uf("ask", *FOUR), RULES)
    assert (found.prompt, found.prompt_id, found.source) == (user("ask"), content_id(user("ask")), "f:1")
    assert (found.chosen, found.score_chosen) == (assistant("best"), 9.0)
    assert [(each.text, each.score) for each in found.answers] == [("best", 9), ("fine", 7), ("also fine", 7), ("poor", 2)]
    drawn = [rated_pair("f", uf(f"ask {number}", *FOUR), Rules(seed=7)).rejected[0]["content"] for number in range(12)]
    assert drawn == [
        "also fine", "poor", "also fine", "also fine", "also fine", "poor", "fine", "fine", "poor", "also fine", "fine", "fine"
    ]  # fmt: skip


def test_a_tie_of_all_rated_answers_is_kept_only_where_the_rules_keep_it() -> None:
    row = uf("ask", ("a", 4.0), ("a", 4.0), ("b", 4.0))
    kept = rated_pair("f:1", row, Rules(seed=1, ties="keep"))
    assert (kept.chosen, kept.rejected, kept.score_rejected) == (assistant("a"), assistant("b"), 4.0)
    with refused("f:1: all 3 rated answers have the same score 4.0; repair the row"):
        rated_pair("f:1", row, Rules(seed=1, ties="error"))
    with pytest.raises(Unusable, match="equal scores"):
        rated_pair("f:1", row, RULES)


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (uf(" ", *FOUR), "empty prompt"),
        (uf("a", ("b", 1.0), ("c", None)), "fewer than two rated answers"),
        (uf("a", ("b", 1.0), (None, 2.0), ("c", None)), "empty answers leave fewer than two"),
        (uf("a", ("b", 1.0), ("b", 2.0)), "chosen equals rejected"),
    ],
)
def test_rated_rows_that_make_no_pair_say_why(row: dict[str, Any], reason: str) -> None:
    with pytest.raises(Unusable, match=f"^{reason}$"):
        rated_pair("f:1", row, DROPPING)


@pytest.mark.parametrize(
    "changes", [{"instruction": 3}, {"completions": "b"}, {"completions": [{"response": 3}]}, {"completions": [3]}]
)
def test_rated_rows_of_another_shape_are_refused(changes: dict[str, Any]) -> None:
    with refused("f:1: 'instruction' must be text and 'completions' a list of rows with 'response'; see data.form"):
        rated_pair("f:1", uf("a", *FOUR) | changes, RULES)
    with refused("f:1: the row has no 'completions' (it has: instruction); the form ultrafeedback needs instruction"):
        rated_pair("f:1", {"instruction": "a"}, RULES)
    with refused("f:1: the rated completion is empty"):
        rated_pair("f:1", uf("a", ("b", 1.0), ("", 2.0), ("c", 3.0)), RULES)


def test_single_checks() -> None:
    assert [score("f", "s", value) for value in (None, math.nan, 3, 2.5)] == [None, None, 3.0, 2.5]
    for value in (math.inf, -math.inf, False, "3", [1]):
        with refused(f"f: 's' is {str(value)!r}, but a score is a number or null"):
            score("f", "s", value)
    with refused(f"f: 's' is {'x' * 40!r}, but"):
        score("f", "s", "x" * 41)
    assert messages("f", "m", [{"role": "user", "content": "a", "name": "n"}]) == user("a")
    for wrong in (
        None,
        {},
        ["a"],
        [{"role": "user"}],
        [{"role": 1, "content": "a"}],
        [*user("a"), {"role": "user", "content": 1}],
    ):
        with refused("f: 'm' must be a string or a list of messages"):
            messages("f", "m", wrong)
    need("f", {"a": 0, "b": ""}, ("a", "b"), "r")
    with refused("f: the row has no 'c' (it has: a, b); r"):
        need("f", {"b": 1, "a": 0}, ("a", "c"), "r")
    refuse_tie("f", "t", Rules(seed=1, ties="keep"))
    refuse_empty("f", {"chosen": "a", "turn": "b"}, RULES)
    for name, told in (("turn", "turn"), ("completion", "completion"), ("chosen", "chosen completion")):
        with refused(f"f: the {told} is empty"):
            refuse_empty("f", {"first": "a", name: "\n"}, RULES)
        with pytest.raises(Unusable, match=f"^empty {name}$"):
            refuse_empty("f", {"first": "a", name: ""}, DROPPING)
