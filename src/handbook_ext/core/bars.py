"""The bar of a stage: drawn on a terminal, elsewhere a line every minute."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from handbook_ext.core.console import CONSOLE, draw, say
from handbook_ext.core.goal_progress import human

T = TypeVar("T")

OFTEN, SELDOM = 0.2, 60.0  # Seconds between two looks of a bar on a terminal, and between two lines elsewhere.
BAR = "{desc} {bar:24} {counted}{left}"


def progress(items: Iterable[T], what: str, unit: str) -> Iterator[T]:
    """Yields the items of a list or the like, and shows how many are done, their rate and the time left."""
    held = list(items)
    with Bar(what, len(held), unit) as bar:
        for each in held:
            yield each
            bar.update()


def within(done: int, of: int) -> None:
    """Tells the innermost bar how much of its next step is done: steps such as batches of samples take minutes each."""
    if CONSOLE.bars and isinstance(CONSOLE.bars[-1], Bar):
        CONSOLE.bars[-1].advance(done / of)


class Bar:
    """A bar of so many steps; drawn on a terminal, elsewhere a line every minute. Of nested ones the inner shows."""

    def __init__(self, what: str, total: int, unit: str, done: int = 0) -> None:
        """Takes what is counted, how many there are, and how many were done by a process that was killed."""
        self.what, self.total, self.unit = what, total, unit
        self.done = self.before = done
        self.part = 0.0  # Of the next step.
        self.started = self.looked = time.monotonic()

    def __enter__(self) -> Bar:
        """Shows the bar."""
        CONSOLE.bars.append(self)
        draw()
        return self

    def __exit__(self, *_: object) -> None:
        """Takes the bar away."""
        CONSOLE.bars.remove(self)
        draw()

    def update(self, steps: int = 1) -> None:
        """Counts steps, and shows them where the last look was some time ago."""
        self.done, self.part = self.done + steps, 0.0
        self.look()

    def advance(self, part: float) -> None:
        """Takes how much of the next step is done, between 0 and 1, and shows it likewise."""
        self.part = part
        self.look()

    def look(self) -> None:
        """Shows the bar where the last look was some time ago."""
        now = time.monotonic()
        if now - self.looked < (OFTEN if CONSOLE.drawn else SELDOM):
            return
        self.looked = now
        if CONSOLE.drawn:
            draw()
        elif CONSOLE.armed:
            say(f"{CONSOLE.head()}: {self.named()}{self.counted(' of ')}{self.left()}")

    def counted(self, of: str) -> str:
        """Returns the count: `3 of 8 batches`, and behind it how much of the next is done."""
        return f"{self.done}{of}{self.total} {self.unit}" + (f" and {100 * self.part:.0f} % of the next" if self.part else "")

    def named(self) -> str:
        """Returns what is counted, unless the stage's name says it."""
        return "" if self.what in ("", CONSOLE.name) else f"{self.what}, "

    def left(self) -> str:
        """Returns the time left, and that of all stages where it is known."""
        made = self.done + self.part - self.before
        if not made or self.done >= self.total:
            return ""
        seconds = (time.monotonic() - self.started) / made * (self.total - self.done - self.part)
        in_all = f", {human(seconds + CONSOLE.others)} in all" if CONSOLE.others else ""
        return f", {human(seconds)} left{in_all}"

    def text(self, width: int) -> str:
        """Returns the bar as a line of at most so many columns."""
        from tqdm import tqdm  # noqa: PLC0415 - only a terminal needs it

        head = f"{CONSOLE.head()}{': ' if self.named() else ''}{self.named().rstrip(', ')}"
        line: str = tqdm.format_meter(
            self.done + self.part, self.total, time.monotonic() - self.started, ncols=width, prefix=head, bar_format=BAR,
            counted=self.counted("/"), left=self.left(),
        )  # fmt: skip
        return line
