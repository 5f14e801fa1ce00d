"""What the benches on a CPU are asked for in the same words: rounds, threads, seed, folder."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch

from handbook_ext.bench.quiet import quieten
from handbook_ext.core.errors import UserError
from handbook_ext.core.provenance import code_state, hardware, package_versions


def bench_parser(about: str | None, file: str, *, rounds: int, quick: str, seed: str) -> argparse.ArgumentParser:
    """Returns the parser of a bench that writes OUT/`file`; `quick` and `seed` say what these do there."""
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("--quick", action="store_true", help=f"{quick}: tests that it works")
    parser.add_argument("--rounds", type=int, default=None, metavar="N", help=f"timed rounds (default {rounds}; quick: 1)")
    parser.add_argument("--threads", type=int, default=None, metavar="N", help="threads (default torch's)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help=f"of {seed}")
    parser.add_argument("--out", type=Path, default=Path("runs/bench"), metavar="DIR", help=f"folder of {file}")
    return parser


def prepared(arguments: argparse.Namespace, rounds: int) -> int:
    """Returns the timed rounds, `rounds` by default, once torch has the threads and libraries are quiet; UserError for none."""
    chosen: int = arguments.rounds if arguments.rounds is not None else 1 if arguments.quick else rounds
    for name, value in (("--rounds", chosen), ("--threads", arguments.threads)):
        if value is not None and value < 1:
            raise UserError(f"{name} is {value}; at least 1 is needed")
    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    torch.set_flush_denormal(True)  # As every launch does.
    quieten()
    return chosen


def machine_facts() -> dict[str, Any]:
    """Returns what a bench's file says of where it was measured."""
    return {"machine": hardware(), "threads": torch.get_num_threads(), "versions": package_versions(), "code": code_state()}
