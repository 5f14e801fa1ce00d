"""Runs of many recipes and seeds -> a table of a paper: `write_table.py sera-noise40 --model tiny --seeds 1 2 3`."""

import argparse
import os
import sys
from pathlib import Path

from rich.console import Console
from rich.markdown import Markdown

from handbook_ext.core.artifacts import sha256_of
from handbook_ext.core.errors import UserError, run_main
from handbook_ext.core.stage import Stage
from handbook_ext.graph.folders import distinct_seeds
from handbook_ext.graph.measured import rows_under_seeds
from handbook_ext.graph.stages import TableStage
from handbook_ext.recipes.table_files import read_table, table_run
from handbook_ext.reports.pages import render_table
from handbook_ext.reports.paper_quotes import with_paper_numbers
from handbook_ext.reports.table_summary import RowRuns, summarise_table, table_inputs
from handbook_ext.reports.tuning_words import with_tuning


def main(argv: list[str]) -> None:
    """Reads the runs, writes the table and prints it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("table", help="a file of recipes/tables, without .yaml")
    parser.add_argument("--model", help="whose recipes its rows are, such as zephyr; without it tiny's, or the table's first")
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3], help="1 is the recipe's own seed")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder of all runs")
    arguments = parser.parse_args(argv)
    name, seeds = arguments.table, arguments.seeds
    if len(set(seeds)) < len(seeds):
        raise UserError(f"--seeds {' '.join(map(str, seeds))}: a seed is named twice; name each once")
    table = with_paper_numbers(read_table(name, model=arguments.model))
    runs, first, kept = {}, {}, {}
    for row, units in rows_under_seeds(table, name, seeds, arguments.runs).items():
        first[row], *_ = distinct_seeds([each.run for each in units])
        # The runs themselves, but for what was kept of those that are not here.
        sources = [each.measured or each.folder for each in units]
        runs[row] = RowRuns(first[row].start, first[row].iterations[-1].name, sources)
        kept |= {str(each.file): sha256_of(each.file) for each in units if each.measured}
    table = with_tuning(table, first)
    artifact = arguments.runs / table_run(name, arguments.model) / "report"
    inputs = {"artifacts": [os.path.relpath(path, artifact.parent) for path in table_inputs(table, runs)]}
    settings = TableStage(stage="table", recipe=name, inputs=inputs, table=table.model_dump(), seeds=seeds)
    stage = Stage(artifact, settings)
    stage.external = kept
    if not stage.finished():
        report = settings.report
        numbers = summarise_table(table, runs, resamples=report.bootstrap_resamples, confidence=report.confidence)
        stage.out.mkdir(exist_ok=True)
        for file, content in render_table(numbers, seeds).items():
            (stage.out / file).write_bytes(content)
        stage.publish({"in": len(table.rows), "out": len(table.rows)})
    text = (stage.artifact / "table.md").read_text(encoding="utf-8")
    Console(width=None if sys.stdout.isatty() else 220).print(Markdown(text))
    print(f"table: {stage.artifact / 'table.md'}")


if __name__ == "__main__":
    run_main(main)
