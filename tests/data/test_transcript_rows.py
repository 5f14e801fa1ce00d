"""Single rows of transcripts, comparisons of summaries and conversations: what each becomes, and how rows are counted."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

import pytest

from handbook_ext.core.errors import UserError
from handbook_ext.core.records import Messages, OfflinePair, assistant, content_id, user
from handbook_ext.data.row_checks import Rules, Unusable
from handbook_ext.data.schemas import (
    demonstration,
    read_demonstrations,
    read_pairs,
    summary_pair,
    transcript_pair,
)
from tests.dataset_rows import FOUR, chat, hh, pair, tldr, uf

RULES = Rules(seed=1)
DROPPING = Rules(seed=1, drop_empty=True)
TURNS: Messages = [*user("a"), *assistant("b"), *user("c")]


def refused(words: str) -> Any:
    """A UserError that begins with these words."""
    return pytest.raises(UserError, match="^" + re.escape(words))


def test_a_transcript_becomes_the_turns_before_and_the_last_answers() -> None:
    found = transcript_pair("f:1", hh("H: a A: b H: c A: x", "H: a A: b H: c A: y"), RULES)
    assert found == OfflinePair.of(content_id(TURNS), TURNS, assistant("x"), assistant("y"), source="f:1")
    starts_at_once = {"chosen": "Human: a\n\nAssistant: x", "rejected": "Human: a\n\nAssistant: y"}
    assert transcript_pair("f:1", starts_at_once, RULES).prompt == user("a")
    joined = transcript_pair("f:1", hh("H: H: a A: x A: A: z", "H: H: a A: y"), RULES)
    assert (joined.prompt, joined.chosen) == (user("a"), assistant("x\n\nz"))


@pytest.mark.parametrize(
    ("row", "words"),
    [
        (hh("H: a A:", "H: a A: y"), "f:1: the chosen completion is empty"),
        (hh("H: a A: x", "H: a A: "), "f:1: the rejected completion is empty"),
        (hh("H: a A: H: b A: x", "H: a A: H: b A: y"), "f:1: the turn is empty; repair the row"),
        ({"chosen": "a", "rejected": "Human: b"}, "f:1: 'chosen' does not begin with a turn, 'Human:' or 'Assistant:'; is"),
        ({"chosen": "Human: a", "rejected": "so\n\nHuman: b"}, "f:1: 'rejected' does not begin with a turn"),
        ({"chosen": ["a"], "rejected": "Human: b"}, "f:1: 'chosen' does not begin with a turn"),
        ({"chosen": "Human: b"}, "f:1: the row has no 'rejected' (it has: chosen); the form hh_rlhf needs two transcripts"),
    ],
)
def test_faulty_transcripts_are_told_where_and_what(row: dict[str, Any], words: str) -> None:
    with refused(words):
        transcript_pair("f:1", row, RULES)


@pytest.mark.parametrize(
    ("sides", "reason"),
    [
        (("H: a A: x", "H: a A: x"), "chosen equals rejected"),
        (("H: a A: x H: b", "H: a A: y"), "a transcript ends with a Human turn"),
        (("H: a A: x", "H: a A: x H: b"), "a transcript ends with a Human turn"),
        (("H: a A: x", "H: b A: x"), "transcripts differ before the last answer"),
        (("A: x", "A: y"), "empty prompt"),
    ],
)
def test_transcripts_that_make_no_pair_say_why(sides: tuple[str, str], reason: str) -> None:
    with pytest.raises(Unusable, match=f"^{reason}$"):
        transcript_pair("f:1", hh(*sides), RULES)


def test_a_summary_is_asked_for_with_what_there_is_of_its_post() -> None:
    found = summary_pair("f:1", tldr("I lost it.", " x ", "y\n", choice=1), RULES)
    prompt = user("SUBREDDIT: r/tifu\n\nTITLE: Lost keys\n\nPOST: I lost it.\n\nTL;DR:")
    assert found == OfflinePair.of(content_id(prompt), prompt, assistant("y"), assistant("x"), source="f:1")
    bare = summary_pair("f:1", tldr(None, "x", "y", title=None, subreddit="", article="News."), RULES)
    assert bare.prompt == user("ARTICLE: News.\n\nTL;DR:")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"info": "post"}, "f:1: 'info' must be a mapping and 'summaries' two rows with 'text'; see data.form"),
        ({"summaries": "ab"}, "f:1: 'info' must be a mapping and 'summaries' two rows"),
        ({"summaries": [{"text": "a"}] * 3}, "f:1: 'info' must be a mapping and 'summaries' two rows"),
        ({"summaries": [{"text": "a"}, {"text": 3}]}, "f:1: 'info' must be a mapping and 'summaries' two rows"),
        ({"choice": True}, "f:1: 'choice' is True, but must be 0 or 1, the preferred summary; repair or delete the row"),
        ({"choice": -1}, "f:1: 'choice' is -1, but must be 0 or 1"),
        ({"choice": None}, "f:1: the row has no 'choice' (it has: batch, choice, extra, info, split, summaries, worker); the"),
        ({"summaries": [{"text": " "}, {"text": "b"}]}, "f:1: the chosen completion is empty"),
        ({"summaries": [{"text": "a"}, {"text": ""}]}, "f:1: the rejected completion is empty"),
    ],
)
def test_faulty_comparisons_are_told_where_and_what(changes: dict[str, Any], words: str) -> None:
    with refused(words):
        summary_pair("f:1", tldr("p", "a", "b") | changes, RULES)


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (tldr(None, "a", "b"), "neither post nor article"),
        (tldr(" ", "a", "b"), "neither post nor article"),
        (tldr("p", "a", " a"), "chosen equals rejected"),
    ],
)
def test_comparisons_that_make_no_pair_say_why(row: dict[str, Any], reason: str) -> None:
    with pytest.raises(Unusable, match=f"^{reason}$"):
        summary_pair("f:1", row, RULES)


def test_a_demonstration_is_the_last_answer_behind_all_before_it() -> None:
    found = demonstration("f:1", chat("a", "b", "c", "d", "e", prompt_id=""), RULES)
    assert (found.prompt, found.completion, found.source) == (TURNS, assistant("d"), "f:1")
    assert found.prompt_id == content_id(TURNS)
    assert demonstration("f:1", chat("a", "b", prompt_id="mine"), RULES).prompt_id == "mine"
    with refused("f:1: 'messages' must be a string or a list of messages"):
        demonstration("f:1", {"messages": "a"}, RULES)
    with refused("f:1: the row has no 'messages' (it has: text); demonstrations need `messages`, a list of turns"):
        demonstration("f:1", {"text": "a"}, RULES)
    for turns, words in ((("a", " "), "the completion is empty"), (("", "b"), "the prompt is empty")):
        with refused(f"f:1: {words}; repair the row, or set data.empty_completions: drop"):
            demonstration("f:1", chat(*turns), RULES)
    for row, reason in (({"messages": user("a")}, "no answer"), ({"messages": assistant("b")}, "empty prompt")):
        with pytest.raises(Unusable, match=f"^{reason}$"):
            demonstration("f:1", row, RULES)


def test_rows_are_read_in_the_form_of_the_first_and_counted() -> None:
    rows = [("f:1", uf("a", *FOUR, ("bad", None))), ("f:2", uf("b", ("x", 1.0))), ("f:3", uf("c", *FOUR))]
    dropped, left_out = Counter[str](), Counter[str]()
    pairs = list(read_pairs(rows, "auto", RULES, dropped, left_out))
    assert [each.source for each in pairs] == ["f:1", "f:3"]
    assert (dropped, left_out) == ({"fewer than two rated answers": 1}, {"answers unrated or empty": 1})
    with refused("f:2: the row has no 'instruction'"):
        list(read_pairs([rows[0], ("f:2", pair())], "auto", RULES, dropped, left_out))
    with refused("f:1: the row has no 'chosen'"):
        list(read_pairs(rows, "pairs", RULES, dropped, left_out))
    # The transcripts and comparisons of other forms leave no answers out.
    left_out.clear()
    assert len(list(read_pairs([("f:1", pair())] * 2, "auto", RULES, dropped, left_out))) == 2
    assert left_out.total() == 0


def test_demonstrations_are_counted_with_the_turns_cut_behind_them() -> None:
    dropped, left_out = Counter[str](), Counter[str]()
    rows = [("f:1", chat("a", "b", "c")), ("f:2", chat("a")), ("f:3", chat("a")), ("f:4", chat("a", "b", "c", "d", "e"))]
    made = list(read_demonstrations(rows, RULES, dropped, left_out))
    assert [each.source for each in made] == ["f:1", "f:4"]
    assert dropped == {"demonstration: no answer": 2}
    assert list(left_out.values()) == [2]
