"""The queue of a cluster: which jobs of a run are in it, and putting the others there, each once.

What the queue says is true; `jobs.json` in the run's folder remembers what each job waits for and was submitted with. Jobs are
found by their name, so one whose submission nobody heard the answer of is found as well.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from handbook_ext.core.artifacts import json_object
from handbook_ext.core.errors import UserError
from handbook_ext.core.jsonl import write_json
from handbook_ext.graph.makefile import replaced
from handbook_ext.graph.slurm import FOLDER, Job

PATIENCE = 300  # Seconds for an answer; Slurm's own commands give up after about 100.
WAITING, ENDING = "PENDING", "COMPLETING"
NEVER = "DependencyNeverSatisfied"


@dataclass(frozen=True)
class Queued:
    """A job in the queue, and why it waits."""

    id: str
    state: str
    reason: str
    name: str


@contextmanager
def submitting(folder: Path) -> Iterator[None]:
    """Has others that submit the same run wait until this one has: of two at once the second finds the jobs of the first."""
    place = folder / FOLDER
    place.mkdir(parents=True, exist_ok=True)
    # A file open for writing: over NFS, flock takes no other, and then it holds on all nodes.
    with (place / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            sys.stderr.write(f"waiting for another make that submits {folder}\n")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def read_queue() -> list[Queued]:
    """Returns this user's jobs that wait or run; one that is just ending has left a whole artifact, or none."""
    said = _asked(["squeue", "--me", "--noheader", "--format=%i|%T|%r|%j"])
    jobs = [Queued(*line.split("|", 3)) for line in said.splitlines() if line.count("|") >= 3]
    return [job for job in jobs if job.state != ENDING]


def submit(jobs: Sequence[Job], folder: Path, queue: Sequence[Queued]) -> tuple[int, int]:
    """Submits the jobs that are not in the queue, in their order; returns how many, and how many are in it already.

    A job that waits in the queue is submitted anew where its script or stage has changed, or where it waits for a job that can no
    longer be the one before it. Each gets a line on stderr.

    Raises UserError where Slurm does not answer or refuses, and where a stage runs with settings that have changed since.
    """
    path = folder / FOLDER / "jobs.json"
    records: dict[str, dict[str, Any]] = json_object(path) or {}
    kept, stale = _in_the_queue(jobs, queue, records)
    if stale:
        _asked(["scancel", *stale])
        sys.stderr.write(f"cancelled {' '.join(stale)}, which waited for a job that is no longer there, or with other settings\n")
    ids = {artifact: job.id for artifact, job in kept.items()}
    for job in jobs:
        if job.artifact in kept:
            there = kept[job.artifact]
            sys.stderr.write(f"{there.id} is {there.state.lower()}: {job.artifact}; log {job.log.replace('%j', there.id)}\n")
            continue
        waits = [ids[each] for each in job.after]
        replaced(Path(job.script_file), job.script)
        ids[job.artifact] = number = _submitted(job, waits, list(ids.values()))
        records[job.artifact] = {
            "id": number, "log": job.log.replace("%j", number), "after": waits, "settings": job.settings,
            "script": _hash(job.script), "submitted": datetime.now(UTC).isoformat(timespec="seconds"),
        }  # fmt: skip
        # After each: what was submitted before a refusal is not submitted again.
        write_json(path, records, indent=1)
        after = f", after {' '.join(waits)}" if waits else ""
        sys.stderr.write(f"{number} submitted: {job.artifact}{after}; log {records[job.artifact]['log']}\n")
    return len(jobs) - len(kept), len(kept)


def _in_the_queue(
    jobs: Sequence[Job], queue: Sequence[Queued], records: dict[str, dict[str, Any]]
) -> tuple[dict[str, Queued], list[str]]:
    """Returns the jobs that stay in the queue, by artifact, and the ids of those that wait there in vain."""
    kept: dict[str, Queued] = {}
    stale: list[str] = []
    for job in jobs:
        record = records.get(job.artifact, {})
        for there in (each for each in queue if each.name == job.name):
            known = record.get("id") == there.id
            if there.state != WAITING:
                if known and record["settings"] != job.settings:
                    raise UserError(
                        f"job {there.id} makes {job.artifact} with settings that have changed since; wait for its end, or "
                        f"scancel {there.id}, then repeat"
                    )
                kept[job.artifact] = there
                continue
            same = known and (record["settings"], record["script"]) == (job.settings, _hash(job.script))
            waits = {kept[each].id if each in kept else "" for each in job.after}
            if same and waits <= {*record["after"]} and there.reason != NEVER:
                kept.setdefault(job.artifact, there)
            else:
                stale.append(there.id)
    return kept, stale


def _submitted(job: Job, waits: Sequence[str], before: Sequence[str]) -> str:
    """Returns the id of a job that was submitted just now."""
    dependency = [f"--dependency=afterok:{':'.join(waits)}", "--kill-on-invalid-dep=yes"] if waits else []
    try:
        said = _asked(["sbatch", "--parsable", *dependency, job.script_file])
    except UserError as error:
        others = f"; {len(before)} before it stay in the queue (scancel {' '.join(before)} takes them out)" if before else ""
        raise UserError(f"{job.artifact} was not submitted: {error}{others}") from None
    # With several clusters the name of one follows.
    number = said.strip().partition(";")[0]
    if not re.fullmatch(r"[0-9]+", number):
        raise UserError(f"{job.artifact}: sbatch --parsable answered {said.strip()!r}, which is no job's id; look at squeue --me")
    return number


def _asked(command: Sequence[str]) -> str:
    """Returns what a command of Slurm prints; raises UserError where there is none, it refuses, or nobody answers."""
    # A stage is not to think that it runs under this make.
    environment = {name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MFLAGS", "MAKELEVEL")}
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=PATIENCE, env=environment, check=False
        )
    except FileNotFoundError:
        raise UserError(f"{command[0]} is not here; run make where Slurm's commands are, or leave out CLUSTER=slurm") from None
    except subprocess.TimeoutExpired:
        raise UserError(f"{command[0]} gave no answer in {PATIENCE} s; repeat the command when Slurm answers") from None
    if done.returncode:
        said = " ".join((done.stderr or done.stdout).split()) or "without a word"
        raise UserError(f"{command[0]} refused ({said}); correct the section slurm of the recipe, or ask Slurm, then repeat")
    return done.stdout


def _hash(text: str) -> str:
    """Returns the hash of a script."""
    return hashlib.sha256(text.encode()).hexdigest()
