"""Training pairs that a report shows: which ones, with whom they were chosen from, and by what."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from handbook_ext.reports.training_pairs import SHOWN, shown_pairs
from tests.reports.made_run import (
    make_data,
    make_judged_run,
    make_rankings,
    make_samples,
    make_sera_run,
    offline,
    sample,
    select,
)


def test_pairs_stand_equally_far_apart_in_their_file(tmp_path: Path) -> None:
    run = tmp_path / "runs" / "mine-run"
    make_data(run, [offline(number, raw_rows=25) for number in range(25)])
    select(run / "iter0", "dataset", {"rows": "../data/rows/train.jsonl"}, explore=False)
    found = shown_pairs(run / "iter0")
    assert found is not None and (found["iteration"], found["of"], len(found["pairs"])) == ("iter0", 25, SHOWN)
    assert [each["line"] for each in found["pairs"]] == [1, 3, 6, 8, 11, 13, 16, 18, 21, 23]
    assert found["pairs"][1]["prompt_id"] == "p2"
    assert [each["text"] for each in found["pairs"][1]["candidates"]] == ["good 2 yes", "bad 2"]


def test_all_candidates_stand_beside_the_pair_with_their_verdicts(tmp_path: Path) -> None:
    found = shown_pairs(make_judged_run(tmp_path / "runs" / "mine-run") / "iter1")
    assert found is not None and [each["prompt_id"] for each in found["pairs"]] == ["p0", "p1", "p2"]
    first = found["pairs"][0]
    assert [(each["score"], each["rank"], each["failed"], each["roles"]) for each in first["candidates"]] == [
        (None, None, True, ["explored"]), (0.4, 1, False, ["chosen"]), (0.2, 3, False, ["rejected"]), (0.3, 2, False, []),
    ]  # fmt: skip
    assert first["why"].startswith(
        "sample 1 of sft (rank 1, score 0.4) over the data's chosen (rank 3, score 0.2, data's score 2)"
    )
    assert (first["origins"], first["ties"], found["pairs"][1]["ties"]) == (["on_policy", "offline"], 0, 2)


def test_each_of_two_pairs_of_a_prompt_has_its_own_parts_and_sera_its_rewards(tmp_path: Path) -> None:
    """p0 gives SeRA its offline pair, and a pair of its own samples."""
    found = shown_pairs(make_sera_run(tmp_path / "runs" / "mine-run") / "iter2")
    assert found is not None
    offline_pair, own = (each for each in found["pairs"] if each["prompt_id"] == "p0")
    assert [each["roles"] for each in offline_pair["candidates"]] == [[], [], ["chosen"], ["rejected"]]
    assert [each["roles"] for each in own["candidates"]] == [["chosen"], ["rejected"], [], []]
    assert [each["implicit"] for each in own["candidates"]] == [6.0, 0.0, 4.0, 0.0]
    assert (offline_pair["margin"], own["margin"]) == (4.0, 6.0)
    assert own["why"].endswith("; implicit reward margin 6")


def test_a_policy_that_trained_on_no_pairs_shows_none(tmp_path: Path) -> None:
    assert shown_pairs(tmp_path / "sft") is None


def test_pairs_whose_sources_were_deleted_are_shown_alone(tmp_path: Path) -> None:
    folder = make_judged_run(tmp_path / "runs" / "mine-run") / "iter1"
    for name in ("rankings.jsonl", "completions.jsonl"):
        (folder / name).unlink()
    found = shown_pairs(folder)
    assert found is not None
    assert [each["label"] for each in found["pairs"][2]["candidates"]] == ["the data's chosen", "the data's rejected"]
    assert found["pairs"][2]["why"].startswith("a completion that is on-policy over the data's rejected (data's score 1)")
    assert json.dumps(found)


@pytest.mark.parametrize(
    ("scores", "roles", "why"),
    [
        ([0.9, 0.1, 0.5, 0.3], [["chosen"], ["rejected"], [], []], "sample 0 of sft (rank 1, score 0.9) over sample 1"),
        ([0.4, 0.1, 0.9, 0.3], [[], ["rejected"], ["chosen"], []], "the data's chosen (rank 1, score 0.9, data's score 2) over"),
    ],
)
def test_a_sample_that_repeats_the_data_is_told_from_it(tmp_path: Path, scores: Any, roles: Any, why: str) -> None:
    """Sample 0 has the text, and so the id, of the data's chosen; whoever of the two won has the part in the pair."""
    run, row = tmp_path / "runs" / "mine-run", offline(0)
    rows, folder = make_data(run, [row]), run / "iter1"
    samples = [sample(row, 0, row.chosen_answer.text), sample(row, 1, "another")]
    make_samples(folder, rows, samples)
    make_rankings(folder, rows, samples, [row], {"p0": scores})
    select(folder, "best_and_worst", {"rows": "../data/rows/train.jsonl", "rankings": "rankings.jsonl"}, explore=False)
    found = shown_pairs(folder)
    assert found is not None
    assert [each["roles"] for each in found["pairs"][0]["candidates"]] == roles
    assert found["pairs"][0]["why"].startswith(why)
