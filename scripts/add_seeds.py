"""Makes a table or a report of seeds with more and more seeds, until its intervals are narrow enough: `make <goal> SEEDS=auto`.

Make's graph is fixed before it starts, so this calls make itself, with SEEDS=5, 6, 7, 8, 10 and so on; what is finished stays. It
looks at the widths of the intervals alone. A mean of seeds does not become larger or smaller by that, and the verdicts hardly
more frequent: with normal seeds and no difference, Student's t at 95 % finds one in 5 to 8 of 100 cases (in 17, were it to
stop at the first verdict), because it stops a little sooner where the spread looks small by chance.
"""

import argparse
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from handbook_ext.core.console import say
from handbook_ext.core.errors import UserError, run_main
from handbook_ext.core.inner_make import as_by_hand
from handbook_ext.recipes.until import FIRST_SEEDS, next_count
from handbook_ext.reports.evaluations import read_json
from handbook_ext.reports.seed_widths import widths

OWN = ("SEEDS", "UNTIL")


def main(argv: list[str]) -> None:
    """Calls make until the intervals are narrow or the seeds are spent; exits as a make does that fails."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("goal", help="a table, or <recipe>-seeds")
    parser.add_argument("--make", default="make", help="the make to be called")
    parser.add_argument("--report", type=Path, required=True, help="the folder that the goal writes its summary.json to")
    parser.add_argument("--difference", type=float, required=True, help="how far each interval may reach to either side, a share")
    parser.add_argument("--most", type=int, required=True, help="seeds at most")
    parser.add_argument("--variable", action="append", default=[], metavar="NAME=VALUE", help="a variable as make knows it")
    parser.add_argument("--given", action="append", default=[], metavar="NAME", help="a variable of make's command line")
    arguments = parser.parse_args(argv)
    variables = dict(each.split("=", 1) for each in arguments.variable)
    count = FIRST_SEEDS
    while True:
        make(arguments.make, arguments.goal, count, variables, arguments.given)
        found = widths(read_json(arguments.report / "summary.json"))
        if not found:
            raise UserError(f"{arguments.goal}: has no interval that seeds could narrow; give SEEDS a number")
        widest = max(found)
        asked = f"{100 * arguments.difference:g} are asked for"
        reach = f"the widest of {len(found)} intervals reaches {100 * widest.reach:.1f} points to either side ({widest.words})"
        if widest.reach <= arguments.difference:
            say(f"SEEDS=auto: {count} seeds are enough: {reach}, {asked}")
            return
        if count >= arguments.most:
            more = f"UNTIL=seeds={min(99, 2 * count)} would add some"
            say(f"SEEDS=auto: {count} seeds are spent, and {reach}, where {asked}; {more}")
            return
        count = next_count(count, arguments.most)
        say(f"SEEDS=auto: {reach}, {asked}: going on with {count} seeds")


def make(command: str, goal: str, seeds: int, variables: Mapping[str, str], given: Sequence[str]) -> None:
    """Makes the goal with so many seeds; what stood on the command line does so again, the rest is in the environment."""
    words = [f"{name}={variables.get(name, '')}" for name in given if name not in OWN]
    inherited = as_by_hand() | {name: value for name, value in variables.items() if name not in (*given, *OWN)}
    with subprocess.Popen([command, goal, f"SEEDS={seeds}", *words], env=inherited) as process:
        try:
            status = process.wait()
        except KeyboardInterrupt:
            process.wait()  # Ctrl-C has reached make and its stages too, which end in their own way.
            raise
    if status:
        sys.exit(status)


if __name__ == "__main__":
    run_main(main)
