"""What a stage shows on the terminal: one line when it is done, one bar while it works; whatever libraries say is in its log.

`run_main` prepares the console, `Stage.open` has everything that is written to the streams go to the log beside the settings
file, C++ libraries included, and keeps the terminal for what is said here. In a notebook or a test, where no script runs,
the streams stay as they are.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import sys
import time
import traceback
from pathlib import Path
from types import TracebackType
from typing import Protocol

from handbook_ext.core.goal_progress import PROGRESS, Place, human

CALLER = "HANDBOOK_CALLER"
"""The variable with the descriptor at which a caller that outlives this process waits for the name of its log."""
SAID = "HANDBOOK_SAID"
"""The variable that names a folder of the launcher, for the messages of processes other than the first: they may be alone."""
LOG = "log"  # In that folder: where the first process's log lies.
CLEAR = "\r\x1b[K"
RED, YELLOW, DIM, PLAIN = "\x1b[31m", "\x1b[33m", "\x1b[2m", "\x1b[0m"


class Drawable(Protocol):
    """What is drawn on the last line of a terminal."""

    def text(self, width: int) -> str:
        """Returns it as a line of at most so many columns."""


class Console:
    """The terminal, the log and the stage of this process."""

    def __init__(self) -> None:
        """Starts as where no script runs."""
        self.armed, self.out, self.err = False, 1, 2
        self.log: Path | None = None
        self.caller: int | None = None
        self.place: Place | None = None
        self.name, self.since = "", 0.0
        self.own: float | None = None
        self.others: float | None = None
        self.bars: list[Drawable] = []
        self._screen: int | None = None

    @property
    def first(self) -> bool:
        """Tells whether this is the first process of its launch, which alone shows anything."""
        return (os.environ.get("RANK") or os.environ.get("HANDBOOK_RANK") or "0") == "0"

    @property
    def drawn(self) -> bool:
        """Tells whether lines can be drawn anew: on a terminal that a person looks at."""
        return os.isatty(self.err) and not os.environ.get("CI") and os.environ.get("TERM") != "dumb"

    def write(self, text: str, stream: int) -> None:
        """Writes to the terminal, at once, so that processes beside this one do not come between."""
        with contextlib.suppress(OSError):  # Nobody looks any more; the work goes on.
            os.write(stream, text.encode(errors="backslashreplace"))

    def head(self) -> str:
        """Returns the place and the name of the stage."""
        return self.name if self.place is None else f"[{self.place.number}/{self.place.of}] {self.place.name}"

    def turn(self) -> bool:
        """Tells whether this process may draw: one of those that share a terminal at a time."""
        if not (self.armed and self.first and self.drawn):
            return False
        if self._screen is None and PROGRESS in os.environ:
            try:
                self._screen = os.open(f"{os.environ[PROGRESS]}.screen", os.O_RDWR | os.O_CREAT, 0o600)
            except OSError:
                return False
        try:
            if self._screen is not None:
                fcntl.flock(self._screen, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
        return True

    def leave(self) -> None:
        """Lets another process draw."""
        if self._screen is not None:
            os.close(self._screen)
            self._screen = None


CONSOLE = Console()


def arm() -> None:
    """Prepares the console: this process runs a script, and its stage may have the streams."""
    CONSOLE.armed = True
    stated = os.environ.pop(CALLER, None)
    CONSOLE.caller = None if stated is None else int(stated)


def log_to(log: Path) -> None:
    """Sends what this process writes to its streams to a log from here on; the terminal is for `say` and the bars."""
    if not CONSOLE.armed or CONSOLE.log is not None:
        return
    try:
        file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    except OSError:
        return  # A folder that cannot be written: the stage will say so.
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    CONSOLE.out, CONSOLE.err, CONSOLE.log = os.dup(1), os.dup(2), log
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.close(file)
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    sys.stderr.write(f"--- {time.strftime('%Y-%m-%d %H:%M:%S')} {' '.join(sys.argv)}\n")
    sys.stderr.flush()
    if CONSOLE.caller is not None:
        CONSOLE.write(f"log {log}\n", CONSOLE.caller)
    if CONSOLE.first and os.path.isdir(os.environ.get(SAID, "")):
        Path(os.environ[SAID], LOG).write_text(str(log), encoding="utf-8")


def begin(name: str, artifact: Path) -> None:
    """Shows that a stage begins, with its place among those of its call of make."""
    if not CONSOLE.armed:
        return
    CONSOLE.name, CONSOLE.since, CONSOLE.place = name, time.time(), Place.begin(artifact)
    if CONSOLE.place is not None:
        CONSOLE.own, CONSOLE.others = CONSOLE.place.own_seconds(), CONSOLE.place.seconds_of_others()
    if CONSOLE.drawn:
        draw()
    elif CONSOLE.place is not None:
        times = [] if CONSOLE.own is None else [f"about {human(CONSOLE.own)}"]
        in_all = None if CONSOLE.own is None or not CONSOLE.others else CONSOLE.own + CONSOLE.others
        times += [] if in_all is None else [f"{human(in_all)} in all"]
        say(f"{CONSOLE.head()}{': ' * bool(times)}{', '.join(times)}")


def end(artifact: Path, how: str, seconds: float | None = None) -> None:
    """Shows how a stage has ended: `done` in some seconds, or `up to date`."""
    CONSOLE.since = 0.0  # Nothing is drawn from here on.
    place, took = CONSOLE.place, "" if seconds is None else f" ({seconds:.0f} s)"
    if place is None:
        say(f"{CONSOLE.name or 'stage'}: {artifact} is {how}{took}")
    else:
        place.end(seconds or 0.0)
        others = place.seconds_of_others()
        left = f"; about {human(others)} left in all" if others else ""
        say(f"{CONSOLE.head()}: {how}{'' if seconds is None else f' in {human(seconds)}'}{left}")
    CONSOLE.leave()


def say(text: str) -> None:
    """Shows a line on the terminal, which the log has as well; processes other than the first leave it to their log."""
    if CONSOLE.log is None:
        if CONSOLE.first or not CONSOLE.armed:
            sys.stderr.write(f"{CLEAR if CONSOLE.armed and CONSOLE.drawn else ''}{_coloured(text)}\n")
            sys.stderr.flush()
        return
    with contextlib.suppress(OSError):  # A log on a full disk: the terminal is told all the same.
        sys.stderr.write(f"{text}\n")
        sys.stderr.flush()
    if CONSOLE.first:
        CONSOLE.write(f"{CLEAR if CONSOLE.drawn else ''}{_coloured(text)}\n", CONSOLE.err)
        draw()


def tell(text: str) -> None:
    """Shows a line to whoever runs a stage by hand; under make it is in the log alone."""
    if CONSOLE.place is None:
        say(text)
    else:
        sys.stderr.write(f"{text}\n")


def show(text: str) -> None:
    """Prints results."""
    if CONSOLE.log is None:
        sys.stdout.write(f"{text}\n")
        return
    CONSOLE.write(f"{CLEAR if CONSOLE.drawn else ''}{text}\n", CONSOLE.out)


def results_width(elsewhere: int) -> int:
    """Returns the columns that results may take: the terminal's, or those of what is no terminal."""
    try:
        return os.get_terminal_size(CONSOLE.out).columns or elsewhere
    except OSError:
        return elsewhere


def failed() -> None:
    """Ends a stage that fails with the line that says where its log lies."""
    CONSOLE.since = 0.0
    if CONSOLE.log is not None:
        say(f"{CONSOLE.head() or 'it'} has failed; log: {CONSOLE.log}")
    CONSOLE.leave()


def crash(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Shows a traceback on the terminal, whichever process it is of, and leaves it in the log."""
    sys.__excepthook__(kind, error, trace)
    if CONSOLE.log is not None:
        text = "".join(traceback.format_exception(kind, error, trace))
        CONSOLE.write(f"{CLEAR if CONSOLE.drawn else ''}{text}", CONSOLE.err)


def draw() -> None:
    """Draws the innermost bar, or the name of the stage, where this process has the terminal."""
    if not CONSOLE.since or not CONSOLE.turn():
        return
    width = _width() - 1
    about = "" if CONSOLE.own is None else f" about {human(CONSOLE.own)}"
    line = CONSOLE.bars[-1].text(width) if CONSOLE.bars else f"{CONSOLE.head()} ...{about}"
    CONSOLE.write(f"{CLEAR}{line[:width]}", CONSOLE.err)


def _width() -> int:
    """Returns the columns of the terminal."""
    try:
        return os.get_terminal_size(CONSOLE.err).columns or 80
    except OSError:
        return 80


def _coloured(text: str) -> str:
    """Returns a line with its first words in colour, where the terminal has any and nobody asked for none."""
    if not CONSOLE.drawn or os.environ.get("NO_COLOR"):
        return text
    for word, colour in (("error:", RED), ("note:", YELLOW)):
        if text.startswith(word):
            return f"{colour}{word}{PLAIN}{text.removeprefix(word)}"
    place, bracket, rest = text.partition("] ")
    return f"{DIM}{place}{bracket}{PLAIN}{rest}" if text.startswith("[") and bracket else text
