"""Tables: what their files may say, and which rows may be compared."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from handbook_ext.core.errors import UserError
from handbook_ext.objectives.metrics import Scores
from handbook_ext.recipes.table_files import Claim, TableRow, read_table, run_of_row
from handbook_ext.reports.evaluations import Evaluator
from handbook_ext.reports.tables import (
    Measured,
    flip_rate_difference,
    judge_claim,
    measure,
    summarise_row,
)
from tests.workspace import ROOT

TABLE: dict[str, Any] = {
    "title": "t", "source": "ours", "rows": [{"name": "A", "recipe": "tiny-dpo"}, {"name": "B", "recipe": "tiny-selm"}]
}  # fmt: skip


def measured(name: str, mean: float, judge: str = "", prompts: str = "abcdef") -> Measured:
    """Two seeds of a policy whose rewards are `mean` above those of the starting policy."""
    first = [Scores(tuple(prompts), np.arange(6.0) + seed, np.full(6, 3.0)) for seed in (0, 1)]
    scores = [Scores(each.prompt_ids, each.rewards + mean, each.tokens) for each in first]
    evaluators = [Evaluator(seed, "reward_model", judge) for seed in (0, 1)]
    flipped = [dict.fromkeys("bcd", False) | {"a": True}, {"a": False, "b": False}]
    return Measured(TableRow(name=name, recipe="r"), "iter1", {"sampled": scores}, {"sampled": first}, {}, evaluators, flipped)


@pytest.mark.parametrize(("change", "words"), [
    ({"rows": [*TABLE["rows"], {"name": "A", "recipe": "tiny-sera"}]}, "two rows are called 'A'"),
    ({"claims": [{"better": "A", "worse": "C", "words": "w"}]}, "no row is called 'C'; rows: A, B"),
    ({"differences": ["A"]}, "differences are of two rows, not of 1"),
    ({"rows": []}, "rows: List should have at least 1 item"),
])  # fmt: skip
def test_a_mistake_in_a_table_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any], words: str
) -> None:
    (tmp_path / "recipes/tables").mkdir(parents=True)
    (tmp_path / "recipes/tables/mine.yaml").write_text(yaml.safe_dump(TABLE | change))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=words) as caught:
        read_table("mine")
    assert str(caught.value).startswith("recipes/tables/mine.yaml: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("path", sorted((ROOT / "recipes/tables").glob("*.yaml")), ids=lambda path: path.stem)
def test_each_row_of_a_delivered_table_is_a_run_that_has_its_policy(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    for row in read_table(path.stem).rows:
        run = run_of_row(row, path.stem, seed=2)
        assert run.settings.seed == 2
        assert row.policy in (None, run.start, *(each.name for each in run.iterations))


def test_a_row_is_its_recipe_with_what_it_sets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    row = TableRow(name="A", recipe="tiny-selm", set={"train.beta": 0.5, "iterations.iter3": None})
    run = run_of_row(row, "mine", seed=1)
    assert (run.settings.train.beta, [each.name for each in run.iterations]) == (0.5, ["iter0", "iter1", "iter2"])
    wrong = TableRow(name="A", recipe="tiny-selm", set={"train.bta": 0.5})
    with pytest.raises(UserError, match=r"recipes/tables/mine\.yaml: row 'A': train\.bta: train has no setting 'bta'"):
        run_of_row(wrong, "mine", seed=1)


def test_a_claim_is_judged_by_the_interval_of_the_win_rate() -> None:
    rows = {"A": measured("A", 1.0), "B": measured("B", 0.5)}
    for better, worse, verdict in (("A", "B", "agrees"), ("B", "A", "disagrees"), ("A", "A", "cannot tell")):
        claim = Claim(better=better, worse=worse, words="w")
        assert judge_claim(claim, rows, "sampled", resamples=50, confidence=0.9)["verdict"] == verdict


@pytest.mark.parametrize("other", [measured("B", 0.5, judge="another"), measured("B", 0.5, prompts="abcdeg")])
def test_rows_that_were_measured_otherwise_are_not_compared(other: Measured) -> None:
    judged = judge_claim(Claim(better="A", worse="B", words="w"), {"A": measured("A", 1.0), "B": other}, "sampled")
    assert judged["win_rate"] is None
    assert "not judged by the same model on the same prompts" in judged["verdict"]


def evaluation(folder: Path, judge: str = "", decodings: tuple[str, ...] = ("greedy",), prompts: int = 4) -> None:
    """An eval.json."""
    rows = [{"prompt_id": str(n), "reward": 0.1 * n, "tokens": 3} for n in range(prompts)]
    written = {name: {"temperature": 0.0, "rows": rows} for name in decodings}
    folder.mkdir(parents=True)
    (folder / "eval.json").write_text(json.dumps({"seed": 1, "ranker": "r", "judge": judge, "decodings": written}))


@pytest.mark.parametrize("other", [{"judge": "another"}, {"decodings": ("greedy", "sampled")}, {"prompts": 3}])
def test_a_policy_is_measured_as_its_start_is(tmp_path: Path, other: dict[str, Any]) -> None:
    row = TableRow(name="A", recipe="r")
    for name in ("one/start", "one/iter1", "two/start", "one/sft"):
        evaluation(tmp_path / name)
    found = measure(row, [tmp_path / "one"], "start", "iter1")
    assert (found.policy, found.evaluators, list(found.scores)) == ("iter1", [(1, "r", "")], ["greedy"])
    evaluation(tmp_path / "two/iter1", **other)
    with pytest.raises(UserError, match="two: iter1 has not the judge, prompts and decodings of start"):
        measure(row, [tmp_path / "two"], "start", "iter1")


def test_the_share_of_flipped_labels_is_a_mean_over_seeds_with_an_interval() -> None:
    share = summarise_row(measured("A", 1.0), resamples=200, confidence=0.9)["swapped_kept"]
    assert share.value == pytest.approx((0.25 + 0.0) / 2)
    assert share.low <= share.value <= share.high < 1


def test_shares_of_flipped_labels_are_compared_pair_by_pair() -> None:
    """By hand, in one seed: 1 of the 2 kept labels is flipped against 2 of the 4, then 0 of 2 against 2 of 4."""
    all_of_them = {"a": True, "b": True, "c": False, "d": False}
    half, none = {"a": True, "c": False}, {"c": False, "d": False}
    assert flip_rate_difference([half], [all_of_them]).value == pytest.approx(0.0)
    assert flip_rate_difference([none], [all_of_them]).value == pytest.approx(-0.5)
    same = flip_rate_difference([half, none], [half, none], resamples=50)
    assert (same.low, same.value, same.high) == (0.0, 0.0, 0.0)
    with pytest.raises(UserError, match="compare these by win rate"):
        flip_rate_difference([], [half])


def test_a_claim_on_labels_agrees_where_fewer_flipped_ones_are_kept() -> None:
    many = {str(n): n % 2 == 0 for n in range(400)}
    few = {name: flipped for name, flipped in many.items() if not flipped or int(name) % 4 == 0}
    rows = {name: replace(measured(name, 1.0), swapped=[flags] * 2) for name, flags in (("A", few), ("B", many))}
    for better, worse, verdict in (("A", "B", "agrees"), ("B", "A", "disagrees"), ("A", "A", "cannot tell")):
        claim = Claim(better=better, worse=worse, by="flipped labels", words="w")
        assert judge_claim(claim, rows, "sampled", resamples=200)["verdict"] == verdict
