"""Runs of many recipes and seeds -> a table of a paper at tiny scale: `write_table.py sera-noise40 --seeds 1 2 3`."""

import argparse
import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import jinja2
from rich.console import Console
from rich.markdown import Markdown

from handbook_ext.core.errors import UserError, run_main
from handbook_ext.core.stage import Stage
from handbook_ext.recipes.writing import Run, resolve
from handbook_ext.reports.table_figures import drawn
from handbook_ext.reports.tables import (
    Table,
    judge_claim,
    measure,
    overlap_between_iterations,
    overlap_between_rows,
    read_table,
    summarise_row,
)

BOOTSTRAP = {"resamples": 2000, "confidence": 0.95}


def main(argv: list[str]) -> None:
    """Prints the variables that make needs (--list), or reads the runs, writes the table and prints it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("table", help="a file of recipes/tables, without .yaml")
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3], help="1 is the recipe's own seed")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder of all runs")
    parser.add_argument("--list", action="store_true", help="print its recipes and their policies, as make reads them")
    given = parser.parse_args(argv)
    if len(set(given.seeds)) < len(given.seeds):
        raise UserError(f"--seeds {' '.join(map(str, given.seeds))}: a seed is named twice; name each once")
    table = read_table(given.table)
    recipes = list(dict.fromkeys(row.recipe for row in table.rows))
    if given.list:
        shown = [f"{row.recipe}/{policy}" for row in table.rows for policy in ("start", row.policy or "last")]
        print(f"recipes.{given.table} := {' '.join(recipes)}\npolicies.{given.table} := {' '.join(dict.fromkeys(shown))}")
        return
    runs = {recipe: resolve(recipe) for recipe in recipes}
    last = {recipe: run.iterations[-1].name for recipe, run in runs.items()}
    folders = {recipe: [given.runs / (recipe if k == 1 else f"{recipe}-seed{k}") for k in given.seeds] for recipe in recipes}
    inputs = []
    for row in table.rows:
        policy = row.policy or last[row.recipe]
        for folder in folders[row.recipe]:
            trained = {*([policy] if policy.startswith("iter") else []), *(table.similarity if row.policy is None else [])}
            inputs += [folder / runs[row.recipe].start / "eval.json", folder / policy / "eval.json"]
            inputs += [folder / iteration / "pairs.jsonl" for iteration in sorted(trained)]
    settings = {"stage": "table", "recipe": given.table, "table": table.model_dump(), "seeds": given.seeds}
    stage = Stage(given.runs / f"table-{given.table}" / "report", settings, list(dict.fromkeys(inputs)))
    if not stage.finished():
        files = rendered(table, folders, runs, given.seeds)
        stage.out.mkdir(exist_ok=True)
        for name, content in files.items():
            (stage.out / name).write_bytes(content)
        stage.publish({"in": len(table.rows), "out": len(table.rows)})
    text = (stage.artifact / "table.md").read_text(encoding="utf-8")
    Console(width=None if sys.stdout.isatty() else 220).print(Markdown(text))
    print(f"table: {stage.artifact / 'table.md'}")


def rendered(table: Table, folders: dict[str, list[Path]], runs: dict[str, Run], seeds: list[int]) -> dict[str, bytes]:
    """Returns the files of the table by name: the page, its numbers, the pictures."""
    measured = {}
    for row in table.rows:
        run = runs[row.recipe]
        measured[row.name] = measure(row, folders[row.recipe], run.start, run.iterations[-1].name)
    if len({tuple(each.scores) for each in measured.values()}) > 1:
        raise UserError(f"table {table.title}: its rows are not sampled at the same temperatures; give all one `evaluate`")
    rows = [summarise_row(each, **BOOTSTRAP) for each in measured.values()]
    decodings = sorted(rows[0]["decodings"], key=lambda name: name == "greedy")  # Claims are judged by samples, if there are any.
    claims = [judge_claim(claim, measured, decodings[0], **BOOTSTRAP) for claim in table.claims]
    told: dict[str, Any] = {"rows": rows, "claims": claims}
    alike, again = {}, {}
    if table.similarity:
        compared = {row.name: folders[row.recipe] for row in table.rows if row.policy is None}
        alike = overlap_between_rows(compared, table.similarity[-1])
        again = {
            name: overlap_between_iterations(each, table.similarity)
            for name, each in compared.items()
            if len(table.similarity) == 2
        }
        told["overlap_between_rows"] = [{"rows": list(names), "jaccard": value} for names, value in alike.items()]
        told["overlap_between_iterations"] = again
    files, captions = drawn(table, rows, measured, folders, decodings[0])
    environment = jinja2.Environment(loader=jinja2.PackageLoader("handbook_ext.reports"), autoescape=False)  # noqa: S701 - Markdown
    page = environment.get_template("table.md.j2").render(
        table=table, rows=rows, claims=claims, decodings=decodings, overlap_between_rows=alike, again=again, seeds=seeds,
        pictures=captions, names=list(dict.fromkeys(name for names in alike for name in names)), **BOOTSTRAP,
    )  # fmt: skip
    files["table.md"] = page.encode() + b"\n"
    files["summary.json"] = json.dumps(told, indent=1, default=dataclasses.asdict).encode() + b"\n"
    return files


if __name__ == "__main__":
    run_main(main)
