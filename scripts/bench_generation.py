"""Sampling by rows beside transformers' own loop, for 1, 2 and 5 samples of a prompt: seconds, memory, token positions.

On the CPU in fp32, on the same requests, interleaved. Writes OUT/generation.json.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import handbook_ext.core.interrupt  # noqa: F401 - first, since torch takes seconds

import torch
from rich.console import Console
from tqdm import tqdm

from handbook_ext.bench.generation import SAMPLES, WAYS, cases, measure, table_of
from handbook_ext.bench.measuring import write_json
from handbook_ext.bench.quiet import quieten
from handbook_ext.core.errors import UserError, run_main
from handbook_ext.core.provenance import code_state, hardware, package_versions


def main(argv: list[str]) -> None:
    """Measures every case, writes generation.json and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a few requests to a tiny policy: tests that it works")
    parser.add_argument("--only", choices=sorted(cases(quick=False)), help="one policy alone")
    parser.add_argument("--rounds", type=int, default=None, metavar="N", help="timed rounds (default 3; quick: 1)")
    parser.add_argument("--threads", type=int, default=None, metavar="N", help="threads (default torch's)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of lengths, words, weights and draws")
    parser.add_argument("--out", type=Path, default=Path("runs/bench"), metavar="DIR", help="folder of generation.json")
    arguments = parser.parse_args(argv)
    rounds = arguments.rounds if arguments.rounds is not None else 1 if arguments.quick else 3
    for name, value in (("--rounds", rounds), ("--threads", arguments.threads)):
        if value is not None and value < 1:
            raise UserError(f"{name} is {value}; at least 1 is needed")
    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    torch.set_flush_denormal(True)  # As every launch does.
    quieten()
    wanted = {name: case for name, case in cases(quick=arguments.quick).items() if arguments.only in (None, name)}
    found = {}
    with tqdm(total=len(wanted) * len(SAMPLES) * len(WAYS) * (rounds + 1), desc="benchmark", unit="pass") as progress:
        for name, case in wanted.items():
            for samples in SAMPLES:
                found[f"{name}, n = {samples}"] = measure(case, samples, arguments.seed, rounds, progress.update)
    machine = {"machine": hardware(), "threads": torch.get_num_threads(), "versions": package_versions(), "code": code_state()}
    write_json(arguments.out / "generation.json", machine | {"seed": arguments.seed, "rounds": rounds, "cases": found})
    console = Console(width=None if sys.stdout.isatty() else 180)
    console.print(table_of(found))
    console.print(
        f"transformers' loop -> by rows; {rounds} timed rounds, {torch.get_num_threads()} threads. "
        f"written: {arguments.out / 'generation.json'}", highlight=False,
    )  # fmt: skip


if __name__ == "__main__":
    run_main(main)
