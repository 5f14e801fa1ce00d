"""A finished run of which a file was deleted, changed or copied from elsewhere: make remedies it, or names it."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from tests.workspace import SELM, Workspace


@pytest.fixture
def copy(selm: Workspace, copy_of: Callable[[Workspace, str], Workspace]) -> Workspace:
    return copy_of(selm, SELM)


def test_a_deleted_page_is_made_again_a_changed_policy_is_named_and_verified(copy: Workspace) -> None:
    """Each was "Nothing to be done"."""
    run = copy.folder / "runs/mine-micro"
    assert copy.make("mine-micro-verify").stdout.endswith("all 15 artifacts are as they were made; 0 were not made yet\n")
    (run / "report/report.html").unlink()
    assert [command.split()[-2:] for command in copy.run("mine-micro")] == [["scripts/write_report.py", "runs/mine-micro"]]
    assert (run / "report/report.html").is_file()
    weights = run / "sft/policy/model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\1")
    done = copy.make("mine-micro")
    errors = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert done.returncode != 0 and len(errors) == 1
    assert errors[0].startswith("error: runs/mine-micro/sft/policy is not what its stage made: model.safetensors is changed;")
    verified = copy.make("mine-micro-verify")
    assert verified.returncode != 0
    assert "changed  sft/policy: model.safetensors is changed\n" in verified.stdout


def test_a_policy_of_another_learning_rate_is_not_evaluated_and_make_trains_again(copy: Workspace) -> None:
    policy = copy.folder / "runs/mine-micro/iter1/policy"
    manifest = json.loads((policy / "manifest.json").read_text())
    manifest["settings"]["train"]["learning_rate"] = 4e-3
    (policy / "manifest.json").write_text(json.dumps(manifest))
    status, said = copy.execute(".venv/bin/python scripts/evaluate_policy.py runs/mine-micro/iter1")
    assert status == 2
    assert "iter1/policy is stale: it was made with train.learning_rate 0.004, and " in said
    assert "run make, which makes it again" in said
    assert "train_policy.py" in copy.commands("mine-micro")[0]
