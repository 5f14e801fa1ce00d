"""A recipe of one's own from a delivered one and a folder of rows: `make new NAME=mine FROM=smollm2-selm DATA=my_pairs`."""

import argparse
import sys

from handbook_ext.core.errors import run_main
from handbook_ext.planning.new_recipe import asked_recipe, new_recipe


def main(argv: list[str]) -> None:
    """Writes the recipe; prints what was found in the rows, and what to do next."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--name", default="", help="folder under recipes/, or folder and method, as in mine/dpo")
    parser.add_argument("--from", default="", dest="base", metavar="RECIPE", help="the recipe to begin from")
    parser.add_argument("--data", default="", metavar="DIR", help="folder with train.jsonl and test.jsonl, or .parquet")
    arguments = parser.parse_args(argv)
    lines = new_recipe(asked_recipe(arguments.name, arguments.base, arguments.data))
    sys.stdout.write("".join(f"{line}\n" for line in lines))


if __name__ == "__main__":
    run_main(main)
