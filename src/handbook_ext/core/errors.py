"""The error for a user's mistake: one line that says what is wrong, where, what was allowed and what to do."""

from __future__ import annotations

import errno
import os
import resource
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType

from handbook_ext.core.interrupt import INTERRUPTED, importing_is_over

from handbook_ext.core import console
from handbook_ext.core.console import SAID
from handbook_ext.core.streams import reader_is_gone

ROOM = "free some space, or put the runs on another disk with RUNS="
# What keeps a file from being written: the numbers of the system, and how the C and Rust writers under torch and safetensors put
# them, which raise no OSError with a number; what is told, and what is to be done.
FULL, LARGE = "the disk is full", "a file is larger than this shell or file system allows"
WRITING: tuple[tuple[tuple[int, ...], tuple[str, ...], str, str], ...] = (
    ((errno.EDQUOT,), ("Disk quota exceeded", f"(os error {errno.EDQUOT})"), "the disk quota is used up", ROOM),
    ((errno.ENOSPC,), ("No space left on device", f"(os error {errno.ENOSPC})"), FULL, ROOM),
    (
        (errno.EFBIG,), ("File too large", f"(os error {errno.EFBIG})"), LARGE,
        "raise the limit (ulimit -f), or put the runs on another file system with RUNS=",
    ),
    (
        (errno.EROFS,), ("Read-only file system", f"(os error {errno.EROFS})"), "the file system is read-only",
        "mount it for writing, or put the runs elsewhere with RUNS=",
    ),
    (
        (errno.EACCES, errno.EPERM), ("Permission denied", f"(os error {errno.EACCES})"), "permission is denied",
        "make it yours (ls -ld shows whose it is), or put the runs elsewhere with RUNS=",
    ),
    ((errno.EIO,), ("Input/output error", f"(os error {errno.EIO})"), "the disk has failed to read or write", "check the disk"),
)  # fmt: skip
# torch's writer says that it could not go on, and not why.
CUT_SHORT = ("file write failed", "unexpected pos", "iostream error", "PytorchStreamWriter failed")
NEARLY_FULL = 1 << 20  # Bytes: what a writer of blocks leaves free on a full disk.


class UserError(ValueError):
    """A mistake in what the user gave; its message is one line and needs no traceback. Several mistakes are several messages."""


def run_main(main: Callable[[list[str]], None]) -> None:
    """Runs a script's main on the command line; a user's mistake becomes one line and exit status 2.

    Ctrl-C exits with 130, what cannot be written with a line and 1; any other exception keeps its traceback: it is our bug.
    """
    console.arm()
    # A hook rather than a handler here: exit status and traceback of all other errors stay Python's own.
    sys.excepthook = _explain
    try:
        importing_is_over()
        main(sys.argv[1:])
    except UserError as error:
        for message in error.args:
            _say(str(message))
        console.failed()
        sys.exit(2)
    except KeyboardInterrupt:
        _say(INTERRUPTED)
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
    """Prints one line for what could not be written, whichever library met it, and the traceback of anything else."""
    if isinstance(error, BrokenPipeError) and reader_is_gone():
        _say("whoever read what is printed here has ended; repeat the command to see the rest")
        return
    chain: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and link not in chain:  # Libraries wrap the OSError in errors of their own.
        chain.append(link)
        link = link.__cause__ or link.__context__
    told = next(filter(None, map(_unwritten, chain)), None) or next(filter(None, map(_cut_short, chain)), None)
    if told is None:
        console.crash(kind, error, trace)
        console.failed()
        return
    what, remedy = told
    place = next((name for name in (getattr(each, "filename", None) for each in chain) if isinstance(name, str)), _folder())
    _say(f"{place}: {what}; {remedy}, then repeat the command: finished work is kept")
    console.failed()


def _unwritten(error: BaseException) -> tuple[str, str] | None:
    """Returns what kept a file from being written, by an error's number or words, and what to do; None for any other error."""
    number, words = (error.errno, "") if isinstance(error, OSError) and error.errno is not None else (0, str(error))
    for numbers, signs, what, remedy in WRITING:
        if number in numbers or any(sign in words for sign in signs):
            return what, remedy
    return None


def _cut_short(error: BaseException) -> tuple[str, str] | None:
    """Returns the same for an error that names no reason, by what the disk and the limits say; None for any other error."""
    if not any(sign in str(error) for sign in CUT_SHORT):
        return None
    folder, remedies = _folder(), {what: remedy for _, _, what, remedy in WRITING}
    if os.path.isdir(folder) and shutil.disk_usage(folder).free < NEARLY_FULL:
        return FULL, remedies[FULL]
    if resource.getrlimit(resource.RLIMIT_FSIZE)[0] != resource.RLIM_INFINITY:
        return LARGE, remedies[LARGE]
    return "a file could not be written whole: the disk is full, or a quota or the limit on a file's size is met", ROOM


def _folder() -> str:
    """Returns the folder that the script works on."""
    return sys.argv[1] if len(sys.argv) > 1 and os.path.isdir(sys.argv[1]) else "the run folder"


def _say(message: str) -> None:
    """Writes the message as one line to stderr; processes other than the first leave it to their launcher."""
    line = "error: " + " ".join(message.split())
    rank, folder = os.environ.get("RANK") or os.environ.get("HANDBOOK_RANK") or "0", os.environ.get(SAID)
    if rank == "0":
        console.say(line)
    elif folder is not None and os.path.isdir(folder):
        with Path(folder, rank).open("a", encoding="utf-8") as file:
            file.write(f"{line}\n")
