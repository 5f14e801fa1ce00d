"""What a report of several runs is made from: the artifacts that its stage verifies and is identified by."""

from __future__ import annotations

import runpy
from argparse import Namespace
from pathlib import Path

import pytest

from handbook_ext.core.artifacts import manifest_path
from handbook_ext.reports.run_report import read_run
from tests.reports.test_run_report import SCRIPT
from tests.reports.written_run import make_run, write_evaluation, write_manifest


@pytest.mark.parametrize("asked", [None, ["iter1"], ["sft", "iter1"]])
def test_each_runs_own_start_is_an_input(tmp_path: Path, asked: list[str] | None) -> None:
    """Whatever iterations are asked for, and also of a run beside whose start has another name."""
    folders = [make_run(tmp_path / "ours", 2), make_run(tmp_path / "theirs", 2, start="start", recipe="tiny-dpo")]
    for folder in folders:
        for evaluation in folder.glob("*/eval.json"):
            write_manifest(manifest_path(evaluation), "evaluate")
    # Left by the recipe as it was before it started from a checkpoint.
    write_evaluation(folders[1] / "sft", 0.9)
    options = Namespace(runs=folders[:1], beside=folders[1:], iterations=asked, out=tmp_path / "seeds" / "report")
    stage = runpy.run_path(str(SCRIPT))["open_stage"](options)
    read = {str(path.relative_to(tmp_path)) for path in stage.inputs() if path.name == "eval.json"}
    names = {"iter1"} if asked else {"iter0", "iter1"}
    assert read == {
        f"{run}/{name}/eval.json" for run, start in (("ours", "sft"), ("theirs", "start")) for name in {start, *names}
    }
    assert stage.settings.policies == ["sft", *sorted(names)]
    assert [*read_run(folders[1]).policies] == ["start", "iter0", "iter1"]
