"""Which kernels a stage had is in its manifest and in words; what this processor cannot imitate is not offered."""

from __future__ import annotations

import platform
from pathlib import Path

import pytest
import torch

from handbook_ext.core import machine
from handbook_ext.core.machine import IMITATED, imitable
from handbook_ext.core.provenance import hardware, hardware_words


def test_a_manifest_names_the_kernels_of_torch_and_mkl(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MKL_CBWR", raising=False)
    plain = hardware.__wrapped__()
    assert plain["capability"] == torch.backends.cpu.get_cpu_capability() and "mkl_cbwr" not in plain
    monkeypatch.setenv("MKL_CBWR", "COMPATIBLE")
    assert hardware.__wrapped__() == plain | {"mkl_cbwr": "COMPATIBLE"}


def test_the_kernels_stand_in_the_words_of_a_processor_and_not_in_those_of_gpus() -> None:
    found = {"cpu": "x", "cores": 2, "capability": "AVX2", "mkl_cbwr": "COMPATIBLE"}
    assert hardware_words({"hardware": found}) == "x, 2 cores, AVX2, MKL_CBWR=COMPATIBLE"
    assert hardware_words({"hardware": {"cpu": "x", "cores": 2}}) == "x, 2 cores"
    assert hardware_words({"hardware": found | {"gpus": ["H", "H"]}}) == "2 x H"


@pytest.mark.parametrize(
    ("flags", "architecture", "names"),
    [
        ("avx2 fma avx512f avx512bw avx512dq avx512vl", "x86_64", [*IMITATED]),
        ("avx2 fma avx512f", "x86_64", ["avx2", "default", "mkl-compatible"]),
        ("sse2", "AMD64", ["default", "mkl-compatible"]),
        (None, "arm64", ["default"]),
    ],
)
def test_only_machines_whose_kernels_run_here_are_imitated(
    flags: str | None, architecture: str, names: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "CPUINFO", tmp_path / "cpuinfo")
    monkeypatch.setattr(platform, "machine", lambda: architecture)
    if flags is not None:
        (tmp_path / "cpuinfo").write_text(f"model name\t: x\nflags\t\t: {flags}\nbugs\t\t:\n")
    assert imitable() == names
