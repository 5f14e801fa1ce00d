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
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import TypeVar

from handbook_ext.core.goal_progress import PROGRESS, Place, human

T = TypeVar("T")

CALLER = "HANDBOOK_CALLER"
"""The variable with the descriptor at which a caller that outlives this process waits for the name of its log."""
SAID = "HANDBOOK_SAID"
"""The variable that names a folder of the launcher, for the messages of processes other than the first: they may be alone."""
LOG = "log"  # In that folder: where the first process's log lies.
OFTEN, SELDOM = 0.2, 60.0  # Seconds between two looks of a bar on a terminal, and between two lines elsewhere.
CLEAR = "\r\x1b[K"
RED, YELLOW, DIM, PLAIN = "\x1b[31m", "\x1b[33m", "\x1b[2m", "\x1b[0m"
BAR = "{desc}{bar:24} {n_fmt}/{total_fmt} {unit}{left}"


class _Console:
    """The terminal, the log and the stage of this process."""

    def __init__(self) -> None:
        """Starts as where no script runs."""
        self.armed, self.out, self.err = False, 1, 2
        self.log: Path | None = None
        self.caller: int | None = None
        self.place: Place | None = None
        self.name, self.since, self.known = "", 0.0, False
        self.own: float | None = None
        self.others: float | None = None
        self.bars: list[Bar] = []
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


_console = _Console()


def arm() -> None:
    """Prepares the console: this process runs a script, and its stage may have the streams."""
    _console.armed = True
    stated = os.environ.pop(CALLER, None)
    _console.caller = None if stated is None else int(stated)


def log_to(log: Path) -> None:
    """Sends what this process writes to its streams to a log from here on; the terminal is for `say` and the bars."""
    if not _console.armed or _console.log is not None:
        return
    try:
        file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    except OSError:
        return  # A folder that cannot be written: the stage will say so.
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    _console.out, _console.err, _console.log = os.dup(1), os.dup(2), log
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.close(file)
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    sys.stderr.write(f"--- {time.strftime('%Y-%m-%d %H:%M:%S')} {' '.join(sys.argv)}\n")
    sys.stderr.flush()
    if _console.caller is not None:
        _console.write(f"log {log}\n", _console.caller)
    if _console.first and os.path.isdir(os.environ.get(SAID, "")):
        Path(os.environ[SAID], LOG).write_text(str(log), encoding="utf-8")


def begin(name: str, artifact: Path) -> None:
    """Shows that a stage begins, with its place among those of its call of make."""
    if not _console.armed:
        return
    _console.name, _console.since, _console.place = name, time.time(), Place.begin(artifact)
    if _console.place is not None:
        _console.own, _console.others = _console.place.own_seconds(), _console.place.seconds_of_others()
    if _console.drawn:
        _draw()
    elif _console.place is not None:
        times = [] if _console.own is None else [f"about {human(_console.own)}"]
        in_all = None if _console.own is None or _console.others is None else _console.own + _console.others
        times += [] if in_all is None else [f"{human(in_all)} in all"]
        say(f"{_console.head()}{': ' * bool(times)}{', '.join(times)}")


def end(artifact: Path, how: str, seconds: float | None = None) -> None:
    """Shows how a stage has ended: `done` in some seconds, or `up to date`."""
    _console.since = 0.0  # Nothing is drawn from here on.
    place, took = _console.place, "" if seconds is None else f" ({seconds:.0f} s)"
    if place is None:
        say(f"{_console.name or 'stage'}: {artifact} is {how}{took}")
    else:
        place.end(seconds or 0.0)
        others = place.seconds_of_others()
        left = f"; about {human(others)} left in all" if others else ""
        say(f"{_console.head()}: {how}{'' if seconds is None else f' in {human(seconds)}'}{left}")
    _console.leave()


def say(text: str) -> None:
    """Shows a line on the terminal, which the log has as well; processes other than the first leave it to their log."""
    if _console.log is None:
        if _console.first or not _console.armed:
            sys.stderr.write(f"{CLEAR if _console.armed and _console.drawn else ''}{_coloured(text)}\n")
            sys.stderr.flush()
        return
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()
    if _console.first:
        _console.write(f"{CLEAR if _console.drawn else ''}{_coloured(text)}\n", _console.err)
        _draw()


def tell(text: str) -> None:
    """Shows a line to whoever runs a stage by hand; under make it is in the log alone."""
    if _console.place is None:
        say(text)
    else:
        sys.stderr.write(f"{text}\n")


def show(text: str) -> None:
    """Prints results."""
    if _console.log is None:
        sys.stdout.write(f"{text}\n")
        return
    _console.write(f"{CLEAR if _console.drawn else ''}{text}\n", _console.out)


def failed() -> None:
    """Ends a stage that fails with the line that says where its log lies."""
    _console.since = 0.0
    if _console.log is not None:
        say(f"{_console.head() or 'it'} has failed; log: {_console.log}")
    _console.leave()


def crash(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Shows a traceback on the terminal, whichever process it is of, and leaves it in the log."""
    sys.__excepthook__(kind, error, trace)
    if _console.log is not None:
        text = "".join(traceback.format_exception(kind, error, trace))
        _console.write(f"{CLEAR if _console.drawn else ''}{text}", _console.err)


def progress(items: Iterable[T], what: str, unit: str) -> Iterator[T]:
    """Yields the items of a list or the like, and shows how many are done, their rate and the time left."""
    held = list(items)
    with Bar(what, len(held), unit) as bar:
        for each in held:
            yield each
            bar.update()


class Bar:
    """A bar of so many steps; drawn on a terminal, elsewhere a line every minute. Of nested ones the inner shows."""

    def __init__(self, what: str, total: int, unit: str, done: int = 0) -> None:
        """Takes what is counted, how many there are, and how many were done by a process that was killed."""
        self.what, self.total, self.unit = what, total, unit
        self.done = self.before = done
        self.started = self.looked = time.monotonic()

    def __enter__(self) -> Bar:
        """Shows the bar."""
        _console.bars.append(self)
        _draw()
        return self

    def __exit__(self, *_: object) -> None:
        """Takes the bar away."""
        _console.bars.remove(self)
        _draw()

    def update(self, steps: int = 1) -> None:
        """Counts steps, and shows them where the last look was some time ago."""
        self.done += steps
        now = time.monotonic()
        if now - self.looked < (OFTEN if _console.drawn else SELDOM):
            return
        self.looked = now
        if _console.drawn:
            _draw()
        elif _console.armed:
            say(f"{_console.head()}: {self.named()}{self.done} of {self.total} {self.unit}{self.left()}")

    def named(self) -> str:
        """Returns what is counted, unless the stage's name says it."""
        return "" if self.what in ("", _console.name) else f"{self.what}, "

    def left(self) -> str:
        """Returns the time left, and that of all stages where it is known."""
        made = self.done - self.before
        if not made:
            return ""
        seconds = (time.monotonic() - self.started) / made * (self.total - self.done)
        in_all = f", {human(seconds + _console.others)} in all" if _console.others else ""
        return f", {human(seconds)} left{in_all}"

    def text(self, width: int) -> str:
        """Returns the bar as a line of at most so many columns."""
        from tqdm import tqdm  # noqa: PLC0415 - only a terminal needs it

        head = f"{_console.head()}{': ' if self.named() else ''}{self.named().rstrip(', ')}"
        return tqdm.format_meter(
            self.done, self.total, time.monotonic() - self.started, ncols=width, prefix=head, bar_format=BAR,
            unit=self.unit, left=self.left(),
        )  # fmt: skip


def _draw() -> None:
    """Draws the innermost bar, or the name of the stage, where this process has the terminal."""
    if not _console.since or not _console.turn():
        return
    width = _width() - 1
    about = "" if _console.own is None else f" about {human(_console.own)}"
    line = _console.bars[-1].text(width) if _console.bars else f"{_console.head()} ...{about}"
    _console.write(f"{CLEAR}{line[:width]}", _console.err)


def _width() -> int:
    """Returns the columns of the terminal."""
    try:
        return os.get_terminal_size(_console.err).columns or 80
    except OSError:
        return 80


def _coloured(text: str) -> str:
    """Returns a line with its first words in colour, where the terminal has any and nobody asked for none."""
    if not _console.drawn or os.environ.get("NO_COLOR"):
        return text
    for word, colour in (("error:", RED), ("note:", YELLOW)):
        if text.startswith(word):
            return f"{colour}{word}{PLAIN}{text.removeprefix(word)}"
    place, bracket, rest = text.partition("] ")
    return f"{DIM}{place}{bracket}{PLAIN}{rest}" if text.startswith("[") and bracket else text
