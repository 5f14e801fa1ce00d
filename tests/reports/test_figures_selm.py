"""The figures of SELM from runs made by hand: each number against one worked out here."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from handbook_ext.recipes.table_files import TableRow, run_of_row
from handbook_ext.reports.figures_selm import pairs_seen
from handbook_ext.reports.paper_figures import FIGURES
from handbook_ext.reports.paper_tables import read_paper_table
from tests.recipe_folder import ROOT
from tests.reports.figure_world import evaluation, numbers, set_evaluation, sources
from tests.reports.test_table_numbers import write_pairs

BETA = 1.0  # Of the tiny recipes.


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    """Recipes and tables are found from the repository's root."""
    monkeypatch.chdir(ROOT)


def test_figure_2_has_our_matrix_beside_the_papers(tmp_path: Path) -> None:
    """Equally long answers: the LC win rate is the win rate, 3.5 of 4 prompts, drawn towards a half by the ridge alone."""
    evaluation(tmp_path / "tiny-selm/iter3", [4, 4, 4, 1])
    evaluation(tmp_path / "tiny-dpo/iter3", [1, 2, 3, 1])
    found = numbers("selm2", sources(tmp_path))
    ours = {key[1:]: value for key, value in found.items() if key[0].startswith("ours")}
    assert ours == {
        ("SELM iter 3", "SELM iter 3"): 50.0, ("DPO iter 3", "DPO iter 3"): 50.0,
        ("SELM iter 3", "DPO iter 3"): pytest.approx(87.5, abs=0.6), ("DPO iter 3", "SELM iter 3"): pytest.approx(12.5, abs=0.6),
    }  # fmt: skip
    assert sum(value for key, value in ours.items() if len(set(key)) == 2) == pytest.approx(100)
    paper = {key[1:]: value for key, value in found.items() if key[0].startswith("paper")}
    table = read_paper_table("selm-figure2-zephyr")
    assert paper == {(row, column): cell.number for (_, row, column), cell in table.grid.items()}
    assert numbers("selm2", sources(tmp_path, "llama3"))["paper, Llama-3-8B-Instruct: AlpacaEval 2", "SELM3", "SELM1"] == 53.41


def test_figure_2_takes_the_matrix_that_a_judge_made_of_the_same_policies(tmp_path: Path) -> None:
    for name in ("tiny-selm", "tiny-dpo"):
        evaluation(tmp_path / name / "iter3", [1] * 4)
    names = ["tiny-selm sft", "tiny-selm iter3", "tiny-dpo iter3"]
    values = [[50.0, 20.0, 25.0], [80.0, 50.0, 53.5], [75.0, 46.5, None]]
    errors = [[0.0, 1.0, 1.0], [1.0, 0.0, 2.0], [1.0, 2.0, None]]
    content = {
        "names": names,
        "measure": "lc_win_rate",
        "values": values,
        "standard_errors": errors,
        "missing": [],
        "not_run": None,
    }
    folder = tmp_path / "matrix/alpaca/tiny-selm+tiny-dpo"
    folder.mkdir(parents=True)
    (folder / "matrix.json").write_text(json.dumps(content | {"set": "alpaca", "judge": "gpt-4", "n": 805}))
    other = tmp_path / "matrix/alpaca/others"
    other.mkdir()
    (other / "matrix.json").write_text(json.dumps(content | {"names": ["a sft", "a iter1", "a iter2"]}))
    ours = FIGURES["selm2"].build(sources(tmp_path)).panels[0]
    assert ours.title == "ours, tiny: LC win rate on 805 prompts of alpaca, judged by gpt-4"
    cells = {(one.name, point.x): point for one in ours.series for point in one.points if point.y is not None}
    assert {key: point.y for key, point in cells.items()} == {
        ("SELM iter 3", "SELM iter 3"): 50.0, ("DPO iter 3", "DPO iter 3"): 50.0, ("SELM iter 3", "DPO iter 3"): 53.5,
        ("DPO iter 3", "SELM iter 3"): 46.5,
    }  # fmt: skip
    point = cells["SELM iter 3", "DPO iter 3"]
    assert (point.low, point.high) == pytest.approx((53.5 - 3.92, 53.5 + 3.92))


def test_figure_2_compares_no_two_judges(tmp_path: Path) -> None:
    evaluation(tmp_path / "tiny-selm/iter3", [4, 4, 4, 1], judge="one")
    evaluation(tmp_path / "tiny-dpo/iter3", [1, 2, 3, 1], judge="another")
    assert not any(key[0].startswith("ours") for key in numbers("selm2", sources(tmp_path)))


def test_figure_3_has_scores_by_iteration_and_histograms_of_greedy_rewards(tmp_path: Path) -> None:
    for name in ("tiny-selm", "tiny-dpo"):
        evaluation(tmp_path / name / "sft", [2, 2, 2, 2])
    evaluation(tmp_path / "tiny-dpo/iter2", [1, 1, 2, 2], greedy=[0, 0, 0, 0])
    evaluation(tmp_path / "tiny-selm/iter1", [3, 3, 3, 1], greedy=[0, 0, 0, 20])
    evaluation(tmp_path / "tiny-selm/iter2", [3, 3, 2, 2], greedy=[0, 0, 20, 20])
    found = numbers("selm3", sources(tmp_path))
    scores = {key[1:]: value for key, value in found.items() if key[0] == "score by iteration"}
    assert scores == {("alpha 0.02", "1"): 75.0, ("alpha 0.02", "2"): 75.0, ("alpha 0", "2"): 25.0}
    # Twenty bins from 0 to 20, so that 0 is in the first, with the middle 0.5, and 20 in the last.
    title, last = "alpha 0.02, iter2", "19.5"
    assert (found[title, title, "0.5"], found[title, title, last], found[title, title, "1.5"]) == (50.0, 50.0, 0.0)
    panels = [panel for column in FIGURES["selm3"].build(sources(tmp_path)).columns[1:] for panel in column]
    assert [panel.title for panel in panels] == ["alpha 0, iter2", "alpha 0.02, iter2", "alpha 0.02, iter1", "alpha 0.02, iter2"]
    assert [fact.value for panel in panels for fact in panel.facts] == [0, 10, 5, 10]
    outline = next(one for one in panels[1].series if one.reference)
    assert outline.points == panels[0].series[0].points


def test_figure_3_takes_alpaca_evals_lc_where_every_policy_has_it(tmp_path: Path) -> None:
    """The interval is the normal one of the standard error; one policy without it, and all have win rates again."""
    for place, name in enumerate(("sft", "iter0", "iter1")):
        evaluation(tmp_path / "tiny-selm" / name, [2, 2, 2, 2])
        if name != "sft":
            set_evaluation(tmp_path / "tiny-selm" / name / "alpaca", {"lc_win_rate": (20.0 + place, 0.5)})
    picture = FIGURES["selm3"].build(sources(tmp_path))
    [panel] = picture.columns[0]
    assert panel.y == "AlpacaEval 2 LC win rate (%)"
    points = next(one for one in panel.series if one.name == "alpha 0.02").points[:2]
    assert [point.y for point in points] == [21.0, 22.0]
    assert [points[0].low, points[0].high] == pytest.approx([21 - 0.98, 21 + 0.98], abs=1e-3)
    evaluation(tmp_path / "tiny-selm/iter2", [2, 2, 2, 2])
    again = FIGURES["selm3"].build(sources(tmp_path))
    assert again.columns[0][0].y == "win rate against the start (%)"
    assert "once every policy here has alpaca/eval.json (make <run>-eval SETS=alpaca)" in again.caption


def test_figure_4_sorts_the_differences_of_implicit_rewards_of_the_same_answers(tmp_path: Path) -> None:
    ours = {"chosen": [(3.0, 1, 2), (-1.0, 1, 2), (0.5, 1, 2)], "rejected": [(1.0, 0, 2), (1.0, 0, 2), (1.0, 0, 2)]}
    theirs = {"chosen": [(1.0, 1, 2), (1.0, 1, 2), (0.0, 1, 2)], "rejected": [(1.0, 0, 2), (0.0, 0, 2), (2.0, 0, 2)]}
    evaluation(tmp_path / "tiny-selm/iter1", [1] * 3, held_out=ours)
    evaluation(tmp_path / "tiny-dpo/iter1", [1] * 3, held_out=theirs)
    (chosen,), (rejected,) = FIGURES["selm4"].build(sources(tmp_path)).columns
    assert chosen.title == "SELM iter 1 less DPO iter 1, y_w"
    assert [point.y for point in chosen.series[0].points] == pytest.approx([BETA * value for value in (-2.0, 0.5, 2.0)])
    assert [point.x for point in chosen.series[0].points] == pytest.approx([100 / 6, 50, 500 / 6])
    assert [point.y for point in rejected.series[0].points] == pytest.approx([-BETA, 0.0, BETA])
    means, above = zip(*(panel.facts for panel in (chosen, rejected)), strict=True)
    assert [fact.value for fact in means] == pytest.approx([BETA * 0.5 / 3, 0.0])
    assert [fact.value for fact in above] == pytest.approx([200 / 3, 50.0])  # The tie counts half.
    assert all(fact.low < fact.value < fact.high for fact in (*means, *above))
    assert chosen.notes == rejected.notes == ("one seed, no verdict",)


def test_figure_4_joins_the_seeds_that_both_have(tmp_path: Path) -> None:
    for seed, name in ((1, ""), (2, "-seed2"), (3, "-seed3")):
        evaluation(tmp_path / f"tiny-selm{name}/iter1", [1], held_out={"chosen": [(float(seed), 1, 2)]})
        if seed < 3:
            evaluation(tmp_path / f"tiny-dpo{name}/iter1", [1], held_out={"chosen": [(0.0, 1, 2)]})
    picture = FIGURES["selm4"].build(sources(tmp_path, seeds=(1, 2, 3)))
    assert [point.y for point in picture.panels[0].series[0].points] == pytest.approx([BETA, 2 * BETA])


def test_figure_5_is_of_each_policys_own_samples(tmp_path: Path) -> None:
    evaluation(tmp_path / "tiny-selm/iter2", [1] * 2, held_out={"sample": [(2.0, 1, 2), (5.0, 1, 2)]})
    evaluation(tmp_path / "tiny-dpo/iter2", [1] * 2, held_out={"sample": [(3.0, 1, 2), (1.0, 1, 2)]})
    picture = FIGURES["selm5"].build(sources(tmp_path))
    assert [point.y for point in picture.panels[0].series[0].points] == pytest.approx([-BETA, 4 * BETA])
    assert "One sample of each policy per held-out prompt" in picture.caption


def test_figure_6_counts_the_pairs_that_each_policy_has_seen(tmp_path: Path) -> None:
    evaluation(tmp_path / "tiny-dpo/sft", [2] * 4)
    for name, rewards, pairs in (("iter0", [3, 3, 1, 1], "ab"), ("iter1", [3, 3, 3, 1], "abc")):
        evaluation(tmp_path / "tiny-dpo" / name, rewards)
        write_pairs(tmp_path / "tiny-dpo" / name, dict.fromkeys(pairs, False))
    found = numbers("selm6", sources(tmp_path))
    assert {key[2]: value for key, value in found.items() if key[0] == "number of iterations"} == {
        "0.0": 50,
        "0.002": 50,
        "0.005": 75,
    }
    # The grid's middle is one run, which stands in three panels; the panel without it has nothing.
    assert {key[0] for key in found} == {"number of iterations", "global batch (pairs)", "learning rate", "labels updated or not"}


def test_figure_6_counts_a_pair_once_in_each_epoch(tmp_path: Path) -> None:
    write_pairs(tmp_path / "tiny-dpo/iter0", dict.fromkeys("ab", False))
    [row] = sources(tmp_path).rows("selm-ablations", ["4 iterations"])
    assert (pairs_seen(row, "iter0"), pairs_seen(row, "iter1")) == (2.0, None)
    twice = replace(row, run=run_of_row(TableRow(name="A", recipe="tiny-dpo", set={"train.num_train_epochs": 2}), "mine", 1))
    assert pairs_seen(twice, "iter0") == 4.0


def test_figure_6_has_offline_dpo_at_the_policies_kept_along_its_training(tmp_path: Path) -> None:
    [row, *_] = sources(tmp_path).rows("selm-offline", ["a quarter"])
    for name, value in (("sft", 5.0), ("iter0@25", 6.0), ("iter0", 7.0)):
        evaluation(tmp_path / row.run.name / name, [1] * 4)
        set_evaluation(tmp_path / row.run.name / name / "mtbench", {"average": (value, 0.1)})
    picture = FIGURES["selm6"].build(sources(tmp_path))
    offline = picture.panels[0].series[-1]
    assert picture.panels[0].y == "MT-Bench score (1-10)"
    assert [(point.x, point.y) for point in offline.points] == [(1.0, 6.0), (4.0, 7.0)]
    assert offline.reference
    assert all(panel.series[-1] == offline for panel in picture.panels)
