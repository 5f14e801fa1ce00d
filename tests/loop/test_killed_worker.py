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

from tests.workspace import MICRO, Workspace, changed

RECIPE = changed(MICRO, train="alpha: 0.1, max_length: 96").replace("batch_size: 16", "batch_size: 4")


def started(workspace: Workspace, command: str) -> subprocess.Popen[str]:
    """Starts a command of make as it stands, with the interpreter of the tests."""
    words = [word.replace("OMP_NUM_THREADS=1", "") for word in shlex.split(command)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [word for word in words if word], cwd=workspace.folder, env=environment, stderr=subprocess.PIPE, text=True
    )


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["completions.jsonl", "eval.json"])
def test_the_repeat_makes_what_is_missing(tmp_path: Path, stage: str) -> None:
    workspace = Workspace(tmp_path, RECIPE)
    run = tmp_path / "runs" / "mine-micro"
    workspace.run("runs/mine-micro/iter0/eval.json")
    name = f"runs/mine-micro/iter1/{stage}" if stage == "completions.jsonl" else "runs/mine-micro/iter1/eval.json"
    if stage == "eval.json":
        workspace.run("runs/mine-micro/iter1/policy/manifest.json")
    done = workspace.make("-n", name, "LAUNCH=zero3-cpu")
    [command] = [line for line in done.stdout.splitlines() if "scripts/" in line]
    assert "-m handbook_ext.core.per_device --processes 2 scripts/" in command
    process = started(workspace, command)
    shards = run / "iter1" / f".{stage}.partial"
    while len(list(shards.rglob("shard-*.jsonl"))) < 2:
        assert process.poll() is None, process.stderr.read() if process.stderr else ""
        time.sleep(0.005)
    children = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True, check=True).stdout.split()
    os.kill(int(children[-1]), signal.SIGKILL)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 137 and "error: process 1 of 2 ended with -9" in said
    kept = {path: path.stat().st_mtime_ns for path in shards.rglob("shard-*.jsonl")}
    assert kept and not (run / "iter1" / stage).exists()
    again = started(workspace, command)
    seen: dict[Path, int] = {}
    while again.poll() is None:
        for path in list(shards.rglob("shard-*.jsonl")):
            try:
                seen[path] = path.stat().st_mtime_ns
            except FileNotFoundError:
                break
        time.sleep(0.005)
    assert again.returncode == 0
    assert all(seen.get(path, time_before) == time_before for path, time_before in kept.items())
    assert (run / "iter1" / stage).is_file()
