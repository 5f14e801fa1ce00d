"""Recipe -> one settings file per stage and iteration, and run.mk, rewritten only when their content changes."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from handbook_ext.core.errors import UserError, run_main
from handbook_ext.recipes.listing import ListedRecipe, extras_here, listed_recipes, shown_settings
from handbook_ext.recipes.names import recipe_files, unusable_files
from handbook_ext.recipes.overrides import parse_data, parse_set
from handbook_ext.recipes.run import resolve


def main(argv: list[str]) -> None:
    """Writes the settings of runs, or prints them, or a table of all recipes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", nargs="*", metavar="RUN", help="runs, such as tiny-selm, tiny-sera-noise40 or tiny-selm-seed3")
    parser.add_argument("--runs", type=Path, default=Path("runs"), metavar="DIR", help="folder of all runs")
    parser.add_argument("--set", default="", metavar="SETTINGS", help='such as "train.beta=0.5 select.keep=0.5"')
    parser.add_argument("--data", metavar="DIR", help="folder with train.jsonl and test.jsonl, or .parquet")
    parser.add_argument(
        "--show", nargs="?", const="", metavar="ITERATION", help="print the settings and their origin; write nothing"
    )
    parser.add_argument("--list", action="store_true", help="print a table of all recipes")
    arguments = parser.parse_args(argv)
    if arguments.list:
        found = list(listed_recipes())
        show_recipes([each for each in found if not isinstance(each, str)])
        notes = [*(each for each in found if isinstance(each, str)), *unusable_files()]
        sys.stderr.write("".join(f"note: {' '.join(line.split())}\n" for line in notes))
        return
    if not arguments.run:
        raise UserError(f"which recipe? give one of: {', '.join(recipe_files())}")
    overrides = parse_set(arguments.set, "--set") + (parse_data(arguments.data, "--data") if arguments.data else [])
    runs = [resolve(name, overrides=overrides) for name in arguments.run]
    for run in runs:
        if arguments.show is None:
            from handbook_ext.graph.makefile import write_run  # noqa: PLC0415 - what is shown alone needs no stages

            write_run(run, arguments.runs)
            sys.stderr.write(
                "".join(f"note: {run.recipe}: needs the extra {name}, which make installs\n" for name in extras_here(run))
            )
            continue
        sys.stdout.write("".join(f"{line}\n" for line in shown_settings(run, arguments.show or None)))


def show_recipes(recipes: Sequence[ListedRecipe]) -> None:
    """Prints the recipes by model, a line each."""
    from rich.console import Console  # noqa: PLC0415 - slow to load, and only tables need it
    from rich.table import Table  # noqa: PLC0415

    console = Console(width=None if sys.stdout.isatty() else 200)
    for model in dict.fromkeys(each.name.split("-")[0] for each in recipes):
        table = Table(
            "recipe", "method", "paper", "data", "launch", "variants", "missing here", title=model, title_justify="left"
        )
        for each in recipes:
            if each.name.split("-")[0] == model:
                columns = (each.method, each.paper, each.data, each.launch, " ".join(each.variants), each.missing or "-")
                table.add_row(each.name, *columns)
        console.print(table)


if __name__ == "__main__":
    run_main(main)
