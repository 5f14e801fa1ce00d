"""Runs a stage whose first process works alone for so many seconds, three times as long as a collective may take."""

from __future__ import annotations

import os
import runpy
import sys
import time
from collections.abc import Sequence
from datetime import timedelta

from handbook_ext.core.records import Messages
from handbook_ext.judging.oracle import Oracle
from handbook_ext.judging.ranker import Verdict
from handbook_ext.policies import launch


def main(argv: list[str]) -> None:
    """Runs the script."""
    seconds, judge = float(argv[0]), Oracle.score
    launch.TIMEOUT = timedelta(seconds=seconds / 3)

    def late(self: Oracle, items: Sequence[tuple[Messages, str]]) -> list[Verdict]:
        """Judges, some time later."""
        sys.stderr.write(f"process {os.environ['RANK']} judges alone\n")
        time.sleep(seconds)
        return judge(self, items)

    Oracle.score = late  # type: ignore[method-assign]
    sys.argv = argv[1:]
    runpy.run_path(argv[1], run_name="__main__")


if __name__ == "__main__":
    main(sys.argv[1:])
