"""What a page says of a filled table besides its cells: judges, scale, sizes, what is missing; tiny reproduces nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from handbook_ext.core.errors import UserError
from handbook_ext.reports.paper_measurements import read_filling
from handbook_ext.reports.paper_pages import FORMATS, render_paper_table
from tests.reports.set_files import measure, write_set
from tests.reports.test_paper_measurements import SELM1, SELM3
from tests.reports.test_paper_pages import markdown_rows
from tests.workspace import ROOT


@pytest.fixture(autouse=True)
def _at_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    """Recipes are found from the repository's root."""
    monkeypatch.chdir(ROOT)


def test_footers_name_judge_scale_and_sample_sizes(tmp_path: Path) -> None:
    write_set(tmp_path / "zephyr-selm/iter3", {"lc_win_rate": measure(23.9, n=800, missing=5)}, overlap=3)
    marks = measure(7.5, 0.1, unit="1-10", n=80, runs=3, judge={"model": "gpt-4-0613", "kind": "mt_bench", "temperature": 0.0})
    write_set(tmp_path / "zephyr-selm/iter3", {"average": marks}, "mtbench", prompts=20)
    for form in set(FORMATS) - {"csv"}:
        page = render_paper_table(SELM1, form, read_filling(SELM1, tmp_path)).replace("\\_", "_")
        for words in (
            "Scale: zephyr-selm (1 seed).",
            "alpaca: judge gpt-4-1106-preview at temperature 0, 1 run; 805 of 805 prompts, 800 verdicts a cell, "
            "5 without a reading"
            "; answers at temperature 0.7, 2048 tokens at most.",
            "mtbench: judge gpt-4-0613 at temperature 0, 3 runs; 20 of 80 prompts, 80 verdicts a cell",
            "normal intervals from the standard error over prompts (2)",
            "Contaminated: up to 3 prompts of alpaca are among those of training.",
            "differ from their table 1 by 0.2 to 2.1 LC points for the same 8 models (root mean square 1.24; MT-Bench 0.10)",
            "2 of 90 cells were run",
        ):
            assert words in page, (form, words)
        assert ("(23.90\u2020 [" if form != "latex" else "(23.90\\dag{} {[}") in page
        assert "not by the paper's judge" not in page


def test_another_judge_is_told_above_the_table(tmp_path: Path) -> None:
    local = {"model": "qwen2.5-72b-instruct", "kind": "alpaca_eval", "local": True}
    write_set(tmp_path / "zephyr-selm/iter3", {name: measure(24.2, 0.1, judge=local) for name in ("lc_win_rate", "win_rate")})
    page = render_paper_table(SELM1, "md", read_filling(SELM1, tmp_path))
    above, _, below = page.partition("| |")
    assert (
        "Judged by qwen2.5-72b-instruct, not by the paper's judge, GPT-4 Turbo (assumed): AlpacaEval 2 LC and AlpacaEval 2 WR "
        "cannot be compared with the paper's." in above
    )
    assert "24.25 (24.20 [24.00, 24.40], -0.05, not comparable)" in below
    assert "2 of 90 cells were run: 2 not comparable" in above
    assert ", local; 805 of 805 prompts" in below


def test_runs_of_another_model_stand_in_the_cells_and_reproduce_nothing(tmp_path: Path) -> None:
    write_set(tmp_path / "tiny-selm/iter3", {"lc_win_rate": measure(24.25, 0.01)})
    write_set(tmp_path / "zephyr-selm/iter3", {"lc_win_rate": measure(99.125)})
    filling = read_filling(SELM1, tmp_path, model="tiny")
    assert (filling.ours[SELM3].value, filling.model, filling.stands[SELM3].recipe) == (24.25, "tiny", "tiny-selm")
    for form in FORMATS:
        page = render_paper_table(SELM1, form, filling)
        assert "not comparable" in page
        assert " reproduced" not in page.replace("Verdicts: reproduced", "").replace("not reproduced", "").replace(
            "a reproduced", ""
        )
        assert "99.1" not in page
    assert "Ours are runs of tiny, another model than the paper's: no cell of it reproduces the paper." in render_paper_table(
        SELM1, "md", filling
    )
    # Llama-3's rows are quoted: nothing of tiny stands for them.
    assert {key[0] for key in filling.stands} == {"Zephyr-7B"}


def test_a_model_of_the_paper_fills_its_own_rows(tmp_path: Path) -> None:
    write_set(tmp_path / "llama3-selm/iter3", {"lc_win_rate": measure(34.0)})
    filling = read_filling(SELM1, tmp_path, model="llama3")
    assert filling.model is None
    assert {key[0] for key in filling.stands} == {"Llama-3-8B-Instruct"}
    page = render_paper_table(SELM1, "md", filling)
    [line] = [cells for cells in markdown_rows(page) if cells[0] == "SELM Iter 3 (Zephyr)"]
    assert (line[1], line[2]) == ("quoted", "24.25")
    assert "iteration 3 (Llama-3)" in page and "iteration 3 (Zephyr)" not in page
    with pytest.raises(UserError, match=r"MODEL=tinyllama: no recipe of it stands for a row of table selm1 .*zephyr"):
        read_filling(SELM1, tmp_path, model="tinyllama")


def test_what_is_missing_is_told_once_by_recipe(tmp_path: Path) -> None:
    write_set(tmp_path / "zephyr-selm/iter3", {"lc_win_rate": measure(None, None, not_run="no judge"), "win_rate": measure(2.0)})
    page = render_paper_table(SELM1, "md", read_filling(SELM1, tmp_path, model="zephyr"))
    assert (
        "- Not evaluated on alpaca, mtbench: zephyr-selm (start, iter0, iter1, iter2, iter3); zephyr-dpo (iter1, iter2, iter3)."
        in page
    )
    assert 'make \\<recipe>-eval SETS="alpaca mtbench"' in page
    assert "- 1 cell not run: no judge." in page
    assert "- 1 cell not run:" in page and page.count("Not evaluated on") == 1


@pytest.mark.parametrize("form", FORMATS)
def test_the_papers_numbers_are_on_every_page_whatever_was_run(tmp_path: Path, form: str) -> None:
    write_set(tmp_path / "zephyr-selm/iter3", {"lc_win_rate": measure(23.9)})
    page = render_paper_table(SELM1, form, read_filling(SELM1, tmp_path, released=True))
    assert all(cell.value in page for cell in SELM1.cells)
