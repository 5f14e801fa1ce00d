"""A table of a paper, ours beside it: `paper_table.py selm1 --model zephyr --format md`; without a name, which there are."""

import argparse
import sys
from pathlib import Path

from handbook_ext.core.errors import UserError, run_main
from handbook_ext.reports.deviation_pages import counted, render_deviations
from handbook_ext.reports.deviations import deviations_of
from handbook_ext.reports.paper_measurements import read_filling
from handbook_ext.reports.paper_pages import FORMATS, render_paper_table
from handbook_ext.reports.paper_tables import paper_table_names, read_paper_table


def main(argv: list[str]) -> None:
    """Prints the table, or a line for each one; runs nothing."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("table", nargs="?", help="a table of src/handbook_ext/reports/papers, such as selm1")
    parser.add_argument("--format", help=f"one of {', '.join(FORMATS)}")
    parser.add_argument("--model", help="whose runs stand in its cells, such as zephyr or tiny; without it the paper's models'")
    parser.add_argument("--checkpoints", choices=["released"], help="released checkpoints under our evaluation as well")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder of all runs")
    parser.add_argument("--deviations", action="store_true", help="what the runs did otherwise than the paper, below the table")
    arguments = parser.parse_args(argv)
    # Whatever the terminal's encoding: the HTML page says that it is UTF-8.
    sys.stdout.reconfigure(encoding="utf-8")  # type: ignore[union-attr]
    if arguments.table is None:
        if given := [name for name in ("format", "model", "checkpoints") if getattr(arguments, name) is not None]:
            raise UserError(f"{getattr(arguments, given[0])} is the {given[0]} of a table; name one as well, such as T=selm1")
        names = paper_table_names()
        width = max(map(len, names))
        sys.stdout.write("".join(f"{name:{width}}  {read_paper_table(name).heading.title}\n" for name in names))
        return
    table, form = read_paper_table(arguments.table), arguments.format or "md"
    filling = read_filling(table, arguments.runs, model=arguments.model, released=arguments.checkpoints == "released")
    found = deviations_of(table, filling, arguments.runs)
    command = " ".join([".venv/bin/python scripts/paper_table.py", *argv, "--deviations"])
    below = ([], render_deviations(found, form)) if arguments.deviations else (counted(found, command), "")
    sys.stdout.write(render_paper_table(table, form, filling, *below))


if __name__ == "__main__":
    run_main(main)
