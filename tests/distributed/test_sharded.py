"""Sharded training over two CPU processes that differ in their chunks: the losses of one process, and a plain checkpoint."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from handbook_ext.core.machine import has_package
from tests.distributed.train_small import CHUNK, GLOBAL_BATCH, pairs_of
from tests.workspace import ROOT

pytestmark = pytest.mark.slow
DEEPSPEED = pytest.mark.skipif(not has_package("deepspeed"), reason="the extra gpu is not installed: make test-distributed")
LAUNCHES = ROOT / "recipes" / "accelerate"
LIMIT = 400  # Seconds: a hang is a failure. The first run builds DeepSpeed's operators, about a minute.


def trained(out: Path, *launcher: str) -> dict[str, Any]:
    """The log of a training under a launcher; fails where it does not end in time."""
    out.mkdir()
    environment = {
        **os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path]), "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu",
    }  # fmt: skip
    command = [sys.executable, *launcher, str(ROOT / "tests" / "distributed" / "train_small.py"), str(out), "1"]
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True)
    try:
        _, said = process.communicate(timeout=LIMIT)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        pytest.fail(f"the training hung for {LIMIT} s")
    assert process.returncode == 0, said[-3000:]
    return dict(json.loads((out / "log.json").read_text()))


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    """The log and the policy of one process."""
    out = tmp_path_factory.mktemp("alone") / "one"
    return trained(out), out / "policy"


def launched(out: Path, launch: str) -> tuple[dict[str, Any], Path]:
    """The log and the policy of two processes of a launch; FSDP2 takes CPU processes for accelerators."""
    words = ["--config_file", str(LAUNCHES / f"{launch}.yaml")]
    if launch == "fsdp2":
        words += ["--num_processes", "2", "--mixed_precision", "no", str(ROOT / "tests" / "distributed" / "fsdp2_on_cpu.py")]
    return trained(out, "-m", "handbook_ext.core.accelerated", *words), out / "policy"


def assert_as_alone(two: tuple[dict[str, Any], Path], alone: tuple[dict[str, Any], Path]) -> None:
    """Two processes have the losses of one, and a plain checkpoint with its weights."""
    assert (alone[0]["processes"], two[0]["processes"]) == (1, 2)
    assert two[0]["losses"] == pytest.approx(alone[0]["losses"], abs=1e-4)
    assert max(alone[0]["losses"]) - min(alone[0]["losses"]) > 0.01
    ours, theirs = (AutoModelForCausalLM.from_pretrained(policy).state_dict() for _, policy in (two, alone))
    for name, weight in theirs.items():
        torch.testing.assert_close(ours[name], weight, rtol=0, atol=1e-4)


@pytest.mark.parametrize("launch", ["fsdp2", *(pytest.param(name, marks=DEEPSPEED) for name in ("zero2-cpu", "zero3-cpu"))])
def test_unequal_chunks_train_to_the_end(tmp_path: Path, alone: tuple[dict[str, Any], Path], launch: str) -> None:
    tokens = [sum(map(len, pair.completions)) for pair in pairs_of(16)]
    assert len({-(-each // CHUNK) for each in tokens}) > 4 and GLOBAL_BATCH % 2 == 0
    two = launched(tmp_path / "two", launch)
    assert two[0]["sharded"] == launch.startswith("zero")
    assert_as_alone(two, alone)
