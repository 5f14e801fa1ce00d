"""What check.json says, on the terminal, for `make <run>-check`: `show_check.py runs/<run>`; makes nothing."""

import sys

from handbook_ext.core.artifacts import json_object
from handbook_ext.core.errors import UserError, run_main, stage_folder
from handbook_ext.graph.rule import CHECK


def main(argv: list[str]) -> None:
    """Prints the lines of a run's check."""
    folder = stage_folder(argv)
    found = json_object(folder / CHECK)
    if found is None:
        raise UserError(f"{folder / CHECK}: is missing or damaged; delete it, and make {folder.name}-check makes it")
    sys.stdout.write("".join(f"{line}\n" for line in [f"{folder.name} can start:", *found["lines"]]))


if __name__ == "__main__":
    run_main(main)
