"""The finished runs behind a table -> small files that are committed and stand for them: `keep_rows.py sera1 --seeds 1 2 3`."""

import argparse
import sys
from pathlib import Path

from handbook_ext.core.errors import UserError, run_main
from handbook_ext.graph.folders import distinct_seeds
from handbook_ext.graph.measured import RowUnderSeed, rows_under_seeds
from handbook_ext.recipes.measured_rows import read_measured, write_measured
from handbook_ext.recipes.table_files import read_table
from handbook_ext.reports.row_keeping import measured_row


def main(argv: list[str]) -> None:
    """Keeps each row whose run is finished, and tells which are missing."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("table", nargs="+", help="files of recipes/tables, without .yaml")
    parser.add_argument("--model", help="whose recipes the rows are; without it tiny's, or the table's first")
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3], help="1 is the recipe's own seed")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder of all runs")
    arguments = parser.parse_args(argv)
    mistakes: list[str] = []
    for name in arguments.table:
        rows = rows_under_seeds(read_table(name, model=arguments.model), name, arguments.seeds, arguments.runs)
        for units in rows.values():
            distinct_seeds([each.run for each in units])
        mistakes += keep(name, {unit.file: unit for units in rows.values() for unit in units})
    if mistakes:
        raise UserError(*mistakes)


def keep(table: str, units: dict[Path, RowUnderSeed]) -> list[str]:
    """Keeps the rows of a table that are finished, a file each, and prints what was kept; returns what cannot be kept."""
    say = sys.stdout.write
    mistakes, missing, there, written = [], [], 0, 0
    for path, unit in units.items():
        if unit.lacking:
            if unit.measured is None:
                missing.append(unit)
            else:
                there += 1
            continue
        try:
            row = measured_row(unit)
        except UserError as error:
            mistakes += [str(each) for each in error.args]
            continue
        if unit.kept == row:
            there += 1
            continue
        write_measured(path, row)
        if read_measured(path) != row:
            raise RuntimeError(f"{path} does not hold what was to be kept")
        before = f", in place of one of {unit.kept.made.date}" if unit.kept is not None else ""
        say(f"kept: {path} ({path.stat().st_size / 1000:.1f} kB{before})\n")
        written += 1
    for unit in missing:
        stale = f"; what was kept is {unit.stale}" if unit.stale else ""
        say(f"missing: {unit.run.name} {unit.policy}: {len(unit.lacking)} of {len(unit.rules)} stages are to be made{stale}\n")
    say(f"table {table}: {written} rows kept now, {there} before, {len(missing)} missing\n")
    return mistakes


if __name__ == "__main__":
    run_main(main)
