"""Tables: what their files may say, and which rows may be compared."""

import json
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from handbook_ext.core.errors import UserError
from handbook_ext.objectives.metrics import Scores
from handbook_ext.recipes.run import Run
from handbook_ext.recipes.table_files import (
    Claim,
    TableRow,
    policy_of_row,
    read_table,
    run_of_row,
    table_names,
    written_table,
)
from handbook_ext.recipes.table_rows import PaperCell
from handbook_ext.reports.claims import judge_claims
from handbook_ext.reports.evaluations import Evaluator
from handbook_ext.reports.paper_quotes import quoted, with_paper_numbers
from handbook_ext.reports.tables import (
    Measured,
    flip_rate_difference,
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


TABLES = [(name, model) for name in table_names(ROOT / "recipes") for model in written_table(name, ROOT / "recipes").models]


@pytest.mark.parametrize(("name", "model"), TABLES)
def test_each_row_of_a_table_is_a_run_of_the_model_that_has_its_policy(
    name: str, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    table = with_paper_numbers(read_table(name, model=model))
    for row in table.rows:
        run = run_of_row(row, name, seed=2)
        assert run.settings.seed == 2
        assert policy_of_row(row, run) in run.policies
        assert name == "sera-models" or row.recipe.startswith(f"{model}-")
        # A row that the file ties to a printed one has its text: a number, or the paper's own dash.
        assert row.printed is None or re.fullmatch(r"\d+\.\d+( \(\w+\))?|-", row.paper), row
    # Two rows of one table are two experiments, but where the paper itself says so twice.
    runs = Counter((run.name, policy_of_row(row, run)) for row in table.rows for run in [run_of_row(row, name, seed=1)])
    assert name == "selm-ablations" or set(runs.values()) == {1}
    assert model != "tiny" or "at tiny scale" in table.title


def test_every_figure_and_table_at_paper_scale_is_served() -> None:
    """SELM tables 1 and 2 and figures 3 and 6; SeRA tables 1, 2, 3, 7, 8, 9 and figures 2, 3, 5, 6, 11."""
    served = {name: {model for other, model in TABLES if other == name} for name, _ in TABLES}
    assert served["selm2"] == {"zephyr", "llama3"}
    for name in ("selm1", "selm-alpha", "selm-ablations", "selm-offline"):
        assert {"tiny", "zephyr"} <= served[name]
    for name in ("sera1", "sera2", "sera-noise20", "sera-noise40", "sera-keep", "sera-selection", "sera-bootstrap", "sera-gamma"):
        assert {"tiny", "tinyllama"} <= served[name]
    # Figure 2: models by losses by data, as far as the paper's recipes go.
    assert served["sera-selectors"] == {"tiny", "tinyllama", "pythia", "mistral"}
    assert served["sera-selectors-objectives"] == {"tiny", "tinyllama", "pythia"}
    assert served["sera-selectors-hh"] == served["sera-selectors-tldr"] == served["sera3"] == {"tinyllama"}
    assert served["selm1"] >= {"llama3", "phi3"} and served["sera1"] >= {"pythia", "mistral"}


def test_the_sweeps_at_paper_scale_have_the_papers_values(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)

    def runs(name: str, model: str) -> dict[str, Run]:
        return {row.name: run_of_row(row, name, seed=1) for row in read_table(name, model=model).rows}

    alphas = [[each.settings.train.alpha for each in run.iterations] for run in runs("selm-alpha", "zephyr").values()]
    assert alphas == [[0, x, x, x] for x in (0, 1e-4, 5e-4, 1e-3, 5e-3, 1e-2)]
    grid = runs("selm-ablations", "zephyr")
    rates = {
        name: [each.settings.train.learning_rate * each.settings.train.learning_rate_factor for each in run.iterations]
        for name, run in grid.items()
    }
    for count in (3, 4, 5, 6):
        assert rates[f"{count} iterations"] == [5e-7] * (count - 1) + [1e-7]
        assert grid[f"{count} iterations"].settings.data.portions == count
    assert rates["constant rate"] == [5e-7] * 4
    assert rates["linearly decayed rate"] == [5e-7, 3.67e-7, 2.33e-7, 1e-7]
    assert {each.settings.train.global_batch_size for each in grid["batch 128"].iterations} == {128}
    assert {each.settings.train.global_batch_size for each in grid["batch 256"].iterations} == {256}
    rules = {name: run.iterations[-1].settings.select.rule for name, run in grid.items()}
    assert (rules["rank all three"], rules["against chosen"]) == ("best_and_worst", "against_chosen")
    assert (len(grid["offline DPO"].iterations), grid["offline DPO"].settings.data.portions) == (1, 1)
    last = [run.iterations[-1].settings.select for run in runs("sera-bootstrap", "tinyllama").values()]
    assert [(each.keep, each.bootstrap) for each in last] == [(0.7, x) for x in (0.0, 0.3, 0.5, 0.7, 1.0)]


def test_a_claim_has_the_papers_two_numbers_behind_it_and_a_row_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    first = with_paper_numbers(read_table("selm1", model="llama3")).claims[0]
    assert first.words == "SELM's third iteration beats iterative DPO's (34.67 over 33.17)."
    # DPO on the first portion is no row of Llama-3's, so neither is the claim about it.
    assert len(read_table("selm1", model="llama3").claims) == len(read_table("selm1", model="tiny").claims) - 1
    phi3 = with_paper_numbers(read_table("selm1", model="phi3"))
    assert (phi3.claims[0].words, phi3.rows[-1].paper) == ("SELM's third iteration beats iterative DPO's.", "27.98")
    tiny = {row.name: row.paper for row in with_paper_numbers(read_table("sera1")).rows}
    assert (tiny["SPIN"], tiny["OAIF"], tiny["SRLM"], tiny["SFT"]) == ("65.1 (M)", "64.6 (HH)", "-", "-")
    with pytest.raises(UserError, match=r"table sera1 of the papers has no cell at 'TinyLlama-1.1B', 'SeRA', 'x'"):
        quoted(PaperCell(table="sera1", group="TinyLlama-1.1B", row="SeRA", column="x"))


def test_a_model_that_a_table_does_not_serve_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    # tinyllama-dpo is another method than zephyr-dpo: a table of one row is none.
    with pytest.raises(UserError, match=r"selm-alpha\.yaml: it has no rows for tinyllama; it serves: tiny, zephyr"):
        read_table("selm-alpha", model="tinyllama")
    with pytest.raises(UserError, match="no recipe is called 'nothing-"):
        run_of_row(read_table("selm1", model="nothing").rows[0], "selm1", 1)
    assert table_names(model="smollm2") == ["selm1"]


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
        [judged] = judge_claims([claim], rows, "sampled", resamples=50, confidence=0.9)
        assert judged["verdict"] == verdict


@pytest.mark.parametrize("other", [measured("B", 0.5, judge="another"), measured("B", 0.5, prompts="abcdeg")])
def test_rows_that_were_measured_otherwise_are_not_compared(other: Measured) -> None:
    [judged] = judge_claims([Claim(better="A", worse="B", words="w")], {"A": measured("A", 1.0), "B": other}, "sampled")
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
        [judged] = judge_claims([claim], rows, "sampled", resamples=200)
        assert judged["verdict"] == verdict
