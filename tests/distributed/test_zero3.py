"""True DeepSpeed ZeRO-3 over two CPU processes: training ends, with the loss of one process, in a plain checkpoint."""

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

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not has_package("deepspeed"), reason="the extra gpu is not installed")]
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


def test_unequal_chunks_train_to_the_end_with_the_loss_of_one_process(tmp_path: Path) -> None:
    tokens = [sum(map(len, pair.completions)) for pair in pairs_of(16)]
    assert len({-(-each // CHUNK) for each in tokens}) > 4 and GLOBAL_BATCH % 2 == 0
    alone = trained(tmp_path / "one")
    config = ROOT / "recipes" / "accelerate" / "zero3-cpu.yaml"
    two = trained(tmp_path / "two", "-m", "accelerate.commands.launch", "--config_file", str(config))
    assert (alone["processes"], alone["sharded"], two["processes"], two["sharded"]) == (1, False, 2, True)
    assert two["losses"] == pytest.approx(alone["losses"], abs=1e-4)
    assert max(alone["losses"]) - min(alone["losses"]) > 0.01
    ours, theirs = (AutoModelForCausalLM.from_pretrained(tmp_path / name / "policy").state_dict() for name in ("two", "one"))
    for name, weight in theirs.items():
        torch.testing.assert_close(ours[name], weight, rtol=0, atol=1e-4)
