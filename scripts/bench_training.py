"""Times our training step beside TRL's DPOTrainer and SELM's official step: seconds, FLOPs, memory, agreement.

All variants run in this process, interleaved, on the same weights and pairs, on the CPU in fp32 (and DPO under bf16 autocast).
Writes OUT/training.json; exits with 1 when losses or gradients disagree.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import handbook_ext.core.interrupt  # noqa: F401 - first, since torch takes seconds

import torch
from tqdm import tqdm

from handbook_ext.bench import measuring
from handbook_ext.bench.quiet import quieten
from handbook_ext.bench.steps import QUICK, Size, Steps
from handbook_ext.bench.table import AGREEMENTS, show, summarise
from handbook_ext.core.errors import UserError, run_main


def main(argv: list[str]) -> None:
    """Checks that losses and gradients agree, times all steps, writes training.json and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a tiny model and one round: tests that it works")
    parser.add_argument("--rounds", type=int, default=None, metavar="N", help="timed rounds (default 3; quick: 1)")
    parser.add_argument("--threads", type=int, default=None, metavar="N", help="threads (default torch's; quick: 1)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of lengths, words and weights")
    parser.add_argument("--out", type=Path, default=Path("runs/bench"), metavar="DIR", help="folder of training.json")
    arguments = parser.parse_args(argv)
    rounds = arguments.rounds if arguments.rounds is not None else 1 if arguments.quick else 3
    if rounds < 1:
        raise UserError(f"--rounds is {rounds}; at least one round must be timed")
    torch.set_flush_denormal(True)  # As every launch does: denormal numbers slow small fp32 models down on a CPU.
    quieten()
    size = QUICK if arguments.quick else Size()
    threads = arguments.threads if arguments.threads is not None else 1 if arguments.quick else torch.get_num_threads()
    if threads < 1:
        raise UserError(f"--threads is {threads}; at least one is needed")
    torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory() as folder:
        steps = Steps(size, arguments.seed, Path(folder))
        with tqdm(total=(rounds + 1) * len(steps.parts), desc="benchmark", unit="step") as progress:
            counted = check_round(steps, progress)
            timings = timed_rounds(steps, rounds, progress)
    result = summarise(size, arguments.seed, steps, counted, timings)
    measuring.write_json(arguments.out / "training.json", result)
    show(result, arguments.out / "training.json")
    if not all(check["agrees"] for check in result["agreement"].values()):
        sys.stderr.write("error: losses or gradients disagree; see the agreement above\n")
        sys.exit(1)


def check_round(steps: Steps, progress: Any) -> dict[str, Any]:
    """Returns the FLOPs of every part, each run once and untimed, and how far losses and gradients are from the baselines'."""
    flops, losses, grads = {}, {}, {}
    for name, part in steps.parts.items():
        losses[name], flops[name] = measuring.count_flops(partial(part, 0))
        if name in steps.trained:
            grads[name] = measuring.gradients(steps.trained[name])
            steps.trained[name].zero_grad(set_to_none=True)
        progress.update()
    agreement = {}
    for (ours, theirs), tolerance in AGREEMENTS.items():
        loss = abs(losses[ours] - losses[theirs]) / abs(losses[theirs])
        gradient = measuring.gradient_difference(grads[ours], grads[theirs])
        agreement[f"{ours} = {theirs}"] = {
            "loss_ours": losses[ours], "loss_theirs": losses[theirs], "loss_relative_difference": loss,
            "gradient_relative_difference": gradient, "tolerance": tolerance,
            "agrees": loss <= tolerance and gradient <= tolerance,
        }  # fmt: skip
    return {"flops": flops, "agreement": agreement}


def timed_rounds(steps: Steps, rounds: int, progress: Any) -> dict[str, dict[str, list[float]]]:
    """Returns seconds, processor seconds and peak growth of memory (bytes) of each part and round, the parts taking turns."""
    timings: dict[str, dict[str, list[float]]] = {
        name: {"seconds": [], "cpu_seconds": [], "peak_bytes": []} for name in steps.parts
    }
    names = list(steps.parts)
    for number in range(1, rounds + 1):
        # Each round begins with another part, so that none always runs on a cold or a throttled processor.
        for name in names[number % len(names) :] + names[: number % len(names)]:
            for kind, value in measuring.timed(partial(steps.parts[name], number)).items():
                timings[name][kind].append(value)
            if name in steps.trained:
                steps.trained[name].zero_grad(set_to_none=True)
            progress.update()
    return timings


if __name__ == "__main__":
    run_main(main)
