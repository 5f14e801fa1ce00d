"""What a run's report says of its paper: the cells that it stands for, their verdicts counted, and what was done otherwise."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from handbook_ext.core.errors import UserError
from handbook_ext.recipes.overrides import parse_set
from handbook_ext.recipes.run import resolve
from handbook_ext.reports.reproduction import reproduction
from tests.reports.set_files import GPT4_TURBO, measure, write_set
from tests.reports.test_deviations import write_run
from tests.workspace import ROOT

CELL = ("selm1", "SELM Iter 3 (Zephyr)", "AlpacaEval 2 LC")


@pytest.fixture(autouse=True)
def _at_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    """Recipes are found from the repository's root."""
    monkeypatch.chdir(ROOT)


def by_cell(found: dict[str, Any] | None) -> dict[tuple[str, str, str], dict[str, Any]]:
    """The cells of a run by table, row and column."""
    assert found is not None
    return {(each["table"], each["row"], each["column"]): each for each in found["cells"]}


def test_a_recipe_that_stands_in_no_table_has_no_paper(tmp_path: Path) -> None:
    assert reproduction(tmp_path / "tiny-selm", "tiny-selm") is None
    # A try is another recipe, whatever it was begun from.
    assert reproduction(tmp_path / "zephyr-selm+seed-7", "zephyr-selm+seed-7") is None


def test_the_cells_of_a_run_are_those_that_its_recipe_stands_for(tmp_path: Path) -> None:
    write_set(tmp_path / "zephyr-selm/iter3", {"lc_win_rate": measure(24.0, 0.5)}, overlap=3)
    write_set(tmp_path / "zephyr-dpo/iter3", {"lc_win_rate": measure(22.0, 0.5)})
    write_set(tmp_path / "zephyr-selm/released-iter3", {"lc_win_rate": measure(1.0, 0.5)})
    found = reproduction(tmp_path / "zephyr-selm", "zephyr-selm")
    cells = by_cell(found)
    assert {each["table"] for each in cells.values()} >= {"selm1", "selm2", "selm-cards", "selm-deltas"}
    assert not any(row.startswith("DPO Iter") for _, row, _ in cells)
    assert cells[CELL] == {
        "table": CELL[0], "row": CELL[1], "column": CELL[2], "policy": "iter3", "paper": "24.25",
        "ours": "24.00\u2020 [23.02, 24.98]", "verdict": "reproduced", "why": "", "seeds": 1,
    }  # fmt: skip
    write_set(tmp_path / "zephyr-selm-seed2/iter3", {"lc_win_rate": measure(25.0, 0.5)})
    more = reproduction(tmp_path / "zephyr-selm", "zephyr-selm")
    assert by_cell(more)[CELL]["seeds"] == 2
    assert more is not None and more["sentence"].endswith(" Up to 2 seeds beside this run are pooled in a cell.")
    start = cells["selm1", "Zephyr-7B-SFT", "AlpacaEval 2 LC"]
    assert (start["policy"], start["ours"], start["verdict"]) == ("start", "not run", "not run")
    assert start["why"].endswith("make zephyr-selm-start-eval SETS=alpaca")


def test_the_sentence_counts_each_verdict_of_what_was_run(tmp_path: Path) -> None:
    count = len(by_cell(reproduction(tmp_path / "zephyr-selm", "zephyr-selm")))
    nothing = reproduction(tmp_path / "zephyr-selm", "zephyr-selm")
    whole = f"Of the {count} cells of the papers' tables that zephyr-selm stands for,"
    assert nothing is not None and nothing["sentence"] == f"{whole} 0 were run."
    other = GPT4_TURBO | {"model": "longer-wins"}
    write_set(tmp_path / "zephyr-selm/iter2", {"win_rate": measure(60.0, 0.1), "lc_win_rate": measure(22.0, 0.1)})
    write_set(tmp_path / "zephyr-selm/iter3", {"win_rate": measure(21.0, 0.1, judge=other)})
    found = reproduction(tmp_path / "zephyr-selm", "zephyr-selm")
    words = [each["verdict"] for each in by_cell(found).values()]
    # The length-controlled win rate stands on the authors' card as well.
    assert len(words) - words.count("not run") == 4
    told = {word: words.count(word) for word in ("reproduced", "within noise", "not reproduced", "not comparable")}
    assert told["not comparable"] == 1 and told["not reproduced"] >= 1
    parts = ", ".join(f"{number} {word}" for word, number in told.items() if number)
    assert found is not None and found["sentence"] == f"{whole} 4 were run: {parts}."
    why = by_cell(found)["selm1", "SELM Iter 3 (Zephyr)", "AlpacaEval 2 WR"]["why"]
    assert why.startswith("another judge: longer-wins")


def test_what_a_run_did_otherwise_is_told_once_and_is_its_own(tmp_path: Path) -> None:
    write_run(tmp_path / "zephyr-selm-seed7", resolve("zephyr-selm", overrides=parse_set("seed=7")))
    found, other = (reproduction(tmp_path / name, "zephyr-selm") for name in ("zephyr-selm-seed7", "zephyr-selm"))
    assert found is not None and other is not None and other["deviations"] == []
    whats = [each["what"] for each in found["deviations"]]
    # The recipe stands in several tables, each of which tells all of them.
    assert "revision of the data set" in whats and len(whats) == len(set(whats))
    [seed] = [each for each in found["deviations"] if each["what"] == "seed"]
    assert (seed["paper"], seed["ours"]) == ("42", "7")


def test_a_part_of_a_set_is_told_beside_the_verdict(tmp_path: Path) -> None:
    write_run(tmp_path / "zephyr-selm", resolve("zephyr-selm"))
    write_set(tmp_path / "zephyr-selm/iter3", {"lc_win_rate": measure(24.0, 0.5)}, prompts=100)
    found = reproduction(tmp_path / "zephyr-selm", "zephyr-selm")
    assert found is not None
    [part] = [each for each in found["deviations"] if each["what"] == "prompts of alpaca"]
    assert (part["paper"], part["ours"], part["where"]) == ("805", "100", "iter3/alpaca")


def test_a_damaged_evaluation_is_an_error(tmp_path: Path) -> None:
    write_set(tmp_path / "zephyr-selm/iter3", {"lc_win_rate": measure(24.0)}).write_text("{}")
    with pytest.raises(UserError, match="is an evaluation of format None"):
        reproduction(tmp_path / "zephyr-selm", "zephyr-selm")
