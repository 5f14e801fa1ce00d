"""Mutation testing: `make mutants`, or `python -m tests.mutants --help`.

Draws mutants of the modules in targets.yaml, adds those of named.yaml, and runs the nearest tests against each. Writes
report.json and report.md. The exit status is 1 where too few are killed, a named one survives, or too many are declared
equivalent; 2 where there is no result, since the tests fail without any mutant or a file beside this one is wrong.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import os
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, takewhile
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from tests.mutants import forks
from tests.mutants.mutations import Mutant, mutant_of, sample
from tests.mutants.report import EQUIVALENT, KILLED, SURVIVED, TIMEOUT, Outcome, faults, read_outcomes, write_report

HERE, ROOT = Path(__file__).parent, Path(__file__).parents[2]
PACKAGE = ROOT / "src" / "handbook_ext"
# A mutant may take so many times as much CPU time as the tests do without one, and so many seconds more.
SLACK, SLACK_SECONDS = 4, 10
BASELINE_SECONDS = 600
PROGRESS_SECONDS = 10


class Drawn(NamedTuple):
    """A mutant to run, the tests that run for it, and its name in named.yaml, if any."""

    mutant: Mutant
    tests: tuple[str, ...]
    name: str = ""


@dataclass(frozen=True)
class Target:
    """How a file is mutated: the functions (none named: all of them), and the tests that run for it."""

    functions: frozenset[str]
    tests: tuple[str, ...]


def main(argv: Sequence[str]) -> int:
    """Returns the exit status, after the report is written."""
    args, started = _arguments(argv), time.monotonic()
    targets = {
        file: Target(frozenset(row.get("functions", ())), _paths(row["tests"]))
        for row in _rows("targets")
        for file in row["files"]
    }
    sampled = islice(sample(PACKAGE, {file: target.functions for file, target in targets.items()}, args.seed), args.size)
    drawn = [*_named(targets), *(Drawn(mutant, targets[mutant.file].tests) for mutant in sampled)]
    # Outcomes of an earlier run stay where their mutants are not run again, and are still drawn from the present source.
    keys = {each.mutant.key for each in drawn}
    earlier = [one for one in read_outcomes(args.out / "report.json") if one.mutant.key in keys] if args.only else []
    chosen = [each for each in drawn if _wanted(args.only, each.mutant, {one.mutant.key: one.state for one in earlier})]
    reasons = _reasons()
    print(f"{len(chosen)} mutants; first the tests without any", flush=True)
    forks.preload(PACKAGE.parent)
    limits = _limits({each.tests for each in chosen}, args.processes)
    found: list[Outcome] = []
    with contextlib.suppress(KeyboardInterrupt):
        for one in _progress(_outcomes(chosen, limits, reasons, args), len(chosen)):
            found.append(one)
    new = {one.mutant.key for one in found}
    outcomes = [one for one in earlier if one.mutant.key not in new] + found
    about = {"seed": args.seed, "mutants": len(outcomes), "minutes": round((time.monotonic() - started) / 60, 1)}
    print(write_report(args.out, outcomes, about))
    print(*(one.mutant.diff + "\n" for one in found if one.state == SURVIVED), sep="\n")
    wrong = faults(outcomes)
    if missing := len(drawn) - len(outcomes):
        wrong.append(f"{missing} of {len(drawn)} mutants were not run; ONLY=missing runs them")
    print(f"{args.out / 'report.md'}: {'; '.join(wrong) or 'enough are killed'}")
    return int(bool(wrong))


def _wanted(only: str, mutant: Mutant, states: dict[tuple[str, ...], str]) -> bool:
    """Returns whether a mutant is to be run: a survivor, one that is missing in `states`, one of a file, or any."""
    if only == "survivors":
        return states.get(mutant.key) == SURVIVED
    if only == "missing":
        return mutant.key not in states
    return only in mutant.file


def _arguments(argv: Sequence[str]) -> argparse.Namespace:
    """Returns the settings of the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutants", description="Mutation testing of the pure modules.")
    parser.add_argument("--size", type=int, default=500, help="mutants in the sample")
    parser.add_argument("--seed", type=int, default=1, help="of the sample")
    parser.add_argument("--minutes", type=float, default=60, help="no mutant starts later")
    parser.add_argument("--processes", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--only", default="", help="survivors or missing of the last run, or part of a file's name")
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "mutants")
    return parser.parse_args(argv)


def _rows(name: str) -> list[dict[str, Any]]:
    """Returns the rows of a file beside this one."""
    return list(yaml.safe_load((HERE / f"{name}.yaml").read_text(encoding="utf-8")))


def _paths(tests: Sequence[str]) -> tuple[str, ...]:
    """Returns the full paths of tests."""
    return tuple(str(ROOT / "tests" / name) for name in tests)


def _named(targets: dict[str, Target]) -> Iterator[Drawn]:
    """Yields the mutants of named.yaml; ends the program where one's text does not stand once in its file."""
    for row in _rows("named"):
        source = (PACKAGE / row["file"]).read_text(encoding="utf-8")
        if source.count(row["before"]) != 1:
            sys.exit(f"named.yaml: {row['name']}: `before` stands {source.count(row['before'])} times in {row['file']}, not once")
        mutant = mutant_of(row["file"], source, source.replace(row["before"], row["after"]))
        yield Drawn(mutant, _paths(row["tests"]) if "tests" in row else targets[row["file"]].tests, row["name"])


def _reasons() -> dict[tuple[str, ...], str]:
    """Returns why mutants are equivalent, by their keys; ends the program where their file no longer has their lines."""
    reasons = {}
    for row in _rows("equivalent"):
        key = tuple(row[name].strip() for name in ("file", "function", "before", "after"))
        lines = {line.strip() for line in (PACKAGE / row["file"]).read_text(encoding="utf-8").splitlines()}
        if not set(key[2].splitlines()) <= lines:
            sys.exit(f"equivalent.yaml: {row['file']} no longer holds {row['before'].strip()!r}; mend or delete the entry")
        reasons[key] = row["reason"]
    return reasons


def _limits(groups: set[tuple[str, ...]], processes: int) -> dict[tuple[str, ...], int]:
    """Returns the CPU seconds that each group of tests may take with a mutant; ends the program where one fails without."""
    ordered = sorted(groups)
    limits = {}
    for number, status, seconds in forks.run_all((forks.Task(tests, BASELINE_SECONDS) for tests in ordered), processes):
        if status != 0:
            sys.exit(f"pytest {' '.join(ordered[number])}: exit status {status} without any mutant; mend that first")
        limits[ordered[number]] = SLACK_SECONDS + math.ceil(SLACK * seconds)
    return limits


def _outcomes(
    chosen: Sequence[Drawn], limits: dict[tuple[str, ...], int], reasons: dict[tuple[str, ...], str], args: argparse.Namespace
) -> Iterator[Outcome]:
    """Yields what became of mutants; none starts when the time is over."""
    end = time.monotonic() + 60 * args.minutes

    def task(each: Drawn) -> forks.Task:
        """Returns what to run for a mutant."""
        module = f"{PACKAGE.name}/{each.mutant.file}".removesuffix(".py").replace("/", ".")
        return forks.Task(each.tests, limits[each.tests], (PACKAGE / each.mutant.file, module, each.mutant.source))

    tasks = (task(each) for each in takewhile(lambda _: time.monotonic() < end, chosen))
    for number, status, seconds in forks.run_all(tasks, args.processes):
        mutant, _, name = chosen[number]
        state = {0: SURVIVED, forks.TIMEOUT: TIMEOUT}.get(status, KILLED)
        reason = reasons.get(mutant.key, "")
        if reason and state == SURVIVED:
            state = EQUIVALENT
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
            left = (expected - number) / rate / 60
            print(
                f"{number} of {expected} mutants, {survived} survived, {60 * rate:.0f} a minute, {left:.1f} min left", flush=True
            )
        yield one


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
