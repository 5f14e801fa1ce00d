"""What a machine computes in a second: measured by `make calibrate`, or assumed for GPUs of a size and for a CPU. No torch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from handbook_ext.core.artifacts import json_object
from handbook_ext.core.provenance import hardware

RECORD = "calibration.json"
FORMAT = 1
FACTS = ("machine", "cores", "cpu", "gpus")

Points = Sequence[tuple[float, float]]
"""Achieved FLOP/s by width, ascending."""


@dataclass(frozen=True)
class Rates:
    """What one process, or one GPU, achieves, and how that is known.

    training, scoring, sampling: FLOP/s by width, counted as `time_model` counts. layer_step: seconds of a layer in a decoding
    step besides its arithmetic. memory, disk, link, host_link: bytes per second of a device's memory, the disk, between
    GPUs, and between a GPU and main memory. start: seconds until a stage's script works; engine: until vLLM does.
    libraries: bytes of main memory that a process takes before it holds a model.
    """

    basis: str
    training: Points
    scoring: Points
    sampling: Points
    layer_step: float
    memory: float
    disk: float = 5e8
    link: float = 1e10
    host_link: float = 1e10
    start: float = 15.0
    engine: float = 60.0
    libraries: float = 2e9


def at_width(points: Points, width: float) -> float:
    """Returns the FLOP/s at a width: between two measured ones by the logarithm of both, beyond them the nearest one's."""
    if width <= points[0][0]:
        return points[0][1]
    for (low, slow), (high, fast) in pairwise(points):
        if width <= high:
            share = math.log(width / low) / math.log(high / low)
            return math.exp((1 - share) * math.log(slow) + share * math.log(fast))
    return points[-1][1]


@dataclass(frozen=True)
class Gpu:
    """A GPU by its published figures: memory (GB), dense bf16 FLOP/s, memory and link bandwidth (bytes/s)."""

    name: str
    memory: float
    flops: float
    bandwidth: float
    link: float


# Published peaks; the effective link is assumed: NVLink, or PCIe 4 where a card has none. For a size the slower card is taken.
GPUS = (
    Gpu("RTX 3090", 24, 71e12, 0.936e12, 1.2e10),
    Gpu("A100 40 GB", 40, 312e12, 1.555e12, 1.5e11),
    Gpu("RTX A6000", 48, 155e12, 0.768e12, 1.2e10),
    Gpu("A100 80 GB", 80, 312e12, 2.039e12, 1.5e11),
    Gpu("H100", 80, 989e12, 3.35e12, 2e11),
    Gpu("H200", 141, 989e12, 4.8e12, 2e11),
)
# Shares of a peak that are assumed to be achieved.
TRAINS, SCORES, SAMPLES, MOVES = 0.40, 0.45, 0.30, 0.60
GPU_LAYER_STEP = 8e-5  # Seconds; assumed for transformers, whose steps are launched by Python.
CPU_FLOPS = 1.2e10  # Per thread, assumed where nothing was measured: a slow core.


def gpu_rates(memory: float, name: str = "") -> Rates:
    """Returns the rates of a GPU by its name as the driver gives it, else of the slowest known one with that memory (GB)."""
    named = [gpu for gpu in GPUS if name and all(word in name for word in gpu.name.split()[:1])]
    named = [gpu for gpu in named if gpu.memory >= 0.9 * memory] or named
    gpu = named[0] if named else next((each for each in GPUS if each.memory >= memory), GPUS[-1])
    return Rates(
        f"assumed: {gpu.name}, {TRAINS:.0%} of its published {gpu.flops / 1e12:.0f} TFLOP/s (bf16) in training",
        [(1.0, TRAINS * gpu.flops)], [(1.0, SCORES * gpu.flops)], [(1.0, SAMPLES * gpu.flops)], GPU_LAYER_STEP,
        MOVES * gpu.bandwidth, disk=1e9, link=gpu.link,
    )  # fmt: skip


def cpu_rates(threads: int) -> Rates:
    """Returns conservative rates of a CPU that nobody has measured."""
    flops = [(1.0, threads * CPU_FLOPS)]
    return Rates(
        "assumed, conservative: make calibrate measures this machine in two minutes", flops, flops, flops, 1.5e-3, 5e9,
        disk=2e8, start=3.0, libraries=4.5e8,
    )  # fmt: skip


def read_rates(runs: Path, threads: int, *, gpu: bool) -> Rates | None:
    """Returns the rates that were measured on this machine with so many threads, on its GPU or its CPU; None where none were."""
    record = json_object(runs / RECORD)
    if record is None or record.get("format") != FORMAT:
        return None
    try:
        if any(record["hardware"].get(name) != hardware().get(name) for name in FACTS[:3]):
            return None
        found = record["rates"].get("gpu" if gpu else f"cpu, {threads} threads")
        return None if found is None else rates_of(found)
    except (AttributeError, KeyError, TypeError, ValueError):
        return None  # `damage` tells it.


def damage(runs: Path) -> list[str]:
    """Returns a line where what was measured on a machine is there and cannot be read, so that rates are assumed."""
    path = runs / RECORD
    if not path.exists():
        return []
    record = json_object(path)
    if record is not None and record.get("format") == FORMAT:
        try:
            _ = record["hardware"].items(), [rates_of(each) for each in record["rates"].values()]
        except (AttributeError, KeyError, TypeError, ValueError):
            record = None
    elif record is not None:
        return [f"{path} is of another version of this project, so its rates were not used; make calibrate writes it anew"]
    return [] if record is not None else [f"{path} is damaged, so its rates were not used; make calibrate writes it anew"]


def rates_of(found: Mapping[str, Any]) -> Rates:
    """Returns the rates of a record."""
    points = {name: [(float(width), float(rate)) for width, rate in found[name]] for name in ("training", "scoring", "sampling")}
    return Rates(**{**found, **points})
