"""A real micro run, evaluated on prompt sets by a grader on loopback: its ledger holds, and not with another answer."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path

import pytest

from handbook_ext.reports.ledger_archive import Ledger, archive_bytes, read_ledger
from tests.judging.rule_judge import grading_server
from tests.loop.test_sets import recipe, workspace
from tests.workspace import Workspace

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def submitted(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """A run with its report and its sets' evaluations, packed by make's own goal."""
    with grading_server() as server:
        space = workspace(tmp_path_factory.mktemp("submitted"), recipe(server.url))
        space.run("mine-micro-eval")
        space.run("mine-micro-submit")
    return space


def verify(space: Workspace, file: Path) -> tuple[int, str]:
    """Exit status and output of the check."""
    return space.execute(shlex.join([sys.executable, "scripts/verify_ledger.py", str(file)]))


def test_the_ledger_of_a_real_run_holds(submitted: Workspace) -> None:
    file = submitted.folder / "runs/mine-micro/mine-micro.ledger.zip"
    status, said = verify(submitted, file)
    assert status == 0, said
    assert "measured     iter1 bench turn2: " in said and "measured     iter1 small vs_start: " in said
    assert "not held" not in said and "verdict: mine-micro is one whole" in said
    assert not [name for name in read_ledger(file).files if "safetensors" in name]


def test_one_altered_answer_is_refused(submitted: Workspace, tmp_path: Path) -> None:
    ledger = read_ledger(submitted.folder / "runs/mine-micro/mine-micro.ledger.zip")
    name = "iter1/bench/eval.json"
    content = json.loads(ledger.files[name])
    content["rows"][0]["answers"][0]["text"] += " and more"
    (tmp_path / "x.ledger.zip").write_bytes(
        archive_bytes(Ledger(ledger.run, {**ledger.files, name: json.dumps(content).encode()}))
    )
    status, said = verify(submitted, tmp_path / "x.ledger.zip")
    assert status == 2
    assert f"error: {tmp_path}/x.ledger.zip: manifests: {name}: eval.json is not what its manifest says" in said
