"""What make says once a goal is reached."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

import pytest

from handbook_ext.core.errors import UserError
from handbook_ext.reports.endings import Ending, _aligned, _cells, read_ending
from tests.recipe_folder import ROOT

PAGE = """# A run

**Verdict.**

| policy | reward | win % vs SFT |
|---|---:|---:|
| sft | 0.1 [0.0, 0.2] | - |
| **iter1** | 0.25 [0.2, 0.3] | 51.0 |

| another | table |
|---|---|
"""


def report(folder: Path) -> Path:
    """A run with a report."""
    (folder / "report").mkdir()
    (folder / "report/report.md").write_text(PAGE)
    (folder / "report/summary.json").write_text(json.dumps({"verdict": "Verdict."}))
    return folder


def test_a_report_ends_with_its_verdict_its_first_table_and_where_it_lies(tmp_path: Path) -> None:
    ending = Ending(str(report(tmp_path)), ("report", "iter1/small/eval.json"))
    assert ending.text().splitlines() == [
        "Verdict.",
        "",
        "policy           reward  win % vs SFT",
        "sft      0.1 [0.0, 0.2]             -",
        "iter1   0.25 [0.2, 0.3]          51.0",
        "",
        f"report: {tmp_path}/report/report.html",
        f"evaluation: {tmp_path}/iter1/small/eval.json",
    ]
    assert ending.text(30).splitlines()[2:9] == [
        "policy           reward",
        "sft      0.1 [0.0, 0.2]",
        "iter1   0.25 [0.2, 0.3]",
        "",
        "policy  win % vs SFT",
        "sft                -",
        "iter1           51.0",
    ]


def test_a_policy_ends_with_where_it_lies_and_what_goes_on_from_it(tmp_path: Path) -> None:
    ending = Ending("runs/x", ("iter1/policy",), "make x-report SET='train.beta=0.5 a=1'")
    assert ending.text() == "policy: runs/x/iter1/policy\nnext: make x-report SET='train.beta=0.5 a=1'\n"
    (tmp_path / "it.json").write_text(ending.record())
    assert read_ending(tmp_path / "it.json") == ending


def test_a_damaged_report_is_no_traceback(tmp_path: Path) -> None:
    report(tmp_path)
    (tmp_path / "report/summary.json").write_text("{")
    assert Ending(str(tmp_path), ("report",)).text() == f"report: {tmp_path}/report/report.html\n"


def test_a_table_fills_the_terminal_and_a_column_wider_than_it_stands_alone() -> None:
    rows = [["policy", "reward", "tokens"], ["sft", "1", "2"]]
    assert _aligned(rows, 22) == ["policy  reward  tokens", "sft          1       2"]
    assert _aligned(rows, 21) == ["policy  reward", "sft          1", "", "policy  tokens", "sft          2"]
    assert _aligned(rows, 3) == _aligned(rows, 21)


def test_a_bar_within_a_cell_is_a_letter_of_it() -> None:
    assert _cells(r"| a \| b | **c** |") == ["a | b", "c"]


def test_the_script_shows_what_was_recorded_and_refuses_anything_else(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main = runpy.run_path(str(ROOT / "scripts/show_goal.py"))["main"]
    (tmp_path / "it.json").write_text(Ending("runs/x", ("iter1/policy",), "make x").record())
    main([str(tmp_path / "it.json")])
    assert capsys.readouterr().out == "policy: runs/x/iter1/policy\nnext: make x\n"
    for words in ([], [str(tmp_path / "none.json")], ["a", "b"]):
        with pytest.raises(UserError, match=r"show_goal\.py needs one file, which make has written"):
            main(words)
