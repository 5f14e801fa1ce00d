"""What this machine has, found without loading a heavy library: GPUs, memory, Python packages."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

DEVICES = Path("/dev")
MEMORY = Path("/proc/meminfo")
CGROUP = Path("/sys/fs/cgroup")
CPUINFO = Path("/proc/cpuinfo")
CAPABILITY, MKL_CBWR = "ATEN_CPU_CAPABILITY", "MKL_CBWR"
"""The variables by which torch and MKL take other kernels than those of this processor: other roundings come out."""
IMITATED: Mapping[str, Mapping[str, str]] = {
    "avx512": {CAPABILITY: "avx512"},
    "avx2": {CAPABILITY: "avx2"},
    "default": {CAPABILITY: "default"},
    "mkl-compatible": {MKL_CBWR: "COMPATIBLE"},
}
"""Other machines that this one imitates, by the last bit of what they compute: the variables that make it do so."""
# What a processor must have to run the kernels; without it torch ends with an illegal instruction.
NEEDED = {"avx512": {"avx512f", "avx512bw", "avx512dq", "avx512vl", "fma"}, "avx2": {"avx2", "fma"}}


def visible_gpus() -> int:
    """Returns how many CUDA devices a process started here would see."""
    return len(visible_devices())


def visible_devices() -> list[str]:
    """Returns the names of those devices, numbers or UUIDs; CUDA_VISIBLE_DEVICES counts as CUDA reads it."""
    devices = len([path for path in DEVICES.glob("nvidia*") if re.fullmatch(r"nvidia\d+", path.name)]) or _listed_gpus()
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is None or not devices:
        return [str(number) for number in range(devices)]
    seen: list[str] = []
    for name in (each.strip() for each in chosen.split(",")):
        # CUDA stops at the first name that is no device: a number out of range, such as -1, or nothing. Others are UUIDs.
        if not name or name in seen or (re.fullmatch(r"-?\d+", name) and not 0 <= int(name) < devices):
            break
        seen.append(name)
    return seen


def imitable() -> list[str]:
    """Returns the names of the machines that this one can imitate."""
    text = CPUINFO.read_text(encoding="utf-8") if CPUINFO.is_file() else ""
    found = re.search(r"^flags\s*:(.*)$", text, re.MULTILINE)
    flags = set(found[1].split()) if found else set()
    mkl = platform.machine().lower() in ("x86_64", "amd64")
    return [
        name for name, variables in IMITATED.items() if NEEDED.get(name, set()) <= flags and (mkl or MKL_CBWR not in variables)
    ]


def free_memory() -> int | None:
    """Returns the bytes of main memory that new processes may take, under the limit of a container; None where nobody says."""
    free = _meminfo("MemAvailable")
    try:
        limit, used = ((CGROUP / name).read_text(encoding="utf-8").strip() for name in ("memory.max", "memory.current"))
        cache = re.search(r"^inactive_file (\d+)$", (CGROUP / "memory.stat").read_text(encoding="utf-8"), re.MULTILINE)
    except OSError:
        return free
    if free is None or not limit.isdigit():
        return free
    return min(free, int(limit) - int(used) + (int(cache[1]) if cache else 0))  # The kernel gives its cache of files back.


def total_memory() -> int | None:
    """Returns the bytes of main memory of this machine, or of its container where that has a limit; None where nobody says."""
    whole = _meminfo("MemTotal")
    path = CGROUP / "memory.max"
    limit = path.read_text(encoding="utf-8").strip() if path.is_file() else ""
    return min(whole, int(limit)) if whole is not None and limit.isdigit() else whole


def _meminfo(name: str) -> int | None:
    """Returns a line of the kernel's memory report in bytes; None where there is none."""
    try:
        found = re.search(rf"^{name}:\s+(\d+) kB$", MEMORY.read_text(encoding="utf-8"), re.MULTILINE)
    except OSError:
        return None
    return None if found is None else 1024 * int(found[1])


def has_package(*names: str) -> bool:
    """Tells whether one of the packages can be imported, without importing it."""
    return any(find_spec(name) is not None for name in names)


def torch_without_cuda() -> bool:
    """Tells whether the installed torch was built without CUDA, by the file that says so; False where it does not say."""
    spec = find_spec("torch")
    version = Path(spec.origin).with_name("version.py") if spec is not None and spec.origin else None
    if version is None or not version.is_file():
        return False
    return re.search(r"^cuda\b.*= None$", version.read_text(encoding="utf-8"), re.MULTILINE) is not None


def _listed_gpus() -> int:
    """Returns how many GPUs the driver's own tool lists, where the machine has no device files for them."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return 0
    try:
        done = subprocess.run([tool, "-L"], capture_output=True, text=True, timeout=2, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return 0
    return len(re.findall(r"^GPU \d+:", done.stdout, re.MULTILINE))
