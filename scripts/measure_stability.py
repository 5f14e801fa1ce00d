"""A recipe under the roundings of several machines and seeds that chose nothing -> a table: `measure_stability.py --seeds 5`.

Each run is made by make as any other, in RUNS/<machine>: what is finished is kept, and the same command goes on. The table,
OUT/stability.json and .md, keeps rows that were made under the same settings on other days.
"""

import argparse
import shutil
import subprocess
import sys
from pathlib import Path

from handbook_ext.core import console
from handbook_ext.core.errors import UserError, run_main
from handbook_ext.core.inner_make import as_by_hand
from handbook_ext.core.jsonl import replace_text
from handbook_ext.core.machine import IMITATED, imitable
from handbook_ext.recipes.names import read_name
from handbook_ext.recipes.overrides import parse_set
from handbook_ext.recipes.run import Run, resolve
from handbook_ext.recipes.yaml_tree import nearest
from handbook_ext.reports.stability import FRESH, merged, render_rows
from handbook_ext.reports.stability_rows import StabilityRow, row_of, rows_in


def main(argv: list[str]) -> None:
    """Makes the runs of one machine after the other, and the table anew after each; prints it at the end."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--of", default="tiny-selm", metavar="RUN", help="the run, without a seed (default tiny-selm)")
    parser.add_argument("--machines", default="", metavar="NAMES", help=f"parted by blanks, of: {', '.join(IMITATED)}")
    parser.add_argument("--seeds", type=int, default=5, metavar="N", help="how many seeds (default 5)")
    parser.add_argument("--first", type=int, default=FRESH, metavar="N", help=f"the first of them (default {FRESH})")
    parser.add_argument("--set", default="", metavar="SET", help='settings of the recipe, such as "data.train_rows=400"')
    parser.add_argument("--runs", type=Path, default=Path("runs/stability"), help="folder of the runs, one in it by machine")
    parser.add_argument("--out", type=Path, help="folder of the table (default that of the runs)")
    parser.add_argument("--jobs", type=int, default=2, metavar="N", help="stages at a time (default 2)")
    parser.add_argument("--threads", type=int, default=1, metavar="N", help="threads of a stage (default 1)")
    arguments = parser.parse_args(argv)
    machines = chosen(arguments.machines)
    runs = seeded(arguments)
    table = (arguments.out or arguments.runs) / "stability"
    rows_in(table.with_suffix(".json"))  # Told before an hour of work, where it is damaged.
    made: list[StabilityRow] = []
    for place, machine in enumerate(machines, start=1):
        console.say(f"machine {machine}, {place} of {len(machines)}: {' '.join(run.name for run in runs)}")
        make(arguments, machine, runs)
        made += [row_of(arguments.runs / machine / run.name, machine, IMITATED[machine]) for run in runs]
        write_table(table, made)
    console.show(table.with_suffix(".md").read_text(encoding="utf-8"))
    console.show(f"table: {table.with_suffix('.md')}")


def chosen(words: str) -> list[str]:
    """Returns the machines that are asked for, all that this one can imitate where none is; a UserError for any other."""
    here = imitable()
    names = list(dict.fromkeys(words.split())) or here
    for name in names:
        if name not in IMITATED:
            raise UserError(f"MACHINES: {name} is none{nearest(name, IMITATED)}; there are: {', '.join(IMITATED)}")
        if name not in here:
            raise UserError(f"MACHINES: this processor cannot imitate {name}; it can: {', '.join(here)}")
    return names


def seeded(arguments: argparse.Namespace) -> list[Run]:
    """Returns the run under each seed; a UserError where it has a seed of its own, or computes elsewhere than on a CPU."""
    if arguments.seeds < 1 or arguments.first < 1:
        raise UserError(f"--seeds is {arguments.seeds} and --first {arguments.first}; both are at least 1")
    if len(arguments.of.split()) != 1:
        raise UserError(f"OF: {arguments.of!r} is not one run; name one, such as OF=tiny-selm")
    if (own := read_name(arguments.of).seed) is not None:
        raise UserError(f"OF: {arguments.of} has a seed of its own; name it without, and give FIRST={own} SEEDS=1")
    overrides = parse_set(arguments.set)
    seeds = range(arguments.first, arguments.first + arguments.seeds)
    runs = [resolve(f"{arguments.of}-seed{seed}", overrides=overrides) for seed in seeds]
    if runs[0].launch.name != "cpu":
        raise UserError(f"OF: {arguments.of} is launched by {runs[0].launch.name}, and only a CPU's roundings are imitated")
    return runs


def make(arguments: argparse.Namespace, machine: str, runs: list[Run]) -> None:
    """Makes the runs under a machine's variables; make's own lines say how far they are. Exits with make's status on failure."""
    ours = {name for variables in IMITATED.values() for name in variables}
    environment = {name: value for name, value in as_by_hand().items() if name not in ours}
    words = {"RUNS": arguments.runs / machine, "JOBS": arguments.jobs, "THREADS": arguments.threads}
    goals = [f"{arguments.of}-seed{run.settings.seed}" for run in runs]
    command = [
        shutil.which("gmake") or "make",
        "--no-print-directory",
        *goals,
        *(f"{name}={value}" for name, value in words.items()),
    ]
    command += [f"SET={arguments.set}"] if arguments.set else []
    status = subprocess.run(command, env=environment | IMITATED[machine], check=False).returncode
    if status:
        console.say(f"stability: machine {machine} is not finished; what is done is kept, and the same command goes on")
        sys.exit(2)


def write_table(table: Path, made: list[StabilityRow]) -> None:
    """Writes the table of these rows and of those of other days that are made alike."""
    rows, notes = merged(rows_in(table.with_suffix(".json")), made)
    for line in notes:
        console.say(f"note: {line}")
    table.parent.mkdir(parents=True, exist_ok=True)
    for suffix, text in render_rows(rows).items():
        replace_text(table.with_suffix(suffix), text)


if __name__ == "__main__":
    run_main(main)
