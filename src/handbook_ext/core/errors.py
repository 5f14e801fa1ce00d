"""The error for a user's mistake: one line that says what is wrong, where, what was allowed and what to do."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType

from handbook_ext.core import console
from handbook_ext.core.console import SAID

# Messages of the C and Rust writers under torch and safetensors, which raise no OSError with an errno.
DISK_FULL = ("No space left on device", "os error 28", "Disk quota exceeded", "file write failed")


class UserError(ValueError):
    """A mistake in what the user gave; its message is one line and needs no traceback. Several mistakes are several messages."""


def run_main(main: Callable[[list[str]], None]) -> None:
    """Runs a script's main on the command line; a user's mistake becomes one line and exit status 2.

    Ctrl-C exits with 130, a full disk with a line and 1; any other exception keeps its traceback: it is our bug.
    """
    console.arm()
    # A hook rather than a handler here: exit status and traceback of all other errors stay Python's own.
    sys.excepthook = _explain
    try:
        main(sys.argv[1:])
    except UserError as error:
        for message in error.args:
            _say(str(message))
        console.failed()
        sys.exit(2)
    except KeyboardInterrupt:
        _say("interrupted; finished work is kept; the same command resumes from it")
        sys.exit(130)


def stage_folder(argv: Sequence[str]) -> Path:
    """Returns the folder that a stage's script is given; a UserError where it is not exactly one."""
    if len(argv) != 1 or argv[0].startswith("-"):
        script = Path(sys.argv[0]).name
        raise UserError(
            f"{script} needs one folder: the run's, such as runs/tiny-selm, or an iteration's, such as runs/tiny-selm/iter1; "
            f"its first line says which; make -n tiny-selm prints such commands"
        )
    return Path(argv[0])


def _explain(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Prints one line for a full disk, whichever library met it, and the traceback of anything else."""
    link: BaseException | None = error
    while link is not None:  # Libraries wrap the OSError in errors of their own.
        full = isinstance(link, OSError) and link.errno in (errno.ENOSPC, errno.EDQUOT)
        if full or any(sign in str(link) for sign in DISK_FULL):
            where = getattr(link, "filename", None) or "the run folder"
            _say(f"{where}: the disk is full; free some space, then repeat the command: finished work is kept")
            console.failed()
            return
        link = link.__cause__ or link.__context__
    console.crash(kind, error, trace)
    console.failed()


def _say(message: str) -> None:
    """Writes the message as one line to stderr; processes other than the first leave it to their launcher."""
    line = "error: " + " ".join(message.split())
    rank, folder = os.environ.get("RANK") or os.environ.get("HANDBOOK_RANK") or "0", os.environ.get(SAID)
    if rank == "0":
        console.say(line)
    elif folder is not None and os.path.isdir(folder):
        with Path(folder, rank).open("a", encoding="utf-8") as file:
            file.write(f"{line}\n")
