"""Make's goals and variables -> the makefiles that make reads: run.mk of each run, and what connects them with the goals.

Prints their paths. Make calls this with its words quoted, before it reads any of these files; nothing here goes through a shell.
"""

import argparse
import hashlib
import json
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from handbook_ext.core.errors import UserError, run_main
from handbook_ext.core.goal_progress import PROGRESS, write_expected
from handbook_ext.graph.expected import expected_stages
from handbook_ext.graph.folders import request_file
from handbook_ext.graph.goals import VARIABLES, WHY, Plan, plan_goals, runs_folder
from handbook_ext.graph.makefile import replaced, write_run
from handbook_ext.graph.rules_benchmarks import unused_sets
from handbook_ext.graph.why import why_text
from handbook_ext.planning.preflight import Looked, Pending, edited, missing, pending_of, unknown_sizes
from handbook_ext.recipes.launch_checks import crowded
from handbook_ext.recipes.listing import extras_here
from handbook_ext.recipes.run import Run
from handbook_ext.reports.endings import WIDTH, Ending

EXTRA = ".venv/extra-"  # The file by which make knows that an extra is installed.


def main(argv: list[str]) -> None:
    """Checks the words, writes the files, prints which make has to include."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("goal", nargs="*", help="goals of make")
    parser.add_argument("--variable", action="append", default=[], metavar="NAME=VALUE", help="a variable as make knows it")
    parser.add_argument("--given", action="append", default=[], metavar="NAME", help="a variable of make's command line")
    parser.add_argument("--preflight", action="store_true", help="refuse goals whose stages lack something on this machine")
    arguments = parser.parse_args(argv)
    variables = dict.fromkeys(arguments.given, "") | dict(each.split("=", 1) for each in arguments.variable)
    plan = plan_goals(arguments.goal, {name: value for name, value in variables.items() if name in VARIABLES}, arguments.given)
    runs = Path(runs_folder(variables))
    try:
        for run in plan.runs.values():
            write_run(run, runs)
        for name in plan.explained:
            replaced(runs / name / WHY, why_text(plan.runs[name], runs / name))
        for name, asked in plan.planned.items():
            replaced(runs / name / request_file(asked), json.dumps(asked) + "\n")
        # Under -n nothing starts: what make prints then is what a person can run.
        pending: dict[str, list[Pending]] = {}
        looked: Looked = {}
        if arguments.preflight:
            pending = {goal: pending_of(plan.runs, wanted, runs, looked) for goal, wanted in plan.wanted.items()}
            again = " ".join(shlex.quote(f"{name}={variables[name]}") for name in arguments.given if name in variables)
            add_endings(plan, pending, runs, again)
        text = "\n".join(plan.lines) + "\n"
        path = runs / ".goals" / f"{hashlib.sha256(text.encode()).hexdigest()[:16]}.mk"
        if arguments.preflight:
            progress = path.with_suffix(".progress")
            text += f"override export {PROGRESS} := {progress}\n"
            left = [(each.run, each.rules) for stages in pending.values() for each in stages]
            write_expected(progress, expected_stages(left, runs))
        replaced(path, text)
    except OSError as error:
        raise UserError(not_written(error, runs)) from None
    notes = dict.fromkeys([*plan.notes, *(line for run in plan.runs.values() for line in notes_of(run))])
    sys.stderr.write("".join(f"note: {line}\n" for line in notes))
    lacking = {name: run.recipe for run in plan.runs.values() for name in extras_here(run)}
    if arguments.preflight:
        lacking = preflight(plan, pending, runs, looked)
    else:
        notes = [f"{recipe}: the extra {name} is missing, and make installs it" for name, recipe in lacking.items()]
        sys.stderr.write("".join(f"note: {line}\n" for line in [*edited(plan.runs, plan.wanted, runs), *notes]))
    # Make makes what it includes before anything else, and starts anew: so an extra is there before the first stage.
    extras = [f"{EXTRA}{name}" for name in lacking] if arguments.preflight else []
    print(" ".join([*extras, str(path), *(str(runs / name / "run.mk") for name in plan.runs)]))


def not_written(error: OSError, runs: Path) -> str:
    """Returns why a file of the plan cannot be written, and what to do."""
    path = Path(error.filename or runs)
    in_the_way = next((each for each in path.parents if each.exists() and not each.is_dir()), None)
    if in_the_way is not None:
        return f"{in_the_way}: is a file, and a folder is needed there; move it away, or give another RUNS"
    if path.is_dir() and path != runs:
        return f"{path}: is a folder, and a file is needed there; move it away"
    return f"{path}: cannot be written ({error.strerror}); check RUNS and the disk"


def notes_of(run: Run) -> list[str]:
    """Returns what is odd about a run and hinders nothing that was asked for."""
    stale = run.tuned.stale if run.tuned is not None else None
    return [*([stale] if stale else []), *unused_sets(run), *crowded(run.launch)]


def add_endings(plan: Plan, pending: Mapping[str, Sequence[Pending]], runs: Path, again: str) -> None:
    """Has make show what a goal has made, once it is reached; `again` are the variables of this call.

    What is finished is shown by its text, since another start of Python would take as long as all of a repeat.
    """
    width = os.get_terminal_size(2).columns if os.isatty(2) else WIDTH
    for goal, (name, made, then) in plan.endings.items():
        ending = Ending(str(runs / name), made, f"make {then} {again}".rstrip() if then else "")
        whole = runs / ".goals" / hashlib.sha256(ending.record().encode()).hexdigest()[:16]
        looks = f"\t@$(PYTHON) scripts/write_report.py {runs / name}" in plan.lines
        if pending[goal] or looks:
            replaced(file := whole.with_suffix(".json"), ending.record())
            plan.then(goal, f"@$(PYTHON) scripts/show_goal.py {file}")
        else:
            replaced(file := whole.with_suffix(".txt"), ending.text(width))
            plan.then(goal, f"@cat {file}")


def preflight(plan: Plan, goals: Mapping[str, Sequence[Pending]], runs: Path, looked: Looked) -> list[str]:
    """Returns the extras that must be installed before the stages still to be made.

    Raises UserError, a line for each, for all that these need and cannot have here, and for finished artifacts that are not what
    their stages made.
    """
    lacks = missing(goals)
    lines = [*edited(plan.runs, plan.wanted, runs, looked), *lacks]
    if lacks or any(goal.endswith("-check") for goal in goals):
        sys.stderr.write("".join(f"note: {line}\n" for line in unknown_sizes(goals)))
    if lines:
        raise UserError(*lines)
    return sorted({name for pending in goals.values() for each in pending if each.needing for name in extras_here(each.run)})


if __name__ == "__main__":
    run_main(main)
