"""The trials of a table's methods -> what each does best with, laid over its recipe: `choose_settings.py sera1 --model tiny`."""

import argparse
import datetime
import sys
from pathlib import Path

from handbook_ext.core.errors import UserError, run_main
from handbook_ext.graph.makefile import begun_with
from handbook_ext.recipes.names import RECIPES, TUNE
from handbook_ext.recipes.table_files import read_table
from handbook_ext.recipes.trials import methods_of
from handbook_ext.reports.tuning_choices import lines_of, write_choice
from handbook_ext.reports.tuning_results import outcome_of


def main(argv: list[str]) -> None:
    """Reads the trials, writes the choice of each method whose trials are all finished, and prints them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("table", help="a file of recipes/tables, without .yaml")
    parser.add_argument("--model", help="whose recipes its rows are; without it tiny's, or the table's first")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder of all runs")
    arguments = parser.parse_args(argv)
    command = f"make {TUNE}{arguments.table}" + (f" MODEL={arguments.model}" if arguments.model else "")
    table = read_table(arguments.table, model=arguments.model)
    methods = methods_of(table, engines=lambda name: begun_with(arguments.runs / name))
    outcomes = [outcome_of(method, arguments.runs, RECIPES) for method in methods]
    today = datetime.date.today().isoformat()
    mistakes = []
    for each in outcomes:
        sys.stdout.write("".join(f"{line}\n" for line in lines_of(each)))
        if each.unfinished:
            mistakes.append(
                f"{each.method.name.full}: {each.unfinished[0]} is not finished, nor are {len(each.unfinished) - 1} others; its "
                f"logs say why where a stage has failed; {command} goes on from what there is"
            )
        elif write_choice(each, arguments.runs, date=today, command=command):
            sys.stdout.write(f"  choice: {each.method.file}\n")
        else:
            mistakes.append(f"{each.method.name.full}: every trial failed, so nothing is chosen; widen its axes")
    if mistakes:
        raise UserError(*mistakes)


if __name__ == "__main__":
    run_main(main)
