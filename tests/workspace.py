"""A workspace like a clone: the Makefile's own commands, each run in a forked child that has the libraries loaded."""

import multiprocessing
import os
import runpy
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import transformers.trainer  # noqa: F401 - loaded once, before the forks
import trl  # noqa: F401

import handbook_ext.training.supervised  # noqa: F401
from handbook_ext.core.warm_start import private_progress_locks

private_progress_locks()
ROOT = Path(__file__).parents[1]
MICRO = """
base: ../tiny/base.yaml
data: {train_rows: 48, test_rows: 8, sft_rows: 48, portions: 2}
sft: {num_train_epochs: 1, global_batch_size: 8, per_device_train_batch_size: 8, save_steps: 2, logging_steps: 1}
generate: {max_new_tokens: 12, batch_size: 16, num_completions: 2}
train: {beta: 0.2, global_batch_size: 8, per_device_train_batch_size: 4, save_steps: 1, logging_steps: 1}
evaluate: {max_new_tokens: 12, batch_size: 4}
iterations: {iter2: null, iter3: null}
"""


def changed(recipe: str, **parts: str) -> str:
    """Returns a micro recipe with more settings in its sections, written as in YAML."""
    for name, more in parts.items():
        assert recipe.count(f"\n{name}: {{") == 1, name
        recipe = recipe.replace(f"\n{name}: {{", f"\n{name}: {{{more}, ")
    return recipe


# Two parts, a row left over, noise, prompts that are too long, and rates that let each policy differ from the one before.
SELM = changed(
    MICRO.replace("train_rows: 48", "train_rows: 49").replace("num_completions: 2", "num_completions: 3, top_p: 0.9"),
    data="flip_rate: 0.25, long_prompts: drop", train="max_prompt_length: 18, learning_rate: 2e-3, learning_rate_factor: 0.5",
    evaluate="prompts: 7, temperatures: [0.0, 0.9], top_p: 0.95",
)  # fmt: skip
# All labels in each iteration; from the second on SeRA selects.
SERA = changed(
    MICRO.replace("portions: 2", "portions: 1").replace("num_completions: 2", "num_completions: 4, temperature: 0.7"),
    data="flip_rate: 0.4", train="alpha: 0, learning_rate: 2e-3",
).replace(
    "iterations: {iter2: null, iter3: null}",
    "select: {rule: sera, explore: false}\niterations: {iter0: null, iter1: {select: {rule: dataset}}}",
)  # fmt: skip


class Workspace:
    """A folder with this project's Makefile and scripts, its recipes copied, and runs of its own."""

    def __init__(self, folder: Path, recipe: str = MICRO) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        for name in ("Makefile", "scripts", "setup.cfg", "pyproject.toml", "constraints.txt"):
            (folder / name).symlink_to(ROOT / name)
        venv = folder / ".venv"
        (venv / "bin").mkdir(parents=True)
        (venv / "bin" / "python").write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
        (venv / "bin" / "python").chmod(0o755)
        shutil.copytree(ROOT / "recipes", folder / "recipes", ignore=shutil.ignore_patterns("mine"))
        (folder / "recipes" / "mine").mkdir()
        (venv / "ready").touch()
        self.write(recipe)

    def write(self, recipe: str, name: str = "micro") -> None:
        (self.folder / "recipes" / "mine" / f"{name}.yaml").write_text(recipe)

    def make(self, *goals: str) -> subprocess.CompletedProcess[str]:
        # The tests may themselves run under make, which tells the one inside of it.
        outer = ("MAKEFLAGS", "MFLAGS", "MAKELEVEL")
        environment = {name: value for name, value in os.environ.items() if name not in outer}
        return subprocess.run(
            ["make", *goals], cwd=self.folder, env=environment, capture_output=True, text=True, timeout=120, check=False
        )

    def commands(self, goal: str) -> list[str]:
        """Returns what make would run, as it prints it."""
        done = self.make("-n", goal)
        assert done.returncode == 0, done.stderr
        return [line for line in done.stdout.splitlines() if "scripts/" in line]

    def run(self, goal: str) -> list[str]:
        """Runs a goal's commands one after the other; returns them. Stops at the first failure."""
        done = []
        for command in self.commands(goal):
            done.append(command)
            status, said = self.execute(command)
            assert status == 0, f"{command}: {said}"
        return done

    def execute(self, command: str, kill_when: Callable[[], bool] | None = None) -> tuple[int, str]:
        """Runs one command of make; returns exit status and stderr. `kill_when` sends SIGKILL once it is true."""
        words = shlex.split(command)
        words = words[next(place for place, word in enumerate(words) if word.startswith("scripts/")) :]
        log = self.folder / "stderr.log"
        child = multiprocessing.get_context("fork").Process(target=_child, args=(self.folder, words, log))
        child.start()
        while child.is_alive():
            if kill_when is not None and kill_when():
                os.kill(child.pid or 0, signal.SIGKILL)
                break
            time.sleep(0.002)
        child.join()
        return child.exitcode or 0, log.read_text()


def _child(folder: Path, argv: list[str], log: Path) -> None:
    """Becomes the script, with its output in a file."""
    os.chdir(folder)
    torch.set_num_threads(1)
    stream = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(stream, 1)
    os.dup2(stream, 2)
    sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)
    sys.argv = argv
    status = 0
    try:
        runpy.run_path(argv[0], run_name="__main__")
    except SystemExit as done:
        status = int(done.code or 0)
    except BaseException:  # noqa: BLE001 - as an interpreter would: multiprocessing never calls the hook
        sys.excepthook(*sys.exc_info())
        status = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
