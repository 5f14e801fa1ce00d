"""Rows that a file may hold and no loop can use: refused with their place, or dropped and counted where the recipe says so."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from handbook_ext.core.errors import UserError
from handbook_ext.core.records import Messages, OfflinePair, assistant, completion_id, user
from handbook_ext.data.prompt_sets import read_prompt_set
from handbook_ext.data.raw_places import distinct_ids
from handbook_ext.data.row_checks import Rules, Unusable, score
from handbook_ext.data.schemas import demonstration, plain_pair, summary_pair
from tests.dataset_rows import load, tldr, write

RULES, DROPPING = Rules(seed=1), Rules(seed=1, drop_empty=True)


def system(text: str) -> Messages:
    return [{"role": "system", "content": text}]


def row(prompt: Any, *before: Messages) -> dict[str, Any]:
    """A pair whose answers follow the messages `before`, or stand alone."""
    turns = [message for messages in before for message in messages]
    sides = {"chosen": [*turns, *assistant("good")], "rejected": [*turns, *assistant("bad")]}
    return sides if prompt is None else {"prompt": prompt, **sides}


NO_TEXT = "'prompt' must be a string or a list of messages with 'role' and 'content', both text"
ODD = [{"role": "usr", "content": "x"}]
REFUSED: dict[str, tuple[Any, str]] = {
    "unknown role": (ODD, "'prompt' has the role 'usr'; roles are system, user, assistant"),
    "tool's turn": ([*user("x"), {"role": "tool", "content": "y"}], "'prompt' has the role 'tool'"),
    "assistant last": ([*user("x"), *assistant("y")], "the prompt ends with a message of role 'assistant', not 'user'"),
    "system alone": (system("x"), "the prompt ends with a message of role 'system', not 'user'"),
    "system later": ([*user("x"), *system("y"), *user("z")], "a system message stands behind another message"),
    "two systems": ([*system("x"), *system("y"), *user("z")], "a system message stands behind another message"),
    "no content": ([{"role": "user", "content": None}], NO_TEXT),
    "parts": ([{"role": "user", "content": [{"type": "text", "text": "x"}]}], NO_TEXT),
}
EMPTY: dict[str, tuple[Any, str]] = {
    "empty text": ("", "prompt"), "blank text": (" \n", "prompt"), "no message": ([], "prompt"),
    "blank message": (user(" "), "prompt"),
    "blank behind a system message": ([*system("x"), *user("")], "prompt"),
    "blank turn": ([*user(" "), *assistant("x"), *user("y")], "turn"),
    "blank answer within": ([*user("x"), *assistant(""), *user("y")], "turn"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_a_prompt_that_cannot_be_asked_is_refused_with_its_row(name: str, tmp_path: Path) -> None:
    prompt, words = REFUSED[name]
    with pytest.raises(UserError) as error:
        load(tmp_path, [row("sound"), row(prompt)], empty_completions="drop")
    assert f"train.jsonl:2: {words}" in str(error.value) or f"train.jsonl:2: 'prompt' must be {words}" in str(
        error.value
    ).replace("a string or ", "")
    source = write(tmp_path / "set.jsonl", [{"prompt": "sound"}, {"prompt": prompt}])
    with pytest.raises(UserError, match=r"set\.jsonl:2: "):
        read_prompt_set(source)


@pytest.mark.parametrize("name", EMPTY)
def test_an_empty_prompt_or_turn_is_refused_or_dropped_as_the_recipe_says(name: str, tmp_path: Path) -> None:
    prompt, what = EMPTY[name]
    with pytest.raises(
        UserError, match=rf"train.jsonl:2: the {what} is empty; repair the row, or set data.empty_completions: drop"
    ):
        load(tmp_path, [row("sound"), row(prompt)])
    loaded = load(tmp_path, [row("sound"), row(prompt)], empty_completions="drop")
    assert loaded.dropped == {f"empty {what}": 1} and len(loaded.train) == 1
    if isinstance(prompt, list) and prompt:
        with pytest.raises(UserError, match=rf"set\.jsonl:1: the {what} is empty; repair the row$"):
            read_prompt_set(write(tmp_path / "set.jsonl", [{"prompt": prompt}]))


SOUND: dict[str, tuple[Any, Messages]] = {
    "no column": (None, user("x")),
    "the question": ("x", user("x")),
    "other blanks": (" a\n b", user("a b ")),
    "the first of several turns": ("x", [*user("x"), *assistant("y"), *user("z")]),
    "the last of several turns": ("z", [*user("x"), *assistant("y"), *user("z")]),
    "the first turn as messages": (user("x"), [*user("x"), *assistant("y"), *user("z")]),
    "all of it as messages": ([*system("s"), *user("x")], [*system("s"), *user("x")]),
    "behind a system message": ("x", [*system("s"), *user("x")]),
    "a system message that says nothing": ("x", [*system(""), *user("x")]),
    "a rendered dialogue": ("Human: x Assistant:", user("x")),
    "a shortened question": ("what is", user("what is this?")),
    "an empty column": ("", user("x")),
    "two turns of a role": (None, [*user("x"), *user("y")]),
}


@pytest.mark.parametrize("name", SOUND)
def test_a_column_prompt_that_agrees_with_the_messages_is_no_fault(name: str) -> None:
    prompt, before = SOUND[name]
    assert plain_pair("f:1", row(prompt, before), RULES).prompt == before


@pytest.mark.parametrize(
    ("prompt", "before"),
    [
        ("x", user("y")), (user("x"), user("y")), ("x", [*system(""), *user("y")]),
        # The answers hold less of the dialogue than the column does, or several messages of the assistant.
        ([*user("x"), *assistant("y"), *user("z")], user("z")), (user("x"), assistant("a")),
    ],
)  # fmt: skip
def test_a_column_prompt_that_contradicts_the_messages_is_refused(prompt: Any, before: Messages) -> None:
    with pytest.raises(UserError, match=r"^f:1: the column 'prompt' is not among the messages before the answer"):
        plain_pair("f:1", row(prompt, before), RULES)


def test_a_demonstration_is_of_a_prompt_that_can_be_asked() -> None:
    turns = [*user("a"), *assistant("b"), *assistant("c")]
    with pytest.raises(UserError, match=r"^f:1: the prompt ends with a message of role 'assistant', not 'user'"):
        demonstration("f:1", {"messages": turns}, RULES)
    with pytest.raises(UserError, match=r"^f:1: 'messages' has the role 'human'"):
        demonstration("f:1", {"messages": [{"role": "human", "content": "a"}, *assistant("b")]}, RULES)
    with pytest.raises(Unusable, match=r"^empty prompt$"):
        demonstration("f:1", {"messages": [*user(""), *assistant("b")]}, DROPPING)


def test_a_number_too_large_for_a_float_is_no_score(tmp_path: Path) -> None:
    for number in (10**399, float("inf"), True):
        with pytest.raises(UserError, match=r"train\.jsonl:1: 'score_chosen' is '.{1,40}', but a score is a number or null"):
            load(tmp_path, [row("x") | {"score_chosen": number}])


def test_a_score_that_is_not_a_number_is_none() -> None:
    assert [score("f:1", "s", value) for value in (None, float("nan"), Decimal("NaN"), Decimal("1.5"))] == [None, None, None, 1.5]


def test_a_choice_or_a_post_of_another_type_is_refused() -> None:
    with pytest.raises(UserError, match=r"^f:1: 'choice' is 1.0, but must be 0 or 1"):
        summary_pair("f:1", tldr("p", "a", "b", choice=1.0), RULES)
    with pytest.raises(UserError, match=r"^f:1: 'info' must be a mapping"):
        summary_pair("f:1", tldr("p", "a", "b", title={"a": 1}), RULES)


def named(names: list[str]) -> list[OfflinePair]:
    """Pairs of these prompt ids, each with a prompt of its own."""
    return [OfflinePair.of(name, user(f"q{place}"), assistant("w"), assistant("l")) for place, name in enumerate(names)]


def test_a_repeated_id_takes_no_name_that_another_row_brings() -> None:
    found = distinct_ids(named(["a", "a", "a#2", "a"]))
    assert [each.prompt_id for each in found] == ["a", "a#3", "a#2", "a#4"]
    assert [each.prompt[0]["content"] for each in found] == ["q0", "q1", "q2", "q3"]


@given(st.lists(st.sampled_from(["a", "b", "a#2", "a#2#2", "a#3", "b#2", "#2", ""]), max_size=12))
def test_prompt_ids_are_distinct_stable_and_kept_where_they_can_be(names: list[str]) -> None:
    pairs = named(names)
    found = distinct_ids(pairs)
    ids = [each.prompt_id for each in found]
    assert len(set(ids)) == len(ids)
    assert found == distinct_ids(pairs) == distinct_ids(found)
    for place, (name, each) in enumerate(zip(names, found, strict=True)):
        assert each.prompt_id == name if name not in names[:place] else each.prompt_id.startswith(f"{name}#")
        assert each.chosen_id == completion_id(each.prompt_id, each.prompt, each.chosen)
    # Rows that follow change no name, unless they bring one that was given to another.
    assert [each.prompt_id for each in distinct_ids(named([*names, "c"]))][:-1] == ids


def test_a_name_is_a_text_or_a_number(tmp_path: Path) -> None:
    pairs = load(tmp_path, [row("x") | {"prompt_id": 0}, row("y") | {"prompt_id": "n"}]).train
    assert [each.prompt_id for each in pairs] == ["0", "n"]
    for name in ([1], {"a": 1}):
        with pytest.raises(UserError, match=r"jsonl:1: the row's name is .*, but must be a text or a number"):
            load(tmp_path, [row("x") | {"prompt_id": name}])
        with pytest.raises(UserError, match=r"jsonl:1: the row's name is .*, but must be a text or a number"):
            read_prompt_set(write(tmp_path / "set.jsonl", [{"prompt": "x", "id": name}]))


def test_the_columns_id_and_prompt_idx_name_the_rows_of_a_set(tmp_path: Path) -> None:
    rows = [{"prompt": "x", "id": "first"}, {"prompt": "y", "prompt_idx": 7}, {"prompt": "z", "id": 1, "question_id": 2}]
    outputs = [{"id": "first", "output": "1"}, {"prompt_idx": 7, "output": "2"}, {"question_id": 2, "output": "3"}]
    source, place = write(tmp_path / "set.jsonl", rows), write(tmp_path / "out.jsonl", outputs)
    found, _ = read_prompt_set(source, outputs={"gpt": place})
    assert [(each.prompt_id, each.outputs["gpt"]) for each in found] == [("first", "1"), ("7", "2"), ("2", "3")]


def test_an_answer_of_a_set_that_is_no_text_is_refused(tmp_path: Path) -> None:
    for reference in ({"a": 1}, [1], 3):
        with pytest.raises(UserError, match=r"set\.jsonl:1: an answer is .*, but must be a text"):
            read_prompt_set(write(tmp_path / "set.jsonl", [{"prompt": "x", "reference": reference}]))
    source = write(tmp_path / "set.jsonl", [{"prompt": "x", "idx": 1}])
    references = write(tmp_path / "answers.jsonl", [{"idx": 1, "choices": [{"turns": [None]}]}])
    with pytest.raises(UserError, match=r"answers\.jsonl:1: an answer is '\[None\]', but must be a text"):
        read_prompt_set(source, references=references)
