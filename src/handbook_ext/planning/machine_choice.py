"""The machine that a run is planned for: GPUs and their memory, main memory, and the rates at which it computes. No torch."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from handbook_ext.core.errors import UserError
from handbook_ext.core.machine import free_memory, total_memory, visible_gpus
from handbook_ext.planning.calibration import Rates, cpu_rates, gpu_rates, read_rates
from handbook_ext.planning.sharding import Sharding

GB = 1e9


@dataclass(frozen=True)
class Machine:
    """Bytes of a device and of main memory (None: not known), and the rates on the CPU and on a GPU, where it has any."""

    device: float
    main: float | None
    cpu: Rates
    gpu: Rates | None
    words: str

    @property
    def on_gpu(self) -> bool:
        """Tells whether policies lie on GPUs."""
        return self.gpu is not None

    @property
    def rates(self) -> Rates:
        """Returns the rates where policies are."""
        return self.gpu or self.cpu


def machine_of(vram: str | None, ram: str | None, threads: int, sharding: Sharding, runs: Path) -> Machine:
    """Returns the machine of a request: VRAM and RAM (GB) as given, else this machine's.

    Raises UserError where GPUs are planned for whose memory nobody has said.
    """
    cpu = read_rates(runs, threads, gpu=False) or cpu_rates(threads)
    main = float(ram) * GB if ram else None
    if sharding.on_cpu:
        here = main if main is not None else float(total_memory() or free_memory() or 0) or None
        if here is None:
            raise UserError("RAM: how much main memory this machine has cannot be seen; give it in GB, such as RAM=16")
        own = "" if ram else " (this machine)"
        words = f"CPU, {here / GB:.3g} GB of main memory{own}, {threads} thread{'s' * (threads > 1)}"
        return Machine(here, here, cpu, None, words)
    if not vram:
        raise UserError(
            "VRAM: the plan is for GPUs whose memory is not known; give that of one in GB, such as VRAM=24 (and RAM= for main "
            "memory), or LAUNCH=cpu"
        )
    measured = read_rates(runs, threads, gpu=True) if visible_gpus() else None
    gpu = gpu_rates(float(vram)) if measured is None else replace(measured, link=gpu_rates(float(vram)).link)
    if main is None and visible_gpus():
        main = float(total_memory() or 0) or None
    said = f"{main / GB:.3g} GB of main memory" if main is not None else "main memory not given (RAM=)"
    many = "s" * (sharding.processes > 1)
    return Machine(float(vram) * GB, main, cpu, gpu, f"{sharding.processes} GPU{many} of {float(vram):g} GB, {said}")
