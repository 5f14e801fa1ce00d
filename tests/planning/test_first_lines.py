"""The first lines of a check and of a plan: rows and what was dropped, prompts that are too long, steps, time."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from handbook_ext.graph.run_rules import run_rules
from handbook_ext.graph.stages import Limits
from handbook_ext.planning.estimates import estimate
from handbook_ext.planning.first_lines import Steps, TooLong, checked_lines, planned_lines, steps_lines, too_long
from handbook_ext.planning.request import Request, settings_of
from tests.dataset_rows import pair, write
from tests.recipe_folder import enter_folder, mine


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder of a test."""
    return enter_folder(tmp_path, monkeypatch)


def limits(**changes: object) -> Limits:
    """Limits of 20 tokens for a prompt and 50 for a row."""
    return Limits.model_validate({"max_length": 50, "max_prompt_length": 20, "long_prompts": "drop"} | changes)


@pytest.mark.parametrize(("changes", "words"), [
    ({}, "their rows are dropped (data.long_prompts: drop)"), ({"long_prompts": "truncate"}, "each keeps its end"),
    ({"long_prompts": "error"}, "each keeps its end"),
    ({"truncation": "as_needed"}, "cut to that where the row exceeds train.max_length"),
])  # fmt: skip
def test_how_many_prompts_are_too_long_by_how_much_and_what_becomes_of_them(changes: dict[str, object], words: str) -> None:
    found = TooLong.of([(20, 30), (21, 10), (29, 10), (5, 46)], limits(**changes))
    assert found.line(limits(**changes)) == (
        f"2 of 4 are longer than the 20 tokens of train.max_prompt_length, by 5 on average and 9 at most: {words}; in 1 row "
        "prompt and answer exceed train.max_length 50: the answer loses its end"
    )


def test_a_prompt_without_a_limit_of_its_own_has_that_of_the_row() -> None:
    own = limits(max_prompt_length=None, long_prompts="error")
    assert TooLong.of([(50, 0)], own).line(own) == "none of 1 is longer than the 50 tokens of train.max_length"
    assert "the run stops there (data.long_prompts: drop leaves them out" in TooLong.of([(51, 0)], own).line(own)


def test_a_plan_begins_with_rows_prompts_steps_and_time() -> None:
    rows = [pair(number) for number in range(9)] + [pair(9, score_rejected=8.0)]
    write(Path("recipes/mine/train.jsonl"), rows)
    write(Path("recipes/mine/test.jsonl"), [pair(number) for number in range(20, 23)])
    mine("data: {train: train.jsonl, test: test.jsonl, portions: 1}\ntrain: {global_batch_size: 16}\n")
    request = Request("mine-selm")
    setting = settings_of(request, Path("runs"))[0]
    lines = planned_lines(setting, [estimate(setting, rule) for rule in run_rules(setting.run)])
    assert lines[:3] == [
        "rows: 9 to train on, 3 held out for evaluation, 9 demonstrations for SFT; 1 of 13 read were dropped: equal scores 1",
        "prompts: none of 9 is longer than the 1,024 tokens of train.max_length (estimated)",
        "steps: 1 optimizer step in each of iter0, iter1, iter2, iter3: up to 9 pairs in batches of 16; not one batch is full, "
        "which the check refuses",
    ]
    assert lines[3].startswith("time: about ")
    assert lines[3].endswith(
        " for the whole run on this machine, by rates assumed, conservative: make calibrate measures this machine in two minutes"
    )


def test_a_check_shows_what_it_has_counted_and_says_where_a_time_is_not_known() -> None:
    write(Path("recipes/mine/train.jsonl"), [pair()])
    write(Path("recipes/mine/test.jsonl"), [pair()])
    mine("data: {train: train.jsonl, test: test.jsonl}\nlaunch: gpu\n")
    names = [f"iter{number}" for number in range(4)]
    counted = {"rows": 7, "prompts": 1, "mean_excess": 3.0, "most_excess": 3, "answers": 0}
    schedules = [{"training": "sft", "rows": 1, "examples": 1, "steps": 1, "global_batch_size": 1}] + [
        {"training": name, "rows": 10, "examples": 10, "steps": 5, "global_batch_size": 2} for name in names
    ]
    check = {"schedules": schedules, "truncated": [{"iterations": names, "long": counted}]}
    lines = checked_lines(Request("mine-selm"), Path("runs/mine-selm"), check)
    assert lines[1].startswith("prompts: 1 of 7 is longer than the 1,024 tokens of train.max_length, by 3 on average and 3 at")
    assert lines[2].startswith("steps: 5 optimizer steps in each of iter0, iter1, iter2, iter3: up to 10 pairs in batches of 2")
    assert lines[3].startswith("time: not known (VRAM: the plan is for GPUs")
    assert lines[3].endswith("make mine-selm-plan says more, with VRAM=24 say")


def test_one_full_batch_is_enough() -> None:
    [line] = steps_lines([Steps("iter1", 16, 16, 1, 16)], 1, None)
    assert line == "steps: 1 optimizer step in iter1: up to 16 pairs in batches of 16"
    [line] = steps_lines([Steps("iter1", 16, 15, 1, 16)], 1, None)
    assert line.endswith("; not one batch is full, which the check refuses")


def test_the_longer_answer_of_a_pair_decides() -> None:
    rows: Any = SimpleNamespace(pairs=[SimpleNamespace(prompt=10, chosen=a, rejected=b) for a, b in ((41, 1), (1, 41), (40, 40))])
    assert too_long(rows, limits()).answers == 2


def test_a_check_that_has_not_counted_for_all_limits_is_not_taken_for_one_that_has() -> None:
    """Such as one of other iterations: what is worked out of a sample says so."""
    write(Path("recipes/mine/train.jsonl"), [pair()])
    write(Path("recipes/mine/test.jsonl"), [pair()])
    mine("data: {train: train.jsonl, test: test.jsonl}\niterations: {iter2: {train: {max_length: 512}}}\n")
    counted = {"rows": 7, "prompts": 0, "mean_excess": 0.0, "most_excess": 0, "answers": 0}
    check = {"schedules": [], "truncated": [{"iterations": ["iter0"], "long": counted}]}
    lines = checked_lines(Request("mine-selm"), Path("runs/mine-selm"), check)
    assert lines[1:3] == [
        "prompts (iter0, iter1, iter3): none of 1 is longer than the 1,024 tokens of train.max_length (estimated)",
        "prompts (iter2): none of 1 is longer than the 512 tokens of train.max_length (estimated)",
    ]


def test_fewer_rows_than_portions_are_planned_and_told() -> None:
    """They divided by zero, before the check could refuse them."""
    write(Path("recipes/mine/train.jsonl"), [pair()])
    write(Path("recipes/mine/test.jsonl"), [pair(1)])
    mine("data: {train: train.jsonl, test: test.jsonl, portions: 4}\n")
    setting = settings_of(Request("mine-selm"), Path("runs"))[0]
    lines = planned_lines(setting, [estimate(setting, rule) for rule in run_rules(setting.run)])
    assert "each iteration gets 1/4 of the rows (data.portions), here 0; not one batch is full, which the check" in lines[2]
    assert lines[3].startswith("time: about ")
