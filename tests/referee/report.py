"""The table that the comparison prints."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field


@dataclass
class Report:
    """Lines of the table, and whether all that must be equal is."""

    lines: list[tuple[str, str]] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)

    @property
    def holds(self) -> bool:
        """Returns whether nothing is wrong."""
        return not self.faults

    def say(self, name: str, value: str) -> None:
        """Adds a line."""
        self.lines.append((name, value))

    def equal(self, name: str, wrong: Iterable[int], count: int) -> None:
        """Adds a line of how many rows are equal; `wrong` are the others, of which the first are named."""
        found = sorted(set(wrong))
        self.say(name, f"{count - len(found)} of {count}{_named(found)}")
        if found or not count:
            self.faults.append(name)

    def at_most(self, name: str, value: float, limit: float) -> None:
        """Adds a line of a difference that must not exceed a limit."""
        self.say(name, f"{value:.1e} (limit {limit:.0e})")
        if not value <= limit:  # So written that nan is refused too.
            self.faults.append(name)

    def counted(self, title: str, reasons: Counter[str], of: int) -> None:
        """Adds the reasons for differences, each with the number of rows that it touches, the most frequent first."""
        self.say(title, "" if reasons else "none")
        for reason, count in sorted(reasons.items(), key=lambda item: (-item[1], item[0])):
            self.say(f"  {count} of {of}", reason)

    def text(self) -> str:
        """Returns the table, and a last line that says whether the comparison holds."""
        width = max(len(name) for name, value in self.lines if value)  # Titles have no value.
        table = [f"{name:{width}}  {value}".rstrip() for name, value in self.lines]
        end = "the comparison holds" if self.holds else f"THE COMPARISON FAILS: {'; '.join(self.faults)}"
        return "\n".join([*table, end])


def _named(rows: list[int]) -> str:
    """Returns the first rows of a list, in words."""
    return f"; not rows {', '.join(map(str, rows[:10]))}{' ...' if len(rows) > 10 else ''}" if rows else ""
