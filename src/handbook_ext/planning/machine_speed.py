"""Measures what does not depend on a policy: memory, disk, products of matrices, the start of a stage, its libraries."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

import torch

STARTED = (sys.executable, "-m", "handbook_ext.core.warm_start")  # As stages start on a CPU.
COPIED, WRITTEN = 2**28, 2**27  # Bytes of the two measurements of bandwidth.


def median_seconds(work: Callable[[], Any], times: int = 3) -> float:
    """Returns the median seconds of some repetitions: a stage will share the machine with what it does besides now."""
    found = []
    for _ in range(times):
        start = time.perf_counter()
        work()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        found.append(time.perf_counter() - start)
    return statistics.median(found)


def product_rate(device: torch.device, width: int = 1024) -> float:
    """Returns the FLOP/s of a product of square matrices, fp32."""
    one = torch.rand(width, width, device=device)
    return 2 * width**3 / median_seconds(lambda: one @ one)


def copy_rate(device: torch.device) -> float:
    """Returns the bytes per second that a copy in memory reads and writes."""
    source = torch.zeros(COPIED, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * COPIED / median_seconds(lambda: target.copy_(source))


def write_rate() -> float:
    """Returns the bytes per second that reach the disk of temporary files."""
    content = os.urandom(WRITTEN // 16) * 16
    with tempfile.NamedTemporaryFile() as out:

        def work() -> None:
            """Writes the content anew and waits for the disk."""
            out.seek(0)
            out.write(content)
            out.flush()
            os.fsync(out.fileno())

        return WRITTEN / median_seconds(work, 2)


def start_seconds() -> float:
    """Returns the seconds in which a stage's script starts, by one that finds no settings: on a CPU in a warm process."""

    def work() -> None:
        """Starts it once."""
        subprocess.run([*STARTED, "scripts/train_policy.py", "no-such-run"], capture_output=True, check=False)

    work()  # Starts the process that the next ones are forked from.
    return median_seconds(work, 2)


def resident() -> float:
    """Returns the bytes of main memory that a stage's process holds with its libraries, as its manifest would have them."""
    imports = "import handbook_ext.training.trainer\nfrom handbook_ext.core.provenance import peak_memory\n"
    code = f"{imports}print(peak_memory()['main'])\n"
    with tempfile.NamedTemporaryFile("w", suffix=".py") as script:
        script.write(code)
        script.flush()
        done = subprocess.run([*STARTED, script.name], capture_output=True, text=True, check=True)
    return float(done.stdout.split()[-1])
