"""Submitting the jobs of a run: each once, what waits in vain anew, and one line where Slurm refuses."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from handbook_ext.core.errors import UserError
from handbook_ext.graph import slurm_queue
from handbook_ext.graph.slurm import Job
from handbook_ext.graph.slurm_queue import read_queue, submit, submitting
from tests.cluster.stub import StubCluster

RUN = Path("runs/mine")


def job(artifact: str, *after: str, body: str = "true", settings: str = "s") -> Job:
    name = f"mine.{artifact}.0a1b"
    log = f"runs/mine/slurm/{artifact}.%j.log"
    script = f"#!/bin/bash\n#SBATCH --job-name={name}\n#SBATCH --output={log}\n{body}\n"
    return Job(artifact, name, f"runs/mine/slurm/{artifact}.sh", log, script, after, settings)


CHAIN = [job("a"), job("b", "a"), job("c", "a", "b")]


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StubCluster:
    stub = StubCluster(tmp_path / "cluster")
    for name, value in stub.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs/mine/slurm").mkdir(parents=True)
    return stub


def ids(cluster: StubCluster, state: str = "PENDING") -> dict[str, str]:
    """The jobs in a state, by artifact."""
    return {each["name"].split(".")[1]: each["id"] for each in cluster.jobs() if each["state"] == state}


def again(jobs: list[Job]) -> tuple[int, int]:
    return submit(jobs, RUN, read_queue())


def test_a_repeat_leaves_what_waits_and_runs(cluster: StubCluster) -> None:
    assert again(CHAIN) == (3, 0)
    assert [each["after"] for each in cluster.jobs()] == [[], ["101"], ["101", "102"]]
    assert again(CHAIN) == (0, 3)
    cluster.change("101", state="RUNNING")
    assert again(CHAIN) == (0, 3)
    cluster.change("101", state="COMPLETED")
    assert again([replace(CHAIN[1], after=()), replace(CHAIN[2], after=("b",))]) == (0, 2)


def test_what_failed_is_submitted_anew_and_so_is_what_waits_for_it(
    cluster: StubCluster, capsys: pytest.CaptureFixture[str]
) -> None:
    again(CHAIN)
    cluster.change("101", state="FAILED")  # The queue has not cancelled the others yet.
    assert again(CHAIN) == (3, 0)
    assert ids(cluster, "CANCELLED") == {"b": "102", "c": "103"} and ids(cluster) == {"a": "104", "b": "105", "c": "106"}
    assert "cancelled 102 103, which waited for a job that is no longer there" in capsys.readouterr().err
    cluster.change("105", reason="DependencyNeverSatisfied")
    assert again(CHAIN) == (2, 1)


def test_one_that_is_just_ending_is_over(cluster: StubCluster) -> None:
    again(CHAIN)
    cluster.change("101", state="COMPLETING")
    assert again(CHAIN) == (3, 0)


def test_a_changed_stage_replaces_one_that_waits_and_refuses_one_that_runs(cluster: StubCluster) -> None:
    again(CHAIN)
    longer = [CHAIN[0], replace(CHAIN[1], script=CHAIN[1].script + "# --time=2\n"), CHAIN[2]]
    assert again(longer) == (2, 1)
    changed = [replace(longer[0], settings="other"), *longer[1:]]
    assert again(changed) == (3, 0)
    cluster.change(ids(cluster)["a"], state="RUNNING")
    assert again(changed) == (0, 3)
    with pytest.raises(
        UserError, match=r"job 106 makes a with settings that have changed since; wait for its end, or scancel 106"
    ):
        again([replace(changed[0], settings="third"), *changed[1:]])


def test_a_submission_whose_answer_was_lost_is_found_by_its_name(cluster: StubCluster) -> None:
    again(CHAIN)
    record = RUN / "slurm" / "jobs.json"
    known = json.loads(record.read_text())
    record.write_text(json.dumps({"a": known["a"]}))
    cluster.change("101", state="RUNNING")
    assert again(CHAIN) == (2, 1)
    assert ids(cluster) == {"b": "104", "c": "105"} and ids(cluster, "CANCELLED") == {"b": "102", "c": "103"}
    record.unlink()
    assert again(CHAIN[:1]) == (0, 1)  # It runs, whoever submitted it.


def test_a_refusal_is_one_line_and_what_was_submitted_stays(cluster: StubCluster) -> None:
    cluster.say("sbatch", 'case "$*" in */b.sh) echo "sbatch: error: invalid account" >&2; exit 1;; esac')
    with pytest.raises(UserError) as told:
        again(CHAIN)
    assert str(told.value) == (
        "b was not submitted: sbatch refused (sbatch: error: invalid account); correct the section slurm of the recipe, or ask "
        "Slurm, then repeat; 1 before it stay in the queue (scancel 101 takes them out)"
    )
    assert ids(cluster) == {"a": "101"}
    path = cluster.folder / "bin" / "sbatch"
    path.write_text(path.read_text().replace('case "$*"', 'case ""'))
    assert again(CHAIN) == (2, 1)


def test_no_answer_no_command_and_an_answer_that_is_no_id_are_one_line(
    cluster: StubCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster.say("sbatch", "echo Submitted; exit 0")
    with pytest.raises(UserError, match="'Submitted', which is no job's id"):
        again(CHAIN)
    monkeypatch.setattr(slurm_queue, "PATIENCE", 0.2)
    cluster.say("squeue", "exec sleep 5")
    with pytest.raises(UserError, match=r"squeue gave no answer in 0.2 s; repeat"):
        read_queue()
    (cluster.folder / "bin" / "squeue").unlink()
    monkeypatch.setenv("PATH", f"{cluster.folder / 'bin'}")
    with pytest.raises(UserError, match="squeue is not here; run make where Slurm's commands are"):
        read_queue()


def test_the_name_of_a_cluster_behind_an_id_is_left_out(cluster: StubCluster) -> None:
    cluster.say("sbatch", 'echo "7;west"; exit 0')
    again(CHAIN[:1])
    assert json.loads((RUN / "slurm/jobs.json").read_text())["a"]["id"] == "7"


def test_jobs_of_others_in_the_queue_are_none_of_ours(cluster: StubCluster) -> None:
    again([replace(each, name=each.name.replace("0a1b", "ffff")) for each in CHAIN])
    (RUN / "slurm/jobs.json").unlink()
    assert again(CHAIN) == (3, 0) and len(ids(cluster)) == 3 and len(cluster.jobs()) == 6


BODY = """
import sys
from pathlib import Path
from handbook_ext.graph.slurm_queue import submitting
from tests.graph.test_slurm_queue import CHAIN, RUN, again
with submitting(RUN):
    print(again(CHAIN))
"""


def test_of_two_at_once_the_second_finds_the_jobs_of_the_first(cluster: StubCluster, await_text: Callable[..., None]) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[2]), *sys.path])}
    with submitting(RUN):
        others = [
            subprocess.Popen(
                [sys.executable, "-c", BODY], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
            )
            for _ in range(2)
        ]
        await_text(others)
        assert cluster.jobs() == []
    said = [process.communicate(timeout=60)[0].strip() for process in others]
    assert sorted(said) == ["(0, 3)", "(3, 0)"] and len(cluster.jobs()) == 3


@pytest.fixture
def await_text() -> Callable[..., None]:
    """Returns a function that waits until each process says that it waits."""

    def wait(processes: list[subprocess.Popen[str]]) -> None:
        until = time.monotonic() + 60
        for process in processes:
            assert process.stderr is not None and time.monotonic() < until
            while "waiting for another make that submits runs/mine" not in process.stderr.readline():
                assert process.poll() is None

    return wait
