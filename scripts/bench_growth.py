"""Tokens per second of our DPO step and of TRL's against the length of sequences and the weights of the policy.

On the CPU in fp32, on the same weights and pairs, interleaved. Writes OUT/growth.json; exits with 1 when losses disagree.
"""

from __future__ import annotations

import math
import sys

import handbook_ext.core.interrupt  # noqa: F401 - first, since torch takes seconds

import torch
from rich.console import Console
from tqdm import tqdm

from handbook_ext.bench.growth import NAMES, cases, measure, table_of
from handbook_ext.bench.measuring import write_json
from handbook_ext.bench.options import bench_parser, machine_facts, prepared
from handbook_ext.core.errors import run_main

TOLERANCE = 1e-4  # Relative, of losses; gradients are compared by bench_training.py.
ROUNDS = 2


def main(argv: list[str]) -> None:
    """Measures every case, writes growth.json and prints the table."""
    parser = bench_parser(
        __doc__, "growth.json", rounds=ROUNDS, quick="tiny models and short sequences", seed="lengths, words and weights"
    )
    arguments = parser.parse_args(argv)
    rounds = prepared(arguments, ROUNDS)
    wanted, found = cases(quick=arguments.quick), {}
    with tqdm(total=len(wanted) * len(NAMES) * (rounds + 1), desc="benchmark", unit="step") as progress:
        for case, size in wanted.items():
            found[case] = measure(size, arguments.seed, rounds, progress.update)
    write_json(arguments.out / "growth.json", machine_facts() | {"seed": arguments.seed, "rounds": rounds, "cases": found})
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
