"""GPUs, memory and packages of a machine, found without a heavy library."""

from __future__ import annotations

from pathlib import Path

import pytest

from handbook_ext.core import machine


@pytest.fixture
def devices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of device files with four GPUs; nothing chosen, no tool of a driver."""
    for name in ("nvidia0", "nvidia1", "nvidia2", "nvidia3", "nvidiactl", "nvidia-uvm", "null"):
        (tmp_path / name).touch()
    monkeypatch.setattr(machine, "DEVICES", tmp_path)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv("PATH", "")
    return tmp_path


@pytest.mark.parametrize(("chosen", "count"), [
    (None, 4), ("", 0), ("-1", 0), ("0", 1), ("2, 3", 2), ("0,9,1", 1), ("1,1", 1), ("GPU-5a,GPU-6b", 2), ("0,1,-1,2", 2),
])  # fmt: skip
def test_gpus_are_counted_as_cuda_counts_them(
    devices: Path, monkeypatch: pytest.MonkeyPatch, chosen: str | None, count: int
) -> None:
    if chosen is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", chosen)
    assert machine.visible_gpus() == count


def test_without_device_files_the_drivers_tool_is_asked(devices: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for path in devices.iterdir():
        path.unlink()
    assert machine.visible_gpus() == 0
    tool = devices / "nvidia-smi"
    tool.write_text('#!/bin/sh\necho "GPU 0: A (UUID: GPU-1)"\necho "GPU 1: A (UUID: GPU-2)"\n')
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{devices}:/bin:/usr/bin")
    assert machine.visible_gpus() == 2


def test_free_memory_is_the_smaller_of_machine_and_container(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "MEMORY", tmp_path / "meminfo")
    monkeypatch.setattr(machine, "CGROUP", tmp_path)
    assert machine.free_memory() is None
    (tmp_path / "meminfo").write_text("MemTotal:  9000 kB\nMemAvailable:   4000 kB\n")
    assert machine.free_memory() == 4000 * 1024
    for name, text in (("memory.max", "1000000"), ("memory.current", "900000"), ("memory.stat", "anon 1\ninactive_file 50000\n")):
        (tmp_path / name).write_text(text)
    assert machine.free_memory() == 150_000
    (tmp_path / "memory.max").write_text("max\n")
    assert machine.free_memory() == 4000 * 1024


def test_a_torch_without_cuda_is_told_by_its_own_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "torch"
    package.mkdir()
    (package / "__init__.py").touch()
    monkeypatch.setattr(machine, "find_spec", lambda name: type("Spec", (), {"origin": str(package / "__init__.py")}))
    assert not machine.torch_without_cuda()
    for line, without in (("cuda: Optional[str] = None", True), ("cuda: Optional[str] = '12.8'", False), ("cuda = None", True)):
        (package / "version.py").write_text(f"__version__ = '2'\n{line}\nhip: Optional[str] = None\n")
        assert machine.torch_without_cuda() is without
