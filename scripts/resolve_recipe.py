"""Recipe -> one settings file per stage and iteration, rewritten only when its content changes."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from handbook_ext.core.errors import UserError, run_main
from handbook_ext.recipes.writing import recipe_files, resolve, shown_settings, unsupported_settings, write_run


def main(argv: list[str]) -> None:
    """Writes the settings of runs, or prints them, or the names of all recipes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", nargs="*", metavar="RUN", help="recipes, such as tiny-selm, or tiny-selm-seed3")
    parser.add_argument("--runs", type=Path, default=Path("runs"), metavar="DIR", help="folder of all runs")
    parser.add_argument(
        "--show", nargs="?", const="", metavar="ITERATION", help="print the settings and their origin; write nothing"
    )
    parser.add_argument("--list", action="store_true", help="print the names of all recipes")
    arguments = parser.parse_args(argv)
    if arguments.list:
        sys.stdout.write("".join(f"{name}\n" for name in recipe_files()))
        return
    if not arguments.run:
        raise UserError(f"which recipe? give one of: {', '.join(recipe_files())}")
    runs = [resolve(name) for name in arguments.run]
    for run in runs:
        if arguments.show is None:
            write_run(run, arguments.runs)
            sys.stderr.write("".join(f"note: {run.recipe}: {line}\n" for line in unsupported_settings(run)))
            continue
        sys.stdout.write("".join(f"{line}\n" for line in shown_settings(run, arguments.show or None)))


if __name__ == "__main__":
    run_main(main)
