"""Mutation testing: `make mutants`, or `python -m tests.mutants --help`.

Draws mutants of the modules in targets.yaml, adds those of named.yaml, and runs the nearest tests against each. Writes
report.json and report.md. The exit status is 1 where too few are killed, a named one survives, or too many are declared
equivalent; 2 where there is no result, since the tests fail without any mutant or a file beside this one is wrong.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

import yaml

from tests.mutants import forks
from tests.mutants.mutations import Mutant, mutant_of, sample
from tests.mutants.report import EQUIVALENT, KILLED, SURVIVED, TIMEOUT, Outcome, faults, read_outcomes, write_report

HERE, ROOT = Path(__file__).parent, Path(__file__).parents[2]
PACKAGE = ROOT / "src" / "handbook_ext"
# A mutant may take so many times as long as the tests do without one, and so many seconds more.
SLACK, SLACK_SECONDS = 4, 10
PROGRESS_SECONDS = 10

Drawn = tuple[str, Mutant]


@dataclass(frozen=True)
class Target:
    """How a file is mutated: the functions (none named: all of them), and the tests that run for it."""

    functions: frozenset[str]
    tests: tuple[str, ...]


def main(argv: Sequence[str]) -> int:
    """Returns the exit status, after the report is written."""
    args, started = _arguments(argv), time.monotonic()
    targets = {
        file: Target(frozenset(row.get("functions", ())), tuple(str(ROOT / "tests" / name) for name in row["tests"]))
        for row in _rows("targets")
        for file in row["files"]
    }
    earlier = read_outcomes(args.out / "report.json") if args.only else []
    survivors = {one.mutant.key for one in earlier if one.state == SURVIVED}
    drawn = islice(sample(PACKAGE, {file: target.functions for file, target in targets.items()}, args.seed), args.size)
    chosen = (
        (name, mutant)
        for name, mutant in chain(_named(), (("", mutant) for mutant in drawn))
        if (mutant.key in survivors if args.only == "survivors" else args.only in mutant.file)
    )
    forks.preload(PACKAGE.parent)
    limits = _limits({target.tests for file, target in targets.items() if args.only in ("survivors", "") or args.only in file})
    expected = len(survivors) if args.only == "survivors" else args.size
    found = list(_progress(_outcomes(chosen, targets, limits, args), expected))
    # What was not run again, and is still in the sample as far as anybody knows, stays as it was.
    new = {one.mutant.key for one in found}
    outcomes = [one for one in earlier if one.mutant.key not in new] + found
    about = {"seed": args.seed, "mutants": len(outcomes), "minutes": round((time.monotonic() - started) / 60, 1)}
    print(write_report(args.out, outcomes, about))
    print(*(one.mutant.diff + "\n" for one in found if one.state == SURVIVED), sep="\n")
    wrong = faults(outcomes)
    if not args.only and len(found) < args.size:
        wrong.append(f"only {len(found)} of {args.size} mutants were run in {args.minutes} minutes")
    print(f"{args.out / 'report.md'}: {'; '.join(wrong) or 'enough are killed'}")
    return int(bool(wrong))


def _arguments(argv: Sequence[str]) -> argparse.Namespace:
    """Returns the settings of the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutants", description="Mutation testing of the pure modules.")
    parser.add_argument("--size", type=int, default=500, help="mutants in the sample")
    parser.add_argument("--seed", type=int, default=1, help="of the sample")
    parser.add_argument("--minutes", type=float, default=60, help="no mutant starts later")
    parser.add_argument("--processes", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--only", default="", help="'survivors' of the last run, or part of a file's name; the rest stays")
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "mutants")
    return parser.parse_args(argv)


def _rows(name: str) -> list[dict[str, Any]]:
    """Returns the rows of a file beside this one."""
    return list(yaml.safe_load((HERE / f"{name}.yaml").read_text(encoding="utf-8")))


def _named() -> Iterator[Drawn]:
    """Yields the mutants of named.yaml; ends the program where one's text does not stand once in its file."""
    for row in _rows("named"):
        source = (PACKAGE / row["file"]).read_text(encoding="utf-8")
        if source.count(row["before"]) != 1:
            sys.exit(f"named.yaml: {row['name']}: `before` stands {source.count(row['before'])} times in {row['file']}, not once")
        yield row["name"], mutant_of(row["file"], source, source.replace(row["before"], row["after"]))


def _limits(tests: set[tuple[str, ...]]) -> dict[tuple[str, ...], float]:
    """Returns the seconds that each group of tests may take with a mutant; ends the program where they fail without one."""
    groups = sorted(tests)
    limits = {}
    for number, status, seconds in forks.run_all((forks.Task(group, 600) for group in groups), 1):
        if status != 0:
            sys.exit(f"{' '.join(groups[number])}: exit status {status} without any mutant; run them with pytest, and mend them")
        limits[groups[number]] = SLACK_SECONDS + SLACK * seconds
    return limits


def _outcomes(
    chosen: Iterator[Drawn], targets: dict[str, Target], limits: dict[tuple[str, ...], float], args: argparse.Namespace
) -> Iterator[Outcome]:
    """Yields what became of mutants; none starts when the time is over."""
    reasons = {
        Mutant(*(row[key].strip() for key in ("file", "function", "before", "after"))).key: row["reason"]
        for row in _rows("equivalent")
    }
    end = time.monotonic() + 60 * args.minutes
    started: list[Drawn] = []

    def tasks() -> Iterator[forks.Task]:
        """Yields a task per mutant, and keeps the mutant."""
        for name, mutant in chosen:
            if time.monotonic() > end:
                return
            started.append((name, mutant))
            tests = targets[mutant.file].tests
            module = "handbook_ext." + mutant.file.removesuffix(".py").replace("/", ".")
            yield forks.Task(tests, limits[tests], (PACKAGE / mutant.file, module, mutant.source))

    for number, status, seconds in forks.run_all(tasks(), args.processes):
        name, mutant = started[number]
        state = {0: SURVIVED, forks.TIMEOUT: TIMEOUT}.get(status, KILLED)
        reason = reasons.get(mutant.key, "")
        if reason:
            state = EQUIVALENT if state == SURVIVED else state
            reason = reason if state == EQUIVALENT else "declared equivalent, but killed: take it out of equivalent.yaml"
        yield Outcome(mutant, name, state, round(seconds, 2), reason)


def _progress(outcomes: Iterator[Outcome], expected: int) -> Iterator[Outcome]:
    """Yields the same outcomes, and tells now and then how many there are, how fast, and how long the rest takes."""
    started = told = time.monotonic()
    survived = 0
    for number, one in enumerate(outcomes, start=1):
        survived += one.state == SURVIVED
        now = time.monotonic()
        if now - told > PROGRESS_SECONDS or number == expected:
            told, rate = now, number / (now - started)
            left = max(0, expected - number) / rate / 60
            print(
                f"{number} of {expected} mutants, {survived} survived, {60 * rate:.0f} a minute, {left:.1f} min left", flush=True
            )
        yield one


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
