"""`make CLUSTER=slurm`: the stages of a run as jobs, over a stub of Slurm's commands that runs their scripts for real."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml

from tests.cluster.cluster_run import LABELS, ClusterRun
from tests.cluster.stub import StubCluster


@pytest.fixture
def cluster(tmp_path: Path) -> StubCluster:
    return StubCluster(tmp_path / "cluster")


@pytest.fixture
def run(tmp_path: Path, cluster: StubCluster) -> ClusterRun:
    return ClusterRun(tmp_path / "work", cluster.environment)


def errors(said: str) -> list[str]:
    return [line for line in said.splitlines() if line.startswith("error:")]


def test_n_prints_the_scripts_and_submits_nothing(run: ClusterRun, cluster: StubCluster) -> None:
    done = run.submit("-n")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("#!/bin/bash\n#SBATCH --job-name=mine-micro.") == len(LABELS)
    assert (
        "# runs/mine-micro/slurm/iter2.train.sh: iter2/policy, after iter2/pairs.jsonl iter2/logprobs iter1/policy" in done.stdout
    )
    assert "exec .venv/bin/python scripts/train_policy.py runs/mine-micro/iter2\n" in done.stdout
    assert "--gres" not in done.stdout  # The recipe's launch is a CPU.
    assert cluster.jobs() == [] and not (run.run_folder / "slurm").exists()


def test_each_stage_is_submitted_once_after_what_it_reads(run: ClusterRun, cluster: StubCluster) -> None:
    done = run.submit()
    assert done.returncode == 0, done.stderr
    assert set(cluster.states()) == LABELS and len(cluster.jobs()) == len(LABELS)
    ids = {job["name"].split(".", 1)[1].rpartition(".")[0]: job["id"] for job in cluster.jobs()}
    by_id = {job["id"]: job for job in cluster.jobs()}
    assert set(by_id[ids["iter1.train"]]["after"]) == {ids["iter1.select"], ids["iter1.score"], ids["iter0.train"], ids["check"]}
    assert all(job["kill"] for job in cluster.jobs() if job["after"])
    said = [line for line in done.stderr.splitlines() if " submitted: " in line]
    assert len(said) == len(LABELS)
    log = f"runs/mine-micro/slurm/iter2.train.{ids['iter2.train']}.log"
    assert any(line.startswith(f"{ids['iter2.train']} submitted: iter2/policy, after ") and line.endswith(log) for line in said)
    assert f"mine-micro: {len(LABELS)} submitted, 0 already in the queue" in done.stderr
    assert json.loads((run.run_folder / "slurm/jobs.json").read_text())["iter2/policy"]["log"] == log
    again = run.submit()
    assert again.returncode == 0 and len(cluster.jobs()) == len(LABELS)
    assert f"mine-micro: 0 submitted, {len(LABELS)} already in the queue" in again.stderr


def test_a_goal_that_make_itself_must_make_is_refused(run: ClusterRun, cluster: StubCluster) -> None:
    for goal in ("mine-micro-seeds", "runs/mine-micro/iter1/pairs.jsonl"):
        done = run.submit(goal=goal)
        assert done.returncode != 0 and len(errors(done.stderr)) == 1, done.stderr
    assert cluster.jobs() == []


HOSTILE = ["$(touch PWND)", "`touch PWND`", "$(shell touch PWND)", "'; touch PWND; '", "$\nrm \\", "%j\n#SBATCH --wrap=x"]


@pytest.mark.parametrize("title", HOSTILE)
def test_no_text_of_the_command_line_gets_into_a_script(run: ClusterRun, cluster: StubCluster, title: str) -> None:
    said = json.dumps(title).replace("\\", "\\\\").replace('"', '\\"')
    for options in (("-n",), ()):
        done = run.submit(*options, f'SET=report.title="{said}"', goal="mine-micro-iter0")
        assert done.returncode == 0, done.stderr
        assert not list(run.folder.rglob("PWND"))
    assert len(cluster.jobs()) == 6
    for job in cluster.jobs():
        # Of the title only a label is left, in the names of folder and job.
        assert re.fullmatch(r"[\w#!/.=%+,\n -]*", job["script"]) and job["script"].count("#SBATCH") == 6
    title_file = next(run.folder.glob("runs/mine-micro+*/report.yaml"))
    assert yaml.safe_load(title_file.read_text())["report"]["title"] == title


@pytest.mark.slow
def test_three_iterations_with_a_failure_and_its_repeat(run: ClusterRun, cluster: StubCluster) -> None:
    assert run.submit().returncode == 0
    # On its way, a stage in the middle finds its input damaged.
    while "iter1.generate" not in cluster.work(1)[0]:
        pass
    completions = run.run_folder / "iter1/completions.jsonl"
    whole = completions.read_text()
    completions.write_text(whole.replace("a", "b", 1))
    cluster.work()
    states = cluster.states()
    assert states["iter1.rank"] == "FAILED" and states["iter0.evaluate"] == "COMPLETED"
    for label in LABELS - {"iter1.generate", "iter1.rank", "sft.evaluate"}:
        after = label.startswith(("iter1", "iter2")) or label == "report"
        assert states[label] == ("CANCELLED" if after else "COMPLETED"), label
    [log] = (run.run_folder / "slurm").glob("iter1.rank.*.log")
    assert re.search(r"^error: .*completions.jsonl", log.read_text(), re.MULTILINE)
    assert not (run.run_folder / "iter1/rankings.jsonl").exists() and not (run.run_folder / "iter2/policy").exists()

    completions.write_text(whole)
    before = len(cluster.jobs())
    done = run.submit()
    assert done.returncode == 0, done.stderr
    fresh = [job["name"].partition(".")[2].rpartition(".")[0] for job in cluster.jobs()[before:]]
    assert set(fresh) == {label for label in LABELS if label.startswith(("iter1", "iter2"))} - {"iter1.generate"} | {"report"}
    cluster.work()
    assert set(cluster.states().values()) == {"COMPLETED"}
    assert run.lacking() == []
    assert (run.run_folder / "report/report.html").exists() and not list(run.run_folder.rglob(".*.partial"))
    done = run.submit()
    assert "mine-micro is finished; nothing was submitted" in done.stderr and len(cluster.jobs()) == before + len(fresh)
    # Nothing is left for make itself.
    assert run.commands("mine-micro") == []


@pytest.mark.slow
def test_training_over_two_nodes(run: ClusterRun, cluster: StubCluster) -> None:
    done = run.submit("LAUNCH=ddp-cpu", "SET=slurm.stages.train.nodes=2", goal="mine-micro-iter0")
    assert done.returncode == 0, done.stderr
    cluster.work()
    assert set(cluster.states().values()) == {"COMPLETED"}
    manifest = json.loads((run.run_folder / "iter0/policy/manifest.json").read_text())
    assert manifest["launch"] == {"launcher": "accelerate", "processes": 2, "name": "ddp-cpu"} and manifest["processes"] == 2
