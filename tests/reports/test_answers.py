"""Held-out prompts that a report shows: the first, and those that changed most; with whole conversations."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from handbook_ext.core.records import assistant, user
from handbook_ext.reports.answers import EXTREMES, LONGEST, SHOWN, shown_answers
from handbook_ext.reports.trails import rows_about
from tests.reports.made_run import offline, publish


def evaluate(folder: Path, rewards: list[float | None], **columns: Any) -> None:
    """An eval.json of prompts p0, p1, ... with these rewards."""
    rows = [
        {"prompt_id": f"p{number}", "prompt": f"ask {number}", "text": f"{folder.name} {number}", "tokens": 3, "reward": reward,
         "finish_reason": "stop"} | columns
        for number, reward in enumerate(rewards)
    ]  # fmt: skip
    folder.mkdir(parents=True)
    (folder / "eval.json").write_text(json.dumps({"decodings": {"sampled": {"temperature": 0.7, "rows": rows}}}))


def names(found: dict[str, Any], what: str) -> list[str]:
    return [each["prompt_id"] for each in found[what]]


def test_the_most_changed_come_first_and_nobody_picks_the_others(tmp_path: Path) -> None:
    start = [0.0] * 20
    # p3 and p7 improve most, in a draw; p5 has no verdict, p11 and p12 fall.
    last = [0.1 * (number in (1, 2, 4, 6)) for number in range(20)]
    last[3] = last[7] = 0.9
    last[11], last[12] = -0.2, -0.7
    evaluate(tmp_path / "sft", start)
    evaluate(tmp_path / "iter1", [None if number == 5 else value for number, value in enumerate(last)])
    found = shown_answers(tmp_path, ["sft", "iter1"], "sampled")
    assert names(found, "first") == [f"p{number}" for number in range(SHOWN)]
    assert names(found, "worsened") == ["p12", "p11"]
    assert len(found["improved"]) == EXTREMES and names(found, "improved")[:3] == ["p3", "p7", "p1"]
    assert (found["of"], found["first"][5]["change"], found["worsened"][0]["change"]) == (20, None, -0.7)
    assert [each["text"] for each in found["worsened"][0]["answers"]] == ["sft 12", "iter1 12"]


def test_one_policy_alone_has_no_changes(tmp_path: Path) -> None:
    evaluate(tmp_path / "sft", [0.5, 0.5])
    found = shown_answers(tmp_path, ["sft"], "sampled")
    assert (names(found, "first"), found["improved"], found["worsened"]) == (["p0", "p1"], [], [])
    assert found["first"][0]["change"] is None


def test_a_prompt_of_several_turns_is_shown_as_the_rows_have_it(tmp_path: Path) -> None:
    evaluate(tmp_path / "sft", [0.5, 0.5], text="x" * (LONGEST + 5), finish_reason="length")
    assert shown_answers(tmp_path, ["sft"], "sampled")["first"][0]["prompt"] == "ask 0"
    turns = [*user("Name one."), *assistant("Plum."), *user("ask 0")]
    rows = [offline(0).model_copy(update={"prompt": turns}), offline(1)]
    publish(tmp_path / "data" / "rows", "data", files={"test.jsonl": rows})
    first, second = shown_answers(tmp_path, ["sft"], "sampled")["first"]
    assert (first["prompt"], second["prompt"]) == ("user: Name one.\nassistant: Plum.\nuser: ask 0", "Question 1?")
    (answer,) = first["answers"]
    assert (answer["text"], answer["cut"]) == ("x" * LONGEST + " …", True)


def test_rows_are_found_by_their_whole_id(tmp_path: Path) -> None:
    """p1 is no part of p11, and an id that stands in another row's text is not that row's."""
    rows = [offline(number).renamed(name) for number, name in enumerate(("p11", 'p"1', "p2"))]
    quoting = offline(5).model_copy(update={"source": "p2"})
    publish(tmp_path / "rows.jsonl", "data", rows=[*rows, quoting])
    found = rows_about(tmp_path / "rows.jsonl", type(rows[0]), ["p1", "p11", 'p"1', "p2"])
    assert {name: [number for number, _ in each] for name, each in found.items()} == {"p1": [], "p11": [1], 'p"1': [2], "p2": [3]}


@pytest.mark.parametrize("line", ['{"prompt_id": "p2"', '{"prompt_id": "p2"}', '["p2"]'])
def test_a_broken_row_is_named(tmp_path: Path, line: str) -> None:
    (tmp_path / "rows.jsonl").write_text(f"{line}\n")
    with pytest.raises(ValueError, match=r"rows\.jsonl:1: is not what its stage wrote \(.*\); make the file again"):
        rows_about(tmp_path / "rows.jsonl", type(offline(0)), ["p2"])
