"""Times a DPO step on a GPU, ours beside TRL's at its best settings, on random weights and pairs of UltraFeedback's lengths.

bf16 autocast, one GPU, one way after the other, in a process each. Each of ours is first compared with fp32 on the CPU. Writes
OUT/gpu.json; exits with 1 where log-probs or losses disagree. `--device cpu --shapes tiny` tests that it works.
"""

from __future__ import annotations

import argparse
import math
import re
import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import handbook_ext.core.interrupt  # noqa: F401 - first, since torch takes seconds

import torch
from rich.console import Console
from rich.table import Table

from handbook_ext.bench.gpu import matmul_peak, measure_way
from handbook_ext.bench.gpu_ways import SHAPES, WAYS
from handbook_ext.bench.measuring import write_json
from handbook_ext.bench.table import interval
from handbook_ext.core.errors import UserError, run_main
from handbook_ext.core.provenance import code_state, hardware, package_versions

BOUNDS = {"fp32": 1e-3, "bf16": 0.1}  # Nats per token between a way's log-probs of short pairs and fp32 on the CPU.
LOSS = 0.02  # The loss of an untrained policy is log 2; bf16 moves its log-ratios by rounding.


def main(argv: list[str]) -> None:
    """Measures every way on every shape, writes gpu.json and prints a table per shape."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--shapes", default="smollm2-135m,tinyllama-1.1b,mistral-7b", metavar="NAME,...", help=", ".join(SHAPES))
    parser.add_argument("--ways", default=".*", metavar="REGEX", help="of: " + "; ".join(WAYS))
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="timed steps, after two that are not")
    parser.add_argument("--profile", action="store_true", help="also write the profiler's table of each way")
    parser.add_argument("--out", type=Path, default=Path("runs/bench"), metavar="DIR", help="folder of gpu.json")
    arguments = parser.parse_args(argv)
    names = arguments.shapes.split(",")
    for name in names:
        if name not in SHAPES:
            raise UserError(f"--shapes: there is no shape '{name}'; there are: {', '.join(SHAPES)}")
    if arguments.rounds < 1:
        raise UserError(f"--rounds is {arguments.rounds}; at least one step must be timed")
    if arguments.device == "cuda" and not torch.cuda.is_available():
        raise UserError("no GPU is visible; run it where there is one, or try it out with --device cpu --shapes tiny")
    peak = matmul_peak(arguments.device)
    console = Console(width=None if sys.stdout.isatty() else 160)
    console.print(f"bf16 matmul: {peak / 1e12:.1f} TFLOP/s", highlight=False)
    result: dict[str, Any] = {
        "machine": hardware(), "versions": package_versions(), "code": code_state(), "matmul_flops_per_second": peak,
        "shapes": {},
    }  # fmt: skip
    faults = []
    for name in names:
        found = result["shapes"][name] = measure_shape(name, arguments)
        write_json(arguments.out / "gpu.json", result)  # After each shape: a later one may lack memory.
        console.print(table_of(name, found, peak))
        faults += [f"{name}, {way}: {fault}" for way, numbers in found.items() if (fault := fault_of(numbers)) is not None]
    console.print(f"written: {arguments.out / 'gpu.json'}", highlight=False)
    if faults:
        sys.stderr.write("".join(f"error: {fault}\n" for fault in faults))
        sys.exit(1)


def measure_shape(name: str, arguments: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Returns the numbers of each way that was asked for, or why it was not measured."""
    found: dict[str, dict[str, Any]] = {}
    for way, how in WAYS.items():
        if not re.search(arguments.ways, way):
            continue
        lack = how.lack(arguments.device)
        if lack is not None:
            found[way] = {"not measured": lack}
            continue
        slug = re.sub(r"\W+", "-", f"{name} {way}")
        profile = arguments.out / f"profile-{slug}.txt" if arguments.profile else None
        sys.stderr.write(f"{name}: {way}\n")
        # A process each: Liger replaces classes of transformers for all models to come, and memory comes back whole.
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
            found[way] = process.submit(measure_way, name, way, arguments.device, arguments.rounds, profile).result()
    return found


def fault_of(numbers: dict[str, Any]) -> str | None:
    """Returns in what a way disagrees with fp32 on the CPU, or with log 2, or None."""
    for kind, difference in numbers.get("agreement", {}).items():
        if not difference <= BOUNDS[kind]:
            return f"log-probs differ from fp32 on the CPU by {difference:.2g} nats per token in {kind} (at most {BOUNDS[kind]})"
    if "loss" in numbers and not abs(numbers["loss"] - math.log(2)) <= LOSS:
        return f"the loss of the untrained policy is {numbers['loss']:.4f}, not log 2"
    return None


def table_of(name: str, found: dict[str, dict[str, Any]], peak: float) -> Table:
    """Returns the table of a shape: a row per way."""
    table = Table("way", "pairs/s [range]", "tokens/s", "of matmul peak", "peak GiB", "micro-batches", "ready s", title=name)
    for way, numbers in found.items():
        if "not measured" in numbers:
            table.add_row(way, numbers["not measured"])
            continue
        table.add_row(
            way, interval(numbers["pairs_per_second"]), f"{numbers['tokens_per_second']['median']:.0f}",
            f"{numbers['useful_flops_per_second'] / peak:.1%}", f"{numbers['peak_bytes'] / 2**30:.2f}",
            str(numbers["micro_batches"]), f"{numbers['prepared_seconds']:.1f}",
        )  # fmt: skip
    return table


if __name__ == "__main__":
    run_main(main)
