"""A run of three iterations whose stages are jobs, at the size of other tests of the loop."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from tests.workspace import MICRO, Workspace

THREE = MICRO.replace("portions: 2", "portions: 3").replace("iter2: null, iter3: null", "iter3: null")
STAGES = ("data", "check", "sft", "sft.evaluate", "report")
DIRECT = ("select", "score", "train", "evaluate")
LOOP = ("generate", "rank", *DIRECT)
LABELS = {*STAGES, *(f"iter0.{name}" for name in DIRECT), *(f"iter{number}.{name}" for number in (1, 2) for name in LOOP)}


# Stages alone: what make calls while it plans prints what it found.
WARM = """#!/bin/sh
case "$1" in
    scripts/plan_goals.py|scripts/submit_run.py|scripts/show_check.py) ;;
    scripts/*) exec "{python}" -m handbook_ext.core.warm_start "$@" ;;
esac
exec "{python}" "$@"
"""


class ClusterRun(Workspace):
    """A workspace whose stages start in a warm process, and whose make has the commands of a cluster on PATH."""

    def __init__(self, folder: Path, environment: Mapping[str, str] = os.environ, recipe: str = THREE) -> None:
        super().__init__(folder, recipe)
        self.environment = {**environment, "OMP_NUM_THREADS": "1"}
        python = folder / ".venv" / "bin" / "python"
        python.write_text(WARM.format(python=sys.executable))
        accelerate = folder / ".venv" / "bin" / "accelerate"
        accelerate.write_text(f'#!/bin/sh\nshift\nexec "{sys.executable}" -m accelerate.commands.launch "$@"\n')
        accelerate.chmod(0o755)

    @property
    def run_folder(self) -> Path:
        return self.folder / "runs" / "mine-micro"

    def submit(self, *words: str, goal: str = "mine-micro") -> subprocess.CompletedProcess[str]:
        """Makes the goal under CLUSTER=slurm."""
        return subprocess.run(
            ["make", *words, goal, "CLUSTER=slurm"], cwd=self.folder, capture_output=True, text=True, env=self.environment,
            timeout=120, check=False,
        )  # fmt: skip

    def lacking(self) -> list[str]:
        """What make says that the run still needs, by settings and contents."""
        self.make("mine-micro-why")
        return [line for line in (self.run_folder / "why.txt").read_text().splitlines() if ": " in line]
