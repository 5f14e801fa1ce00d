"""Reads every file of a run again: whether its artifacts are what their stages made, under the settings that hold now.

Make calls this for `make <run>-verify`, once scripts/plan_goals.py has written the settings of the stages.
"""

import argparse
import sys
from dataclasses import replace
from pathlib import Path

from handbook_ext.core.errors import UserError, run_main
from handbook_ext.graph.goals import VARIABLES, plan_goals, runs_folder
from handbook_ext.graph.run_rules import run_rules
from handbook_ext.reports.verification import verify_run


def main(argv: list[str]) -> None:
    """Prints a line for each artifact as soon as it is read, and how many are as they were made; a UserError where one is not."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("goal", help="a goal of make: <run>-verify")
    parser.add_argument("--variable", action="append", default=[], metavar="NAME=VALUE", help="a variable as make knows it")
    parser.add_argument("--given", action="append", default=[], metavar="NAME", help="a variable of make's command line")
    arguments = parser.parse_args(argv)
    variables = dict.fromkeys(arguments.given, "") | dict(each.split("=", 1) for each in arguments.variable)
    variables = {name: value for name, value in variables.items() if name in VARIABLES}
    [run] = plan_goals([arguments.goal], variables).runs.values()
    folder = Path(runs_folder(variables)) / run.name
    # Whatever the run was evaluated on, at whatever time.
    rules = run_rules(replace(run, sets=run.settings.benchmarks.evaluations))
    found = []
    for each in verify_run(rules, folder):
        found.append(each)
        place = f"{len(found)}/{len(rules)}" if len(found) <= len(rules) else "beside"
        sys.stdout.write(f"[{place:>6}] {each.word:8} {each.artifact}{each.about and f': {each.about}'}\n")
        sys.stdout.flush()
    wrong = [each for each in found if each.wrong]
    made = sum(each.word == "ok" for each in found)
    if wrong:
        raise UserError(
            f"{folder}: {len(wrong)} of {len(wrong) + made} artifacts are not as they were made, the first: {wrong[0].artifact} "
            f"({wrong[0].word}); restore what is changed or missing, or delete its manifest and make it again; stale ones are "
            "made again by make"
        )
    if not made:
        raise UserError(f"{folder}: nothing of this run was made yet, so there is nothing to verify; make {run.name} makes it")
    sys.stdout.write(f"{folder}: all {made} artifacts are as they were made; {len(found) - made} were not made yet\n")


if __name__ == "__main__":
    run_main(main)
