"""One training pair through every iteration of a run: `explain_pair.py runs/tiny-selm --pair 60c46bc1`.

The prompt, its candidates with scores and ranks, the log-probs that selection compared, why it was kept or dropped, in which
step of training it was. Ids are the column prompt_id of pairs.jsonl; the beginning of one is enough where no other begins so.
"""

import argparse
import sys
from pathlib import Path

from rich.console import Console

from handbook_ext.core.errors import run_main
from handbook_ext.reports.explain import explain_pair
from handbook_ext.reports.explain_pages import print_story

PIPED = 170  # Columns of what is read by another program.


def main(argv: list[str]) -> None:
    """Prints the story of a pair."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="the folder of a run")
    parser.add_argument("--pair", required=True, metavar="PROMPT_ID", help="the prompt id of a pair, or its beginning")
    arguments = parser.parse_args(argv)
    story = explain_pair(arguments.run, arguments.pair)
    # Whatever a terminal's encoding: texts of policies hold any letter.
    sys.stdout.reconfigure(encoding="utf-8")  # type: ignore[union-attr]
    print_story(story, Console(width=None if sys.stdout.isatty() else PIPED))


if __name__ == "__main__":
    run_main(main)
