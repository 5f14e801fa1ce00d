"""What a run's report says of prompt sets: policies in their order, released ones behind them, and what a reader must know."""

from __future__ import annotations

import json
from pathlib import Path

from handbook_ext.reports.run_sets import sets_of
from tests.manifests import BARE
from tests.reports.set_files import GPT4_TURBO, measure, write_set

POLICIES = ["start", "iter1", "iter2", "iter10"]


def test_policies_stand_in_the_order_of_the_run_and_released_ones_behind_them(tmp_path: Path) -> None:
    for place, name in enumerate(["iter10", "iter2", "start", "released-iter2", "iter7"]):
        write_set(tmp_path / name, {"lc_win_rate": measure(10.0 + place, 0.5)})
    found = sets_of(tmp_path, POLICIES)
    # iter7 is no policy of the report.
    assert found is not None and found["policies"] == ["start", "iter2", "iter10", "released-iter2"]
    [row] = found["rows"]
    assert row["values"] == {
        "start": "12.00 ± 0.50", "iter2": "11.00 ± 0.50", "iter10": "10.00 ± 0.50", "released-iter2": "13.00 ± 0.50"
    }  # fmt: skip
    assert (row["set"], row["measure"], row["unit"], row["judge"]) == ("alpaca", "lc_win_rate", "%", "gpt-4-1106-preview")
    assert found["remarks"] == []


def test_each_set_has_its_own_measures_and_a_policy_only_those_that_it_has(tmp_path: Path) -> None:
    write_set(tmp_path / "start", {"single": measure(4.0, None, unit="1-10")}, "vicuna")
    local = {"model": "m", "kind": "single", "local": True}
    marks = {"single": measure(5.5, 0.25, unit="1-10", judge=local), "vs_start": measure(60.0, 2.0, judge=local)}
    write_set(tmp_path / "iter1", marks, "vicuna")
    write_set(tmp_path / "iter1", {"lc_win_rate": measure(None, None, judge=None, not_run="no judge")})
    found = sets_of(tmp_path, POLICIES)
    assert found is not None and found["policies"] == ["start", "iter1"]
    assert [(each["set"], each["measure"], each["unit"], each["judge"]) for each in found["rows"]] == [
        ("alpaca", "lc_win_rate", "%", ""),
        ("vicuna", "single", "1-10", "gpt-4-1106-preview, m (local)"),
        ("vicuna", "vs_start", "%", "m (local)"),
    ]
    assert [each["values"] for each in found["rows"]] == [
        {"iter1": "not run: no judge"}, {"start": "4.00", "iter1": "5.50 ± 0.25"}, {"iter1": "60.00 ± 2.00"}
    ]  # fmt: skip


def test_a_part_of_a_set_what_training_has_seen_and_unread_verdicts_are_told(tmp_path: Path) -> None:
    rates = {"lc_win_rate": measure(9.0, missing=2), "win_rate": measure(8.0, missing=2)}
    write_set(tmp_path / "iter1", rates, prompts=100, overlap=3)
    write_set(tmp_path / "iter2", {"lc_win_rate": measure(9.0)}, prompts=100, overlap=3)
    write_set(tmp_path / "iter2", {"single": measure(9.0)}, "vicuna")
    found = sets_of(tmp_path, POLICIES)
    assert found is not None and found["remarks"] == [
        "alpaca: the first 100 of its 805 prompts",
        "alpaca: training has seen 3 of the 805 prompts",
        "alpaca: verdicts that could not be read: 2 of iter1",
    ]


def test_what_training_has_seen_is_told_of_each_policy_where_they_differ(tmp_path: Path) -> None:
    """The policy that a run starts from was trained by others: it is the first, and speaks for itself alone."""
    write_set(tmp_path / "start", {"lc_win_rate": measure(9.0)})
    write_set(tmp_path / "iter1", {"lc_win_rate": measure(9.0)}, prompts=100, overlap=3)
    write_set(tmp_path / "iter2", {"lc_win_rate": measure(9.0)}, prompts=100, overlap=3)
    found = sets_of(tmp_path, POLICIES)
    assert found is not None and found["remarks"] == [
        "alpaca: the first 100 of its 805 prompts (iter1, iter2)",
        "alpaca: training has seen 3 of the 805 prompts (iter1, iter2)",
    ]


def test_an_unread_verdict_is_counted_once_however_many_measures_are_made_of_it(tmp_path: Path) -> None:
    turns = GPT4_TURBO | {"kind": "single"}
    marks = {name: measure(5.0, missing=missing, judge=turns) for name, missing in (("average", 5), ("turn1", 2), ("turn2", 3))}
    write_set(tmp_path / "iter1", marks, "mtbench")
    pairs = GPT4_TURBO | {"kind": "pairwise"}
    others = {f"vs_{name}": measure(5.0, missing=missing, judge=pairs) for name, missing in (("start", 1), ("other", 4))}
    write_set(tmp_path / "iter1", others | {"single": measure(5.0, missing=2, judge=turns)}, "vicuna")
    write_set(tmp_path / "iter2", {"single": measure(5.0, missing=7, judge=turns)}, "vicuna")
    found = sets_of(tmp_path, POLICIES)
    assert found is not None and found["remarks"] == [
        "mtbench: verdicts that could not be read: 5 of iter1",
        "vicuna: verdicts that could not be read: 7 of iter1, 7 of iter2",
    ]


def test_what_is_not_finished_or_of_no_policy_is_nothing(tmp_path: Path) -> None:
    assert sets_of(tmp_path, POLICIES) is None
    path = write_set(tmp_path / "iter1", {"lc_win_rate": measure(9.0)})
    path.with_name("eval.manifest.json").unlink()
    write_set(tmp_path / "iter3", {"lc_win_rate": measure(9.0)})
    assert sets_of(tmp_path, POLICIES) is None


def test_where_every_evaluation_is_of_a_policy_that_was_trained_again_a_remark_says_so(tmp_path: Path) -> None:
    write_set(tmp_path / "iter1", {"lc_win_rate": measure(9.0)})
    (tmp_path / "iter1/policy").mkdir()
    (tmp_path / "iter1/policy/manifest.json").write_text(json.dumps(BARE | {"policy": "another"}))
    found = sets_of(tmp_path, POLICIES)
    assert found is not None and (found["policies"], found["rows"]) == ([], [])
    [remark] = found["remarks"]
    assert remark.startswith("left out: ") and "is of another policy than" in remark
