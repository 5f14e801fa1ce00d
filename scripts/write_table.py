"""Runs of many recipes and seeds -> a table of a paper at tiny scale: `write_table.py sera-noise40 --seeds 1 2 3`."""

import argparse
import sys
from pathlib import Path

from rich.console import Console
from rich.markdown import Markdown

from handbook_ext.core.errors import UserError, run_main
from handbook_ext.core.stage import Stage
from handbook_ext.recipes.writing import resolve
from handbook_ext.reports.pages import render_table
from handbook_ext.reports.table_summary import RowRuns, summarise_table, table_inputs
from handbook_ext.reports.tables import read_table

BOOTSTRAP = {"resamples": 2000, "confidence": 0.95}


def main(argv: list[str]) -> None:
    """Prints the variables that make needs (--list), or reads the runs, writes the table and prints it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("table", help="a file of recipes/tables, without .yaml")
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3], help="1 is the recipe's own seed")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder of all runs")
    parser.add_argument("--list", action="store_true", help="print its recipes and their policies, as make reads them")
    arguments = parser.parse_args(argv)
    name, seeds = arguments.table, arguments.seeds
    if len(set(seeds)) < len(seeds):
        raise UserError(f"--seeds {' '.join(map(str, seeds))}: a seed is named twice; name each once")
    table = read_table(name)
    recipes = list(dict.fromkeys(row.recipe for row in table.rows))
    if arguments.list:
        policies = [f"{row.recipe}/{policy}" for row in table.rows for policy in ("start", row.policy or "last")]
        print(f"recipes.{name} := {' '.join(recipes)}\npolicies.{name} := {' '.join(dict.fromkeys(policies))}")
        return
    resolved = {recipe: resolve(recipe) for recipe in recipes}
    runs = {}
    for row in table.rows:
        run, recipe = resolved[row.recipe], row.recipe
        folders = [arguments.runs / (recipe if k == 1 else f"{recipe}-seed{k}") for k in seeds]
        runs[row.name] = RowRuns(run.start, run.iterations[-1].name, folders)
    settings = {"stage": "table", "recipe": name, "table": table.model_dump(), "seeds": seeds}
    stage = Stage(arguments.runs / f"table-{name}" / "report", settings, table_inputs(table, runs))
    if not stage.finished():
        numbers = summarise_table(table, runs, **BOOTSTRAP)
        stage.out.mkdir(exist_ok=True)
        for file, content in render_table(numbers, seeds).items():
            (stage.out / file).write_bytes(content)
        stage.publish({"in": len(table.rows), "out": len(table.rows)})
    text = (stage.artifact / "table.md").read_text(encoding="utf-8")
    Console(width=None if sys.stdout.isatty() else 220).print(Markdown(text))
    print(f"table: {stage.artifact / 'table.md'}")


if __name__ == "__main__":
    run_main(main)
