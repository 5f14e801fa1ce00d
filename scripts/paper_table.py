"""A table of a paper at its scale, ours beside it: `paper_table.py selm1 --format md`; without a name, which there are."""

import argparse
import sys

from handbook_ext.core.errors import UserError, run_main
from handbook_ext.reports.paper_pages import FORMATS, render_paper_table
from handbook_ext.reports.paper_tables import paper_table_names, read_paper_table


def main(argv: list[str]) -> None:
    """Prints the table, or a line for each one."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("table", nargs="?", help="a table of src/handbook_ext/reports/papers, such as selm1")
    parser.add_argument("--format", help=f"one of {', '.join(FORMATS)}")
    arguments = parser.parse_args(argv)
    # Whatever the terminal's encoding: the HTML page says that it is UTF-8.
    sys.stdout.reconfigure(encoding="utf-8")  # type: ignore[union-attr]
    if arguments.table is not None:
        sys.stdout.write(render_paper_table(read_paper_table(arguments.table), arguments.format or "md"))
        return
    if arguments.format is not None:
        raise UserError(f"{arguments.format} is the format of a table; name one as well, such as T=selm1")
    names = paper_table_names()
    width = max(map(len, names))
    sys.stdout.write("".join(f"{name:{width}}  {read_paper_table(name).heading.title}\n" for name in names))


if __name__ == "__main__":
    run_main(main)
