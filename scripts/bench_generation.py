"""Sampling by rows beside transformers' own loop, for 1, 2 and 5 samples of a prompt: seconds, memory, token positions.

On the CPU in fp32, on the same requests, interleaved. Writes OUT/generation.json.
"""

from __future__ import annotations

import sys

import handbook_ext.core.interrupt  # noqa: F401 - first, since torch takes seconds

import torch
from rich.console import Console
from tqdm import tqdm

from handbook_ext.bench.generation import SAMPLES, WAYS, cases, measure, table_of
from handbook_ext.bench.measuring import write_json
from handbook_ext.bench.options import bench_parser, machine_facts, prepared
from handbook_ext.core.errors import run_main

ROUNDS = 3


def main(argv: list[str]) -> None:
    """Measures every case, writes generation.json and prints the table."""
    parser = bench_parser(
        __doc__,
        "generation.json",
        rounds=ROUNDS,
        quick="a few requests to a tiny policy",
        seed="lengths, words, weights and draws",
    )
    parser.add_argument("--only", choices=sorted(cases(quick=False)), help="one policy alone")
    arguments = parser.parse_args(argv)
    rounds = prepared(arguments, ROUNDS)
    wanted = {name: case for name, case in cases(quick=arguments.quick).items() if arguments.only in (None, name)}
    found = {}
    with tqdm(total=len(wanted) * len(SAMPLES) * len(WAYS) * (rounds + 1), desc="benchmark", unit="pass") as progress:
        for name, case in wanted.items():
            for samples in SAMPLES:
                found[f"{name}, n = {samples}"] = measure(case, samples, arguments.seed, rounds, progress.update)
    write_json(arguments.out / "generation.json", machine_facts() | {"seed": arguments.seed, "rounds": rounds, "cases": found})
    console = Console(width=None if sys.stdout.isatty() else 180)
    console.print(table_of(found))
    console.print(
        f"transformers' loop -> by rows; {rounds} timed rounds, {torch.get_num_threads()} threads. "
        f"written: {arguments.out / 'generation.json'}", highlight=False,
    )  # fmt: skip


if __name__ == "__main__":
    run_main(main)
