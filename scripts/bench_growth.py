"""Tokens per second of our DPO step and of TRL's against the length of sequences and the weights of the policy.

On the CPU in fp32, on the same weights and pairs, interleaved. Writes OUT/growth.json; exits with 1 when losses disagree.
"""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path

import handbook_ext.core.interrupt  # noqa: F401 - first, since torch takes seconds

import torch
from rich.console import Console
from tqdm import tqdm

from handbook_ext.bench.growth import NAMES, cases, measure, table_of
from handbook_ext.bench.measuring import write_json
from handbook_ext.bench.quiet import quieten
from handbook_ext.core.errors import UserError, run_main
from handbook_ext.core.provenance import code_state, hardware, package_versions

TOLERANCE = 1e-4  # Relative, of losses; gradients are compared by bench_training.py.


def main(argv: list[str]) -> None:
    """Measures every case, writes growth.json and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="tiny models and short sequences: tests that it works")
    parser.add_argument("--rounds", type=int, default=None, metavar="N", help="timed rounds (default 2; quick: 1)")
    parser.add_argument("--threads", type=int, default=None, metavar="N", help="threads (default torch's)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of lengths, words and weights")
    parser.add_argument("--out", type=Path, default=Path("runs/bench"), metavar="DIR", help="folder of growth.json")
    arguments = parser.parse_args(argv)
    rounds = arguments.rounds if arguments.rounds is not None else 1 if arguments.quick else 2
    for name, value in (("--rounds", rounds), ("--threads", arguments.threads)):
        if value is not None and value < 1:
            raise UserError(f"{name} is {value}; at least 1 is needed")
    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    torch.set_flush_denormal(True)  # As every launch does.
    quieten()
    wanted, found = cases(quick=arguments.quick), {}
    with tqdm(total=len(wanted) * len(NAMES) * (rounds + 1), desc="benchmark", unit="step") as progress:
        for case, size in wanted.items():
            found[case] = measure(size, arguments.seed, rounds, progress.update)
    machine = {"machine": hardware(), "threads": torch.get_num_threads(), "versions": package_versions(), "code": code_state()}
    write_json(arguments.out / "growth.json", machine | {"seed": arguments.seed, "rounds": rounds, "cases": found})
    console = Console(width=None if sys.stdout.isatty() else 160)
    console.print(table_of(found))
    console.print(
        f"{rounds} timed rounds, {torch.get_num_threads()} threads. written: {arguments.out / 'growth.json'}", highlight=False
    )
    wrong = [case for case, numbers in found.items() if not _agree(numbers["losses"])]
    if wrong:
        sys.stderr.write(f"error: losses disagree at {', '.join(wrong)}; see growth.json\n")
        sys.exit(1)


def _agree(losses: dict[str, float]) -> bool:
    """Tells whether all trainers have the loss of ours."""
    return all(math.isclose(loss, losses["dpo_ours"], rel_tol=TOLERANCE) for loss in losses.values())


if __name__ == "__main__":
    run_main(main)
