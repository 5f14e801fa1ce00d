"""A worker that dies in a stage of several processes: all end, and the repeat makes only the shards that are missing."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from handbook_ext.core.artifacts import manifest_path
from tests.judging.small_pairrm import save_pairrm
from tests.workspace import MICRO, Workspace, changed

RECIPE = changed(MICRO, train="alpha: 0.1, max_length: 96").replace("batch_size: 16", "batch_size: 4")
# All rows in the first iteration, so that its rankings and scores are several shards.
MANY = RECIPE.replace("train_rows: 48", "train_rows: 320").replace("portions: 2", "portions: 1")
MANY = MANY.replace("per_device_train_batch_size: 4", "per_device_train_batch_size: 1")
MANY = MANY.replace("iterations: {", "iterations: {iter0: null, ") + "rank: {ranker: pairrm, model: %s}\n"
TWO = "-m handbook_ext.core.accelerated --config_file recipes/accelerate/ddp-cpu.yaml"


def started(workspace: Workspace, command: str) -> subprocess.Popen[str]:
    """Starts a command of make as it stands, with the interpreter of the tests."""
    words = [word.replace("OMP_NUM_THREADS=1", "") for word in shlex.split(command)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [word for word in words if word], cwd=workspace.folder, env=environment, stderr=subprocess.PIPE, text=True
    )


def shards_of(artifact: Path) -> dict[str, int]:
    """Returns the shards of an artifact by name, and when they were written."""
    folders = (artifact.parent / f".{artifact.name}.partial", artifact)
    while True:
        try:
            return {
                str(path.relative_to(folder)): path.stat().st_mtime_ns
                for folder in folders
                for path in folder.rglob("shard-*.jsonl")
            }
        except FileNotFoundError:  # Just published.
            continue


def kill_one_and_repeat(workspace: Workspace, command: str, artifact: Path, repeat: str | None = None) -> str:
    """Kills a process of a stage after two shards, and repeats it, or has `repeat` finish it; returns what the first said."""
    process = started(workspace, command)
    while len(shards_of(artifact)) < 2:
        assert process.poll() is None, process.stderr.read() if process.stderr else ""
        time.sleep(0.002)
    children = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True, check=True).stdout.split()
    assert len(children) == 2
    os.kill(int(children[-1]), signal.SIGKILL)
    _, said = process.communicate(timeout=60)
    assert process.returncode != 0
    kept = shards_of(artifact)
    assert kept and not manifest_path(artifact).exists()
    again = started(workspace, command if repeat is None else repeat)
    seen: dict[str, int] = {}
    while again.poll() is None:
        seen |= shards_of(artifact)
        time.sleep(0.005)
    assert again.returncode == 0, again.stderr.read() if again.stderr else ""
    assert all(seen.get(name, written) == written for name, written in kept.items())
    assert manifest_path(artifact).is_file()
    return said


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["completions.jsonl", "eval.json"])
def test_the_repeat_makes_what_is_missing(tmp_path: Path, stage: str) -> None:
    workspace = Workspace(tmp_path, RECIPE)
    workspace.run("runs/mine-micro/iter0/eval.json")
    if stage == "eval.json":
        workspace.run("runs/mine-micro/iter1/policy/manifest.json")
    name = f"runs/mine-micro/iter1/{stage}"
    done = workspace.make("-n", name, "LAUNCH=zero3-cpu")
    [command] = [line for line in done.stdout.splitlines() if "scripts/" in line]
    assert "-m handbook_ext.core.per_device --processes 2 scripts/" in command
    said = kill_one_and_repeat(workspace, command, tmp_path / name)
    assert "error: process 1 of 2 was ended by SIGKILL" in said


@pytest.mark.slow
def test_rankings_and_scores_are_completed_as_well(tmp_path: Path) -> None:
    pairrm = save_pairrm(tmp_path / "pairrm", ["name two dark cheeses here ruvi dore served fresh upstairs"] * 9, vocab_size=60)
    workspace = Workspace(tmp_path / "work", MANY % pairrm)
    run = tmp_path / "work" / "runs" / "mine-micro"
    workspace.run("runs/mine-micro/iter1/completions.jsonl")
    # As on several GPUs: rankings by a process per device, scores by accelerate.
    rank = ".venv/bin/python -m handbook_ext.core.per_device --processes 2 scripts/rank_completions.py runs/mine-micro/iter1"
    alone = ".venv/bin/python scripts/%s runs/mine-micro/iter1"
    assert "error: process 1 of 2 was ended by SIGKILL" in kill_one_and_repeat(
        workspace, rank, run / "iter1" / "rankings.jsonl", alone % "rank_completions.py"
    )
    workspace.run("runs/mine-micro/iter1/pairs.jsonl")
    score = f".venv/bin/python {TWO} scripts/score_completions.py runs/mine-micro/iter1"
    assert "error: process 1 of 2 was ended by SIGKILL" in kill_one_and_repeat(
        workspace, score, run / "iter1" / "logprobs", alone % "score_completions.py"
    )
