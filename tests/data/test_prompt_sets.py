"""Prompt sets in the forms in which they are published."""

import json
from pathlib import Path
from typing import Any

import pytest

from handbook_ext.core.errors import UserError
from handbook_ext.core.records import OfflinePair, assistant, user
from handbook_ext.data.prompt_sets import held_out_prompts, marked, read_prompt_set


def written(folder: Path, name: str, rows: list[Any]) -> str:
    path = folder / name
    text = json.dumps(rows) if name.endswith(".json") else "".join(json.dumps(row) + "\n" for row in rows)
    path.write_text(text)
    return str(path)


@pytest.mark.parametrize(
    ("row", "prompt", "follow_ups", "category", "name"),
    [
        ({"question_id": 81, "category": "writing", "turns": ["one", "two"]}, user("one"), ["two"], "writing", "81"),
        ({"instruction": "one", "output": "x", "dataset": "koala"}, user("one"), [], "koala", None),
        ({"idx": 3, "Skill": "Math", "Difficulty": 1, "Instruction": "one"}, user("one"), [], "Math", "3"),
        ({"prompt_id": "a", "prompt": ["one", "two"], "reference": ["r"]}, user("one"), ["two"], "", "a"),
        ({"prompt": "one"}, user("one"), [], "", None),
        ({"question_id": 1, "text": "one", "category": "generic"}, user("one"), [], "generic", "1"),
        (
            {"prompt": [{"role": "system", "content": "s"}, {"role": "user", "content": "one"}]},
            [{"role": "system", "content": "s"}, *user("one")], [], "", None,
        ),
    ],
)  # fmt: skip
@pytest.mark.parametrize("file", ["set.json", "set.jsonl"])
def test_each_published_form_is_read(
    tmp_path: Path, file: str, row: dict[str, Any], prompt: Any, follow_ups: Any, category: str, name: str | None
) -> None:
    [found], known = read_prompt_set(written(tmp_path, file, [row]))
    assert (found.prompt, found.follow_ups, found.category, known) == (prompt, follow_ups, category, 1)
    assert found.prompt_id == name if name is not None else len(found.prompt_id) == 16
    assert found.references == row.get("reference", [])


def test_only_the_first_rows_are_used_and_all_are_counted(tmp_path: Path) -> None:
    found, known = read_prompt_set(written(tmp_path, "set.jsonl", [{"prompt": f"p{i}"} for i in range(5)]), rows=2)
    assert [each.prompt[0]["content"] for each in found] == ["p0", "p1"] and known == 5


def test_reference_answers_of_a_file_take_the_place_of_the_questions_own(tmp_path: Path) -> None:
    rows = [
        {"question_id": 1, "turns": ["a", "b"], "reference": ["own"]},
        {"question_id": 2, "turns": ["c"], "reference": ["own"]},
    ]
    answers = [{"question_id": 1, "choices": [{"index": 0, "turns": ["right a", "right b"]}]}]
    source, references = written(tmp_path, "set.jsonl", rows), written(tmp_path, "answers.jsonl", answers)
    first, second = read_prompt_set(source, references=references)[0]
    assert first.references == ["right a", "right b"] and second.references == []


def test_stored_outputs_belong_by_their_text(tmp_path: Path) -> None:
    source = written(tmp_path, "set.json", [{"instruction": "one"}, {"instruction": "two"}])
    outputs = written(tmp_path, "out.json", [{"instruction": "Two ", "output": "2"}, {"instruction": "one", "output": "1"}])
    found, _ = read_prompt_set(source, outputs={"gpt": outputs})
    assert [each.outputs for each in found] == [{"gpt": "1"}, {"gpt": "2"}]


@pytest.mark.parametrize(
    ("rows", "outputs", "message"),
    [
        ([], None, "has no row"),
        ([{"question": "one"}], None, "jsonl:1: has no prompt"),
        ([{"turns": []}], None, "jsonl:1: has no prompt"),
        ([{"turns": ["one", " "]}], None, "jsonl:1: a turn of the prompt is empty"),
        ([{"idx": 1, "prompt": "a"}, {"idx": 1, "prompt": "b"}], None, "2 rows are called '1'"),
        ([{"prompt": assistant("a")}], None, "ends with a message of role 'assistant'"),
        ([{"prompt": "one"}], [{"instruction": "other", "output": "x"}], "has no output for prompt"),
        ([{"prompt": "one"}], [{"instruction": "one"}], "jsonl:1: has no answer"),
    ],
)
def test_a_mistake_in_a_set_is_told_with_its_row(tmp_path: Path, rows: Any, outputs: Any, message: str) -> None:
    source = written(tmp_path, "set.jsonl", rows)
    others = {} if outputs is None else {"gpt": written(tmp_path, "out.jsonl", outputs)}
    with pytest.raises(UserError, match=message):
        read_prompt_set(source, outputs=others)


def test_a_file_that_is_no_text_is_told(tmp_path: Path) -> None:
    (tmp_path / "set.jsonl").write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match=r"set\.jsonl: is UTF-16 text; save it as UTF-8"):
        read_prompt_set(str(tmp_path / "set.jsonl"))


def test_a_byte_order_mark_is_no_part_of_a_set(tmp_path: Path) -> None:
    for name, text in (("set.jsonl", '{"prompt": "one"}\r\n'), ("set.json", '[{"prompt": "one"}]')):
        (tmp_path / name).write_bytes(b"\xef\xbb\xbf" + text.encode())
        assert [each.prompt for each in read_prompt_set(str(tmp_path / name))[0]] == [user("one")]


def test_reference_answers_of_another_set_are_told(tmp_path: Path) -> None:
    source = written(tmp_path, "set.jsonl", [{"question_id": 81, "turns": ["a"]}, {"question_id": 82, "turns": ["b"]}])
    some = written(tmp_path, "some.jsonl", [{"question_id": 82, "choices": [{"turns": ["r"]}]}])
    assert [each.references for each in read_prompt_set(source, references=some)[0]] == [[], ["r"]]
    others = written(tmp_path, "others.jsonl", [{"question_id": 1, "choices": [{"turns": ["r"]}]}])
    with pytest.raises(UserError, match="has no reference answer to any prompt"):
        read_prompt_set(source, references=others)


def test_an_address_without_a_network_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"cannot be fetched .*name a local copy"):
        read_prompt_set("https://127.0.0.1:9/set.jsonl")


@pytest.mark.parametrize("text", ["Name Red  things", "name red\nthings ", "\uff2e\uff21\uff2d\uff25 red things"])
def test_a_prompt_that_training_has_seen_is_found_whatever_its_spelling(text: str) -> None:
    pairs = [OfflinePair.of("a", [*user("name red things"), *assistant("rose"), *user("more")], assistant("x"), assistant("y"))]
    prompts, _ = held_out_prompts([OfflinePair.of(name, user(each), assistant("x"), assistant("y")) for name, each in
                                   (("1", text), ("2", "name red thing"))], None)  # fmt: skip
    assert [each.seen for each in marked(prompts, [pair.prompt for pair in pairs])] == [True, False]


def test_the_first_held_out_prompts_are_used_and_all_are_counted() -> None:
    pairs = [OfflinePair.of(f"p{place}", user(f"q{place}"), assistant("x"), assistant("y")) for place in range(3)]
    for rows, names in ((2, ["p0", "p1"]), (None, ["p0", "p1", "p2"]), (9, ["p0", "p1", "p2"])):
        found, known = held_out_prompts(pairs, rows)
        assert ([each.prompt_id for each in found], known) == (names, 3)


def test_what_training_has_seen_is_the_users_question_and_no_other_message(tmp_path: Path) -> None:
    system = [{"role": "system", "content": "be brief"}]
    rows = [
        {"idx": "asked", "prompt": [*system, *user("one")]},
        {"idx": "answered", "prompt": [*system, *user("rose")]},
        {"idx": "system", "prompt": [*system, *user("new")]},
        {"idx": "instructed", "prompt": "be brief"},
    ]
    found, _ = read_prompt_set(written(tmp_path, "set.jsonl", rows))
    training = [[*system, *user("one"), *assistant("rose"), *user("more")]]
    assert [each.prompt_id for each in marked(found, training) if each.seen] == ["asked"]


def test_an_output_to_another_text_is_not_taken_by_its_name(tmp_path: Path) -> None:
    """Two versions of a set number their prompts alike."""
    source = written(tmp_path, "set.json", [{"prompt_id": "a", "prompt": "one"}])
    outputs = written(tmp_path, "out.json", [{"prompt_id": "a", "instruction": "another", "output": "x"}])
    with pytest.raises(UserError, match="has no output for prompt a"):
        read_prompt_set(source, outputs={"gpt": outputs})


def test_a_column_without_a_value_is_none(tmp_path: Path) -> None:
    source = written(tmp_path, "set.json", [{"question_id": None, "id": "b", "instruction": None, "prompt": "one"}])
    [found], _ = read_prompt_set(source)
    assert (found.prompt_id, found.prompt) == ("b", user("one"))
