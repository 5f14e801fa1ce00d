"""The same runs through the true Slurm, on two nodes of the loopback interface: `make test-slurm`."""

from __future__ import annotations

import json
import os
import subprocess
import time
from pathlib import Path

import pytest

from tests.cluster.cluster_run import LABELS, THREE, ClusterRun

# tests/cluster/true_slurm.sh sets it: no test submits anything to a cluster that is not its own.
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif("TRUE_SLURM" not in os.environ, reason="runs under tests/cluster/true_slurm.sh, which starts Slurm"),
]
# Ranking fails until somebody puts a file there.
FAILING = THREE + 'slurm: {time: "0:10:00", mem: 100M, stages: {rank: {setup: ["test -e ready"]}}}\n'


def queue() -> list[str]:
    """The names of the jobs that wait or run."""
    command = ["squeue", "--me", "--noheader", "--format=%j"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()


def await_end(seconds: float = 400) -> None:
    """Returns once the queue is empty."""
    until = time.monotonic() + seconds
    while queue():
        assert time.monotonic() < until, queue()
        time.sleep(0.5)


def stages(said: str) -> set[str]:
    """The stages that were submitted, by their logs."""
    return {line.rpartition("/")[2].rpartition(".")[0].rpartition(".")[0] for line in said.splitlines() if " submitted: " in line}


def test_three_iterations_with_a_failure_and_its_repeat(tmp_path: Path) -> None:
    run = ClusterRun(tmp_path, recipe=FAILING)
    done = run.submit()
    assert done.returncode == 0, done.stderr
    assert stages(done.stderr) == LABELS
    assert " 0 submitted, " in run.submit().stderr
    await_end()
    assert (run.run_folder / "iter0/eval.json").exists() and (run.run_folder / "iter1/completions.jsonl").exists()
    assert not (run.run_folder / "iter1/rankings.jsonl").exists()
    assert not (run.run_folder / "iter2/policy").exists()
    (run.folder / "ready").touch()
    done = run.submit()
    assert done.returncode == 0, done.stderr
    later = {label for label in LABELS if label.startswith(("iter1", "iter2"))} | {"report"}
    assert stages(done.stderr) == later - {"iter1.generate"}
    await_end()
    assert run.lacking() == [] and (run.run_folder / "report/report.html").exists()
    assert "is finished; nothing was submitted" in run.submit().stderr
    assert run.commands("mine-micro") == []


def test_a_job_that_is_cancelled_takes_its_followers_along(tmp_path: Path) -> None:
    run = ClusterRun(tmp_path, recipe=THREE + 'slurm: {stages: {data: {setup: ["sleep 60"]}}}\n')
    run.submit(goal="mine-micro-iter0")
    records = json.loads((run.run_folder / "slurm/jobs.json").read_text())
    subprocess.run(["scancel", records["data/rows"]["id"]], check=True)
    await_end(60)
    assert not (run.run_folder / "data/rows").exists()


def test_a_stage_over_two_nodes(tmp_path: Path) -> None:
    run = ClusterRun(tmp_path)
    done = run.submit("LAUNCH=ddp-cpu", "SET=slurm.nodes=2", goal="mine-micro-iter1")
    assert done.returncode == 0, done.stderr
    await_end()
    assert run.lacking() and (run.run_folder / "iter1/policy/manifest.json").exists()
    for artifact, launcher in (("policy/manifest.json", "accelerate"), ("completions.manifest.json", "per_device")):
        launch = json.loads((run.run_folder / "iter1" / artifact).read_text())["launch"]
        named = {"name": "ddp-cpu"} if launcher == "accelerate" else {}
        assert launch == {"launcher": launcher, "processes": 2, **named}


def test_a_request_that_no_node_can_meet_is_told(tmp_path: Path) -> None:
    run = ClusterRun(tmp_path)
    done = run.submit("SET=slurm.partition=elsewhere")
    [line] = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert done.returncode != 0 and "data/rows was not submitted: sbatch refused (" in line and "invalid partition" in line
    assert queue() == []


def test_slurm_takes_every_line_of_a_script_for_gpus_on_several_nodes(tmp_path: Path) -> None:
    asked = (
        "slurm.nodes=2 slurm.gpus_per_node=2 slurm.mem=500M slurm.time=1-0 slurm.options=[--exclusive] slurm.stages.rank.nodes=1"
    )
    done = ClusterRun(tmp_path).submit("-n", f"SET={asked}", goal="zephyr-selm-iter1")
    assert done.returncode == 0, done.stderr
    scripts = done.stdout.split("#!/bin/bash\n")[1:]
    assert sum("--nodes=2\n" in each and "--gres=gpu:2\n" in each for each in scripts) >= 5
    for script in scripts:
        words = ["sbatch", "--test-only"]
        said = subprocess.run(words, input=f"#!/bin/bash\n{script}", capture_output=True, text=True, check=False)
        assert said.returncode == 0, f"{script}\n{said.stderr}"
