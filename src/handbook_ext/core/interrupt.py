"""Ctrl-C while a script still imports its libraries, which takes seconds: one line and exit status 130, as later.

`import handbook_ext` sees to it in this project's scripts and modules; a script that imports torch before imports this first.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from types import FrameType

from handbook_ext.core.streams import open_streams

INTERRUPTED = "interrupted; finished work is kept; the same command resumes from it"
SCRIPTS = Path(__file__).resolve().parents[3] / "scripts"


def quiet_while_importing() -> None:
    """Has streams that are open, and an interrupt told in one line until `importing_is_over`.

    In our own scripts alone: elsewhere it is not ours to handle. A handler rather than an exception: libraries wrap what is
    raised while they are imported. Python itself puts "-m" in the place of a module's path until it has found the module.
    """
    script = sys.argv[0] if getattr(sys, "argv", None) else ""
    if script == "-m" or Path(script).resolve().parent == SCRIPTS:
        open_streams()
        _exchange(signal.default_int_handler, _end)


def importing_is_over() -> None:
    """Has an interrupt raise KeyboardInterrupt again."""
    _exchange(_end, signal.default_int_handler)


def _exchange(before: object, after: signal._HANDLER) -> None:
    """Replaces a handler where it is the current one: what a parent has set, such as to ignore interrupts, stays."""
    if signal.getsignal(signal.SIGINT) is before:
        try:
            signal.signal(signal.SIGINT, after)
        except ValueError:
            return  # Not the main thread, which no interrupt reaches.


def _end(number: int, frame: FrameType | None) -> None:
    """Ends the process; nothing has been begun that could be left half done."""
    os.write(2, f"error: {INTERRUPTED}\n".encode())
    os._exit(128 + number)


quiet_while_importing()
