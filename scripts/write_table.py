"""Runs of many recipes and seeds -> a table of a paper at tiny scale: `write_table.py sera-noise40 --seeds 1 2 3`."""

import argparse
import dataclasses
import io
import json
import sys
from pathlib import Path
from typing import Any

import jinja2
from matplotlib.figure import Figure
from rich.console import Console
from rich.markdown import Markdown

from handbook_ext.errors import UserError, run_main
from handbook_ext.recipes import Run, resolve
from handbook_ext.report_pictures import COLOURS, style
from handbook_ext.runs import Stage
from handbook_ext.tables import (
    Table,
    judge_claim,
    kept_again,
    measure,
    read_table,
    reward_differences,
    similarities,
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
        alike = similarities(compared, table.similarity[-1])
        again = {name: kept_again(each, table.similarity) for name, each in compared.items() if len(table.similarity) == 2}
        told["similarities"] = [{"rows": list(names), "jaccard": value} for names, value in alike.items()]
        told["kept_again"] = again
    files, captions = drawn(table, rows, measured, folders, decodings[0])
    environment = jinja2.Environment(loader=jinja2.PackageLoader("handbook_ext"), autoescape=False)  # noqa: S701 - Markdown
    page = environment.get_template("table.md.j2").render(
        table=table, rows=rows, claims=claims, decodings=decodings, similarities=alike, again=again, seeds=seeds,
        pictures=captions, names=list(dict.fromkeys(name for names in alike for name in names)), **BOOTSTRAP,
    )  # fmt: skip
    files["table.md"] = page.encode() + b"\n"
    files["summary.json"] = json.dumps(told, indent=1, default=dataclasses.asdict).encode() + b"\n"
    return files


def drawn(
    table: Table, rows: list[dict[str, Any]], measured: dict[str, Any], folders: dict[str, list[Path]], decoding: str
) -> tuple[dict[str, bytes], dict[str, str]]:
    """Returns the pictures by file name, and their captions."""
    caption = f"Win rate against the policy that starts the loop, {decoding}, with intervals."
    figures = {"win_rate.png": (draw_win_rates(table, rows, decoding), caption)}
    if table.differences:
        ours, theirs = (measured[name] for name in table.differences)
        paths = [[folder / each.policy / "eval.json" for folder in folders[each.row.recipe]] for each in (ours, theirs)]
        caption = f"Sorted differences of implicit reward, {ours.row.name} less {theirs.row.name}, over all seeds, in nats."
        figures["reward_differences.png"] = (draw_differences(list(zip(*paths, strict=True))), caption)
    files = {}
    for name, (figure, _) in figures.items():
        figure.savefig(buffer := io.BytesIO(), dpi=150, format="png", metadata={"Software": None})
        files[name] = buffer.getvalue()
    return files, {name: caption for name, (_, caption) in figures.items()}


def draw_win_rates(table: Table, rows: list[dict[str, Any]], decoding: str) -> Figure:
    """Win rates with intervals: bars by method, or a curve over the axis of a sweep."""
    figure = Figure(figsize=(8, 0.4 * len(rows) + 1.4) if table.axis is None else (6, 3.6), layout="constrained")
    axes = figure.subplots()
    won = [row["decodings"][decoding]["win_rate"] for row in rows]
    values = [100 * each.value for each in won]
    errors = [[100 * (each.value - each.low) for each in won], [100 * (each.high - each.value) for each in won]]
    if table.axis is None:
        axes.barh(range(len(rows)), values, xerr=errors, color=COLOURS[0], alpha=0.7, capsize=2)
        axes.set_yticks(range(len(rows)), [row["name"] for row in rows])
        axes.invert_yaxis()
        axes.axvline(50, color="0.4", lw=0.8)
        style(axes, "win rate against SFT, %", "")
    else:
        axes.errorbar([row["x"] for row in rows], values, errors, color=COLOURS[0], marker="o", ms=4, capsize=2, ls="")
        style(axes, table.axis, "win rate against SFT, %")
    return figure


def draw_differences(paths: list[tuple[Path, ...]]) -> Figure:
    """Sorted differences of implicit rewards on held-out chosen and rejected texts, and on own samples."""
    figure = Figure(figsize=(9, 3), layout="constrained")
    for axes, side in zip(figure.subplots(1, 3), ("chosen", "rejected", "sample"), strict=True):
        values = sorted(value for ours, theirs in paths for value in reward_differences(ours, theirs, side))
        axes.plot([place / max(1, len(values) - 1) for place in range(len(values))], values, color=COLOURS[0])
        axes.axhline(0, color="0.6", lw=0.8)
        style(axes, f"{side}: share of texts", "nats" if side == "chosen" else "")
    return figure


if __name__ == "__main__":
    run_main(main)
