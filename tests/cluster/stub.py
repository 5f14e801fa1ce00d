"""A cluster for tests: `sbatch`, `squeue`, `scancel`, `srun` and `scontrol` over one file of jobs, which `work` runs for real.

Jobs wait until a test calls `work`, which runs those that can run, in their order, each by its own script; so what is in the
queue at each moment is the test's to say. As in Slurm, a dependency that can never hold cancels a job that asked for that.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

Job = dict[str, Any]
COMMANDS = ("sbatch", "squeue", "scancel", "srun", "scontrol")
PLACE = "STUB_SLURM"
OVER = ("COMPLETED", "FAILED", "CANCELLED")


class StubCluster:
    """The cluster of a folder; `environment` has its commands on PATH."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "bin").mkdir(parents=True)
        for name in COMMANDS:
            command = folder / "bin" / name
            command.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{__file__}" {name} "$@"\n')
            command.chmod(0o755)

    @property
    def environment(self) -> dict[str, str]:
        path = f"{self.folder / 'bin'}{os.pathsep}{os.environ['PATH']}"
        return {**os.environ, "PATH": path, PLACE: str(self.folder)}

    def say(self, command: str, text: str) -> None:
        """Has a command run these lines of shell first; `exit 1` there is a refusal."""
        path = self.folder / "bin" / command
        path.write_text(path.read_text().replace("#!/bin/sh\n", f"#!/bin/sh\n{text}\n", 1))

    def jobs(self) -> list[Job]:
        with _jobs(self.folder) as jobs:
            return list(jobs)

    def states(self) -> dict[str, str]:
        """The last state of each stage, by the label in the name of its jobs."""
        return {job["name"].partition(".")[2].rpartition(".")[0]: job["state"] for job in self.jobs()}

    def change(self, number: str, **values: str) -> None:
        with _jobs(self.folder) as jobs:
            next(job for job in jobs if job["id"] == number).update(values)

    def work(self, most: int = 1000) -> list[str]:
        """Runs jobs that can run until none is left, or so many; returns their names."""
        done = []
        while len(done) < most and (job := self._next()):
            log = Path(job["folder"], job["output"].replace("%j", job["id"]))
            environment = {**self.environment, "SLURM_JOB_ID": job["id"], "SLURM_JOB_NODELIST": "localhost"}
            with log.open("a") as out:
                ended = subprocess.run(
                    ["bash", "-s"], input=job["script"], text=True, cwd=job["folder"], env=environment, stdout=out, stderr=out,
                    check=False,
                )  # fmt: skip
            self.change(job["id"], state="FAILED" if ended.returncode else "COMPLETED")
            done.append(job["name"])
        self._next(run=False)  # What depends on the last one is cancelled at once.
        return done

    def _next(self, run: bool = True) -> Job | None:
        """The first job that can run, which then runs; those that never can are cancelled."""
        with _jobs(self.folder) as jobs:
            states = {job["id"]: job["state"] for job in jobs}
            for job in jobs:
                if job["state"] != "PENDING":
                    continue
                before = [states.get(each, "CANCELLED") for each in job["after"]]
                if any(state in OVER[1:] for state in before):
                    job["reason"] = "DependencyNeverSatisfied"
                    job["state"] = states[job["id"]] = "CANCELLED" if job["kill"] else "PENDING"
                elif run and all(state == "COMPLETED" for state in before):
                    job["state"] = "RUNNING"
                    return job
        return None


@contextmanager
def _jobs(folder: Path) -> Iterator[list[Job]]:
    """The jobs, which are written back."""
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        path = folder / "jobs.json"
        jobs: list[Job] = json.loads(path.read_text()) if path.exists() else []
        yield jobs
        path.write_text(json.dumps(jobs, indent=1))


def sbatch(folder: Path, words: list[str]) -> int:
    """Puts a script into the queue; refuses options that Slurm does not know."""
    *stated, file = words
    script = Path(file).read_text()
    directives = re.findall(r"^#SBATCH (--\S+)$", script, re.MULTILINE)
    options = dict(each.removeprefix("--").partition("=")[::2] for each in [*directives, *stated])
    if "parsable" not in options or not script.startswith("#!"):
        sys.stderr.write("sbatch: error: not as expected\n")
        return 1
    after = re.fullmatch(r"afterok:([0-9:]+)", options.get("dependency", ""))
    with _jobs(folder) as jobs:
        number = str(len(jobs) + 101)
        jobs.append(
            {
                "id": number, "name": options["job-name"], "state": "PENDING",
                "reason": "Priority" if after is None else "Dependency",
                "after": [] if after is None else after[1].split(":"), "kill": options.get("kill-on-invalid-dep") == "yes",
                "script": script, "output": options["output"], "folder": os.getcwd(), "options": options,
            }
        )  # fmt: skip
    print(number)
    return 0


def squeue(folder: Path, words: list[str]) -> int:
    """Prints the jobs that are not over."""
    assert words == ["--me", "--noheader", "--format=%i|%T|%r|%j"]
    with _jobs(folder) as jobs:
        for job in jobs:
            if job["state"] not in OVER:
                print("|".join(job[name] for name in ("id", "state", "reason", "name")))
    return 0


def scancel(folder: Path, words: list[str]) -> int:
    """Takes jobs out of the queue."""
    with _jobs(folder) as jobs:
        for job in jobs:
            if job["id"] in words and job["state"] not in OVER:
                job["state"] = "CANCELLED"
    return 0


def srun(folder: Path, words: list[str]) -> int:
    """Runs a command once per node, here all on this machine; one that fails ends the others."""
    options = dict(word.removeprefix("--").partition("=")[::2] for word in words if word.startswith("--"))
    command = words[len([word for word in words if word.startswith("--")]) :]
    tasks = [subprocess.Popen(command, env={**os.environ, "SLURM_PROCID": str(task)}) for task in range(int(options["ntasks"]))]
    codes = [task.wait() for task in tasks]
    return max(codes, key=abs)


def scontrol(folder: Path, words: list[str]) -> int:
    """Prints the hosts of a list, one a line."""
    assert words[:2] == ["show", "hostnames"]
    print("\n".join(words[2].split(",")))
    return 0


if __name__ == "__main__":
    handlers = {each.__name__: each for each in (sbatch, squeue, scancel, srun, scontrol)}
    sys.exit(handlers[sys.argv[1]](Path(os.environ[PLACE]), sys.argv[2:]))
