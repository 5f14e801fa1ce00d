"""What one process does while others wait: it may take longer than a collective, and only it reads weights to hash them."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from tests.workspace import MICRO, ROOT, Workspace, changed

pytestmark = pytest.mark.slow
COUNTING = """
import hashlib, os
digest = hashlib.file_digest
def counted(stream, *rest):
    if stream.name.endswith(".safetensors"):
        rank = os.environ.get("HANDBOOK_RANK") or os.environ.get("RANK") or "0"
        with open(os.environ["COUNTED"], "a") as log:
            log.write(f"{rank} {os.path.realpath(stream.name)}\\n")
    return digest(stream, *rest)
hashlib.file_digest = counted
"""


def environment(*paths: Path, **more: str) -> dict[str, str]:
    """The environment of a command of make."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join([*map(str, paths), str(ROOT), *sys.path]), "OMP_NUM_THREADS": "1", **more}


def test_the_first_process_may_judge_for_three_times_as_long_as_a_collective_may_take(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path, MICRO)
    workspace.run("runs/mine-micro/iter0/policy/manifest.json")
    done = workspace.make("-n", "runs/mine-micro/iter0/eval.json", "LAUNCH=ddp-cpu")
    [line] = [line for line in done.stdout.splitlines() if "scripts/" in line]
    # Under accelerate, whose processes form a group with a time-out; as make starts it they form none.
    command = [
        ".venv/bin/python", "-m", "handbook_ext.core.accelerated", "--config_file", "recipes/accelerate/ddp-cpu.yaml",
        str(ROOT / "tests/distributed/late_first_process.py"), "9", *shlex.split(line)[-2:],
    ]  # fmt: skip
    ended = subprocess.run(command, cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=200, check=False)
    assert ended.returncode == 0, ended.stderr[-3000:]
    log = (tmp_path / "runs/mine-micro/iter0/evaluate.log").read_text()  # Of both processes.
    assert "process 0 judges alone" in log and "process 1 judges alone" not in log
    assert json.loads((tmp_path / "runs/mine-micro/iter0/eval.json").read_text())["decodings"]["greedy"]["unjudged"] == 0


def test_weights_are_hashed_once_and_by_the_first_process(tmp_path: Path) -> None:
    made = Workspace(tmp_path / "made", MICRO)
    made.run("runs/mine-micro/sft/policy/manifest.json")
    start = tmp_path / "start"
    shutil.copytree(made.folder / "runs/mine-micro/sft/policy", start, ignore=shutil.ignore_patterns("manifest.json"))
    # A checkpoint from outside, which every stage of the first iteration reads, and a judge that is one as well.
    recipe = changed(MICRO, generate="temperature: 0.7").replace("sft: {", "unused: {")
    recipe = "\n".join(line for line in recipe.splitlines() if not line.startswith("unused"))
    recipe += f"\nsft: null\nmodel: {{name_or_path: {start}, architecture: null, tokenizer_vocab_size: null}}\n"
    workspace = Workspace(tmp_path / "work", recipe)
    counter, log = tmp_path / "counter", tmp_path / "counted"
    counter.mkdir()
    (counter / "sitecustomize.py").write_text(COUNTING)
    goals = ("mine-micro-iter1", "runs/mine-micro/iter0/eval.json", "runs/mine-micro/iter1/eval.json")
    for _ in range(2):  # The second time all is finished, and nothing is read.
        ended = subprocess.run(
            ["make", *goals, "LAUNCH=ddp-cpu"], cwd=workspace.folder, env=environment(counter, COUNTED=str(log)),
            capture_output=True, text=True, timeout=500, check=False,
        )  # fmt: skip
        assert ended.returncode == 0, ended.stderr[-3000:]
    lines = [line.split(" ", 1) for line in log.read_text().splitlines()]
    assert {rank for rank, _ in lines} == {"0"}
    counts = Counter(Path(name).relative_to(tmp_path).parent.as_posix() for _, name in lines)
    runs = "work/runs/mine-micro"
    # The policies of two iterations in the workspaces in which they are published; the checkpoint is read once for all stages.
    assert counts == {"start": 1, f"{runs}/iter0/.policy.partial/policy": 1, f"{runs}/iter1/.policy.partial/policy": 1}
