"""The benchmark for a GPU, tried out on a CPU: every way runs or says why not, and disagreement is a failure."""

from __future__ import annotations

import json
import math
import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from handbook_ext.bench import gpu
from handbook_ext.bench.gpu_ways import SHAPES, WAYS, Way, policy_of, useful_flops
from handbook_ext.core.errors import UserError
from handbook_ext.policies.packing import EncodedPair

ROOT = Path(__file__).resolve().parents[2]


def bench(*argv: str) -> subprocess.CompletedProcess[str]:
    """The script in a process of its own: it starts others, which import it anew."""
    command = [sys.executable, str(ROOT / "scripts" / "bench_gpu.py"), *argv]
    one_thread = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(command, check=False, capture_output=True, text=True, timeout=300, env=one_thread)


def test_it_runs_on_a_cpu_and_says_what_it_left_out(tmp_path: Path) -> None:
    ways = "^(ours, sdpa|ours, flex|TRL, precomputed)$"
    done = bench("--device", "cpu", "--shapes", "tiny", "--rounds", "2", "--ways", ways, "--profile", "--out", str(tmp_path))
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "gpu.json").read_text())["shapes"]["tiny"]
    assert found.pop("ours, flex") == {"not measured": "flex_attention trains on a GPU only"}
    assert list(found) == ["ours, sdpa", "TRL, precomputed"]
    for numbers in found.values():
        assert len(numbers["seconds"]) == 2
        assert numbers["loss"] == pytest.approx(math.log(2), abs=0.02)
        assert min(numbers["tokens_per_second"]["min"], numbers["useful_flops_per_second"], numbers["peak_bytes"]) > 0
    assert found["ours, sdpa"]["agreement"]["fp32"] < 1e-5 < found["ours, sdpa"]["agreement"]["bf16"]
    assert "aten::" in (tmp_path / "profile-tiny-ours-sdpa.txt").read_text()


@pytest.mark.parametrize(("argv", "message"), [
    (["--device", "cpu", "--shapes", "huge"], "there is no shape 'huge'; there are: tiny, "),
    (["--device", "cpu", "--shapes", "tiny", "--rounds", "0"], "--rounds is 0"),
    pytest.param([], "no GPU is visible", marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is one")),
])  # fmt: skip
def test_mistakes_are_told_in_one_line(argv: list[str], message: str, tmp_path: Path) -> None:
    main = runpy.run_path(str(ROOT / "scripts" / "bench_gpu.py"))["main"]
    with pytest.raises(UserError, match=message) as told:
        main([*argv, "--out", str(tmp_path)])
    assert len(told.value.args) == 1


@pytest.mark.parametrize("name", ["tiny", "tiny-lora"])
def test_ways_by_tokens_and_adapters_compute_the_same(name: str, tmp_path: Path) -> None:
    shape = SHAPES[name]
    assert gpu.agreement(shape, WAYS["ours, sdpa, by tokens"], "cpu")["fp32"] < 1e-5
    found = [gpu.measure(shape, Way(True, by_tokens=tokens), "cpu", rounds=1, folder=tmp_path) for tokens in (False, True)]
    assert found[0]["micro_batches"] != found[1]["micro_batches"]
    for numbers in found:
        assert numbers["loss"] == pytest.approx(math.log(2), abs=1e-6)


def test_a_policy_that_computes_something_else_disagrees(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(shape: object, way: Way) -> torch.nn.Module:
        model = policy_of(SHAPES["tiny"], Way(True))
        if way.by_tokens:
            with torch.no_grad():
                model.base_model.layers[0].mlp.up_proj.weight.mul_(1.5)
        return model

    monkeypatch.setattr(gpu, "policy_of", wrong)
    assert gpu.agreement(SHAPES["tiny"], Way(True, by_tokens=True), "cpu")["fp32"] > 1e-4


def test_useful_flops_by_hand() -> None:
    """Six times body weights times tokens (each prompt once), and head weights times completion tokens; four with adapters."""
    pairs = [EncodedPair([1] * 5, [2] * 3, [3] * 4)]
    body = 2 * (64 * 64 + 2 * 64 * 32 + 64 * 64 + 3 * 64 * 128 + 2 * 64) + 64
    for name, factor in (("tiny", 6), ("tiny-lora", 4)):
        assert useful_flops(SHAPES[name], pairs, policy_of(SHAPES[name], Way(True))) == factor * (body * 12 + 64 * 256 * 7)


def test_the_shapes_have_the_weights_of_their_names() -> None:
    for name, millions in (("smollm2-135m", 134.5), ("tinyllama-1.1b", 1100), ("mistral-7b", 7242)):
        with torch.device("meta"):
            model = SHAPES[name].build("sdpa")
        assert sum(weight.numel() for weight in model.parameters()) / 1e6 == pytest.approx(millions, rel=0.001)
