"""What make says once a goal is reached."""

from __future__ import annotations

import json
from pathlib import Path

from handbook_ext.reports.endings import Ending, read_ending

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
