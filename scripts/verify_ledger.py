"""Every number of a submitted run, worked out again from its parts: `verify_ledger.py FILE [--add] [--ledger FOLDER]`."""

import argparse
import sys
from pathlib import Path

from handbook_ext.core.errors import UserError, run_main
from handbook_ext.reports.ledger import LEDGER, add_to_ledger, measurements_of, refuse_faults, verified_ledger


def main(argv: list[str]) -> None:
    """Prints a line for each group of checks and a verdict; what differs is an error of a line each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path, help="what make <run>-submit has written")
    parser.add_argument("--add", action="store_true", help="copy a file that holds into the folder of submitted ones")
    parser.add_argument("--ledger", type=Path, default=LEDGER, metavar="FOLDER", help=f"that folder; by default {LEDGER}")
    parser.add_argument("--gamed", type=Path, metavar="FILE", help="df_gamed.csv, by which length control is fitted again")
    arguments = parser.parse_args(argv)
    if arguments.file == Path():
        raise UserError("no file is named; give one that make <run>-submit has written: F=runs/tiny-selm/tiny-selm.ledger.zip")
    ledger, groups = verified_ledger(arguments.file, arguments.gamed)
    for group in groups:
        sys.stdout.write(f"{group.name:12} {'DIFFERS' if group.faults else 'holds':8} {group.words}\n")
    sys.stdout.flush()
    refuse_faults(arguments.file, groups)
    for (_, policy, chosen, measure), one in measurements_of(ledger, arguments.file.name).items():
        sys.stdout.write(f"measured     {policy} {chosen} {measure}: {one.words}\n")
    print(
        f"verdict: {ledger.run} is one whole, and its numbers follow from what is inside; answers, verdicts of judges and the "
        "machine are its author's word"
    )
    if arguments.add:
        print(f"added: {add_to_ledger(arguments.file, arguments.ledger)}")


if __name__ == "__main__":
    run_main(main)
