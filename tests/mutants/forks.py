"""Runs tests against mutants in forked children: the libraries are loaded once, and the working tree stays as it is."""

from __future__ import annotations

import contextlib
import importlib
import os
import resource
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.machinery import ModuleSpec, SourceFileLoader
from importlib.util import spec_from_file_location
from pathlib import Path
from types import CodeType
from typing import NoReturn

import pytest

# Loaded before the forks. Nothing of handbook_ext may be: each child imports its own, with its mutant in place.
LIBRARIES = (
    "datasets", "jinja2", "matplotlib.pyplot", "peft", "pydantic", "scipy.special", "scipy.stats", "torch",
    "transformers.trainer", "transformers.models.gpt_neox.modeling_gpt_neox", "transformers.models.llama.modeling_llama",
    "transformers.models.mistral.modeling_mistral", "trl.trainer.dpo_trainer", "trl.trainer.sft_trainer",
)  # fmt: skip
PYTEST = ["--exitfirst", "-q", "-m", "not slow", "-p", "no:cacheprovider", "-p", "no:xdist", "-W", "ignore"]
MEMORY = 6 << 30
TIMEOUT = -signal.SIGXCPU
# Limits are in CPU seconds, so that a busy machine kills no mutant; one that waits in vain may take so many times as long.
WAITING = 10


class MutantLoader(SourceFileLoader):
    """Loads a module from a mutant's source, under the name of its file."""

    source = ""

    def get_code(self, fullname: str) -> CodeType:
        """Returns the mutant's code; never a cached one, and none is cached."""
        return compile(self.source, self.path, "exec", dont_inherit=True)


class MutantFinder:
    """Finds one module as a mutant, before the import system finds it on the disk."""

    def __init__(self, path: Path, name: str, source: str) -> None:
        """Takes the module's file and full name, and the mutant's source."""
        self.path, self.name, self.source = path, name, source

    def find_spec(self, fullname: str, path: object = None, target: object = None) -> ModuleSpec | None:
        """Returns the mutant's spec for its own name, None for every other."""
        if fullname != self.name:
            return None
        loader = MutantLoader(fullname, str(self.path))
        loader.source = self.source
        return spec_from_file_location(fullname, self.path, loader=loader)


@dataclass
class Job:
    """A child at work: its number among the tasks, its own folder for temporary files, and when it must end."""

    number: int
    folder: Path
    deadline: float


@dataclass(frozen=True)
class Task:
    """Tests to run, the CPU seconds that they may take, and the module to replace, if any: its file, full name and source."""

    tests: tuple[str, ...]
    limit: int
    module: tuple[Path, str, str] | None = None


def preload(source: Path) -> None:
    """Loads the libraries, with one thread each, since a fork copies no threads; the children's modules come from `source`."""
    os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "MPLBACKEND": "agg"}
    for name in LIBRARIES:
        importlib.import_module(name)
    sys.modules["torch"].set_num_threads(1)
    sys.path.insert(0, str(source))


def run_all(tasks: Iterator[Task], processes: int) -> Iterator[tuple[int, int, float]]:
    """Yields (number, exit status, CPU seconds) of tasks as they end; the status is TIMEOUT where one exceeded its limit."""
    running: dict[int, Job] = {}
    numbered = enumerate(tasks)
    try:
        while True:
            while len(running) < processes and (following := next(numbered, None)) is not None:
                number, task = following
                job = Job(number, Path(tempfile.mkdtemp(prefix="mutant-")), time.monotonic() + WAITING * task.limit)
                running[_fork(task, job.folder)] = job
            if not running:
                return
            time.sleep(0.005)
            for pid, job in list(running.items()):
                late = time.monotonic() > job.deadline
                if late:
                    os.killpg(pid, signal.SIGKILL)
                ended, status, usage = os.wait4(pid, 0 if late else os.WNOHANG)
                if ended:
                    _clean(pid, running.pop(pid))
                    code = TIMEOUT if late else os.waitstatus_to_exitcode(status)
                    yield job.number, code, usage.ru_utime + usage.ru_stime
    finally:
        for pid, job in running.items():
            os.killpg(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            _clean(pid, job)


def _clean(pid: int, job: Job) -> None:
    """Ends what a child left running, and removes its files."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)
    shutil.rmtree(job.folder, ignore_errors=True)


def _fork(task: Task, folder: Path) -> int:
    """Returns the process id of a child that runs a task."""
    pid = os.fork()
    if pid == 0:
        _child(task, folder)
    # Also set by the child: whoever comes first, so that the group is there when it is to be killed.
    os.setpgid(pid, pid)
    return pid


def _child(task: Task, folder: Path) -> NoReturn:
    """Runs the tests in this process, in a folder of its own, with bounded memory and no output; ends the process."""
    try:
        os.setpgid(0, 0)
        log = os.open(folder / "log", os.O_WRONLY | os.O_CREAT)
        os.dup2(log, 1)
        os.dup2(log, 2)
        size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY, size + MEMORY))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_CPU, (task.limit, task.limit + 1))
        _private_progress_locks()
        os.chdir(folder)
        os.environ["TMPDIR"] = tempfile.tempdir = str(folder)
        if task.module is not None:
            sys.meta_path.insert(0, MutantFinder(*task.module))
        status = int(pytest.main([*PYTEST, f"--basetemp={folder / 'pytest'}", *task.tests]))
        sys.stdout.flush()
    except BaseException:  # noqa: BLE001 - whatever a mutant raises, this process must not go on as its parent
        status = 1
    os._exit(status)


def _private_progress_locks() -> None:
    """Gives tqdm a lock per process: one that is killed while it holds a shared lock would stop the others."""
    import tqdm.auto
    import tqdm.std

    for bar in (tqdm.std.tqdm, tqdm.auto.tqdm):
        bar.set_lock(threading.RLock())
