"""What check.json says, on the terminal, for `make <run>-check`: `show_check.py runs/<run>/plan-<hash>.json`; makes nothing.

Make writes that file, which holds what the goal was asked for: the expected time depends on it, and is no part of the check.
"""

import sys
from pathlib import Path

from handbook_ext.core.artifacts import json_object
from handbook_ext.core.errors import UserError, run_main
from handbook_ext.graph.rule import CHECK
from handbook_ext.planning.first_lines import checked_lines
from handbook_ext.planning.request import read_request


def main(argv: list[str]) -> None:
    """Prints what one wants to know first of a run that passed its check, then the lines of the check."""
    if len(argv) != 1:
        raise UserError("show_check.py needs the file of a request; make <run>-check writes one and calls this")
    file = Path(argv[0])
    folder = file.parent
    found = json_object(folder / CHECK)
    if found is None:
        raise UserError(f"{folder / CHECK}: is missing or damaged; delete it, and make {folder.name}-check makes it")
    first = checked_lines(read_request(file), folder, found)
    lines = [f"{folder.name} can start:", *first, "", "in detail:", *found["lines"]]
    sys.stdout.write("".join(f"{line}\n" for line in lines))


if __name__ == "__main__":
    run_main(main)
