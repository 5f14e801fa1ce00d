"""What a goal has made, on the terminal, once it is reached: `show_goal.py runs/.goals/<goal>.json`; makes nothing."""

import sys
from pathlib import Path

from handbook_ext.core.console import results_width
from handbook_ext.core.errors import UserError, run_main
from handbook_ext.reports.endings import WIDTH, read_ending


def main(argv: list[str]) -> None:
    """Prints the results, where they lie, and what to run next."""
    if len(argv) != 1 or not Path(argv[0]).is_file():
        raise UserError("show_goal.py needs one file, which make has written; make -n shows such commands")
    sys.stdout.write(read_ending(Path(argv[0])).text(results_width(WIDTH)))


if __name__ == "__main__":
    run_main(main)
