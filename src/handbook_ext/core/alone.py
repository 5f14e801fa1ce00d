"""Runs a script as one process and says how it ended where it cannot say it itself: `python -m handbook_ext.core.alone x.py`."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

from handbook_ext.core.console import SAID, say
from handbook_ext.core.per_device import end_with_launcher, how_it_ended, logged


def main(argv: list[str]) -> int:
    """Returns the exit status of the script; the script ends with this process, whatever ends that."""
    with tempfile.TemporaryDirectory(prefix="handbook-") as said:
        process = subprocess.Popen(
            [sys.executable, *argv],
            env={**os.environ, SAID: said},
            preexec_fn=end_with_launcher,  # noqa: PLW1509 - no thread runs here
        )
        # A Ctrl-C reaches the script as well, which says so.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, lambda *_: process.terminate())
        code = process.wait()
        if code < 0 and code != -signal.SIGTERM:
            say(
                f"error: {' '.join(argv)} {how_it_ended(code)}; repeat the command, which goes on from what is finished, with "
                f"smaller micro-batches if it was memory{logged(Path(said), '; log: ')}"
            )
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
