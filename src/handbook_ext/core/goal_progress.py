"""How far the goals of one call of make are: the stages that they still need, which have begun, and how long each took.

`scripts/plan_goals.py` writes the list before the first stage starts, and hands its place on in HANDBOOK_PROGRESS. Every stage
adds a line when it begins and when it ends: so each knows how many went before, and what is left.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PROGRESS = "HANDBOOK_PROGRESS"


@dataclass(frozen=True)
class Expected:
    """A stage still to be made: its artifact's path, its name for people, what sort of work it is, and seconds, if known."""

    artifact: str
    name: str
    sort: str
    seconds: float | None = None


def write_expected(path: Path, stages: Iterable[Expected]) -> None:
    """Begins the list anew."""
    rows = [{"artifact": each.artifact, "name": each.name, "sort": each.sort, "seconds": each.seconds} for each in stages]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in [*rows, {"since": time.time()}]), encoding="utf-8")


def progress_file() -> Path | None:
    """Returns the list of the call of make that this process belongs to; None where a person has started it."""
    stated = os.environ.get(PROGRESS)
    return Path(stated) if stated and os.path.isfile(stated) else None


@dataclass(frozen=True)
class Place:
    """The place of a stage among those of its call of make, from 1, and its name there."""

    file: Path
    artifact: str
    name: str
    number: int
    of: int

    @classmethod
    def begin(cls, artifact: Path) -> Place | None:
        """Returns the place of a stage that begins; None where nobody has planned it."""
        file, own = progress_file(), os.path.normpath(artifact)
        if file is None:
            return None
        try:
            with file.open("r+", encoding="utf-8") as held:
                fcntl.flock(held, fcntl.LOCK_EX)
                rows = [json.loads(line) for line in held]
                stages = {row["artifact"]: row for row in rows if "artifact" in row}
                if own not in stages:
                    return None
                begun = list(dict.fromkeys(row["begun"] for row in rows if "begun" in row))
                if own not in begun:
                    begun.append(own)
                    held.write(json.dumps({"begun": own}) + "\n")
        except (OSError, ValueError):  # Deleted, or half written: a stage works without.
            return None
        return cls(file, own, str(stages[own]["name"]), begun.index(own) + 1, len(stages))

    def end(self, seconds: float) -> None:
        """Notes that the stage is done."""
        note({"done": self.artifact, "seconds": seconds}, self.file)

    def own_seconds(self) -> float | None:
        """Returns how long the stage will take; None where nothing tells."""
        rows = _rows(self.file)
        return next((_likely(rows, row) for row in rows if row.get("artifact") == self.artifact), None)

    def seconds_of_others(self) -> float | None:
        """Returns how long the stages will take that are neither this one nor done; None where one of them is not known.

        Stages that run beside each other take less time together than one by one: so by the pace until now.
        """
        rows = _rows(self.file)
        done = {row["done"]: float(row["seconds"]) for row in rows if "done" in row}
        left = [row for row in rows if "artifact" in row and row["artifact"] not in {*done, self.artifact}]
        likely = [_likely(rows, row) for row in left]
        known = [each for each in likely if each is not None]
        since = [float(row["since"]) for row in rows if "since" in row]
        if len(known) < len(likely) or not since:
            return None
        pace = (time.time() - since[0]) / sum(done.values()) if sum(done.values()) > 1 else 1.0
        return sum(known) * min(pace, 2.0)


def first_to_note(what: str) -> bool:
    """Tells whether nothing of this call of make has noted this before, such as that it was interrupted; notes it."""
    file = progress_file()
    if file is None:
        return True
    if any(row.get("note") == what for row in _rows(file)):
        return False
    note({"note": what}, file)
    return True


def note(row: dict[str, Any], file: Path) -> None:
    """Adds a line; where that cannot be, nobody is the worse for it."""
    with contextlib.suppress(OSError), file.open("a", encoding="utf-8") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        held.write(json.dumps(row) + "\n")


def _rows(file: Path) -> list[dict[str, Any]]:
    """Returns the lines of the list; none where it is gone or damaged."""
    try:
        return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError):
        return []


def _likely(rows: list[dict[str, Any]], stage: dict[str, Any]) -> float | None:
    """Returns how long a stage will take: as the last of its sort in this call, or as was known before."""
    sorts = {row["artifact"]: row["sort"] for row in rows if "artifact" in row}
    # One that was up to date took no time, and says nothing of those that are not.
    same = [float(row["seconds"]) for row in rows if row.get("seconds") and sorts.get(row.get("done")) == stage["sort"]]
    known = stage["seconds"]
    return same[-1] if same else None if known is None else float(known)


def human(seconds: float) -> str:
    """Returns a time in the unit that people would say it in."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{round(seconds / 60)} min" if seconds < 90 * 60 else f"{seconds / 3600:.1f} h"
