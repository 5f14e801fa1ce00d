"""What make says when a goal is reached: the results and where they lie, and what to run next."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path

WIDTH = 170  # Of a table where nobody says how wide the terminal is.


@dataclass(frozen=True)
class Ending:
    """A goal's run, what was made for it there, and the command that goes on from it."""

    folder: str
    made: tuple[str, ...]
    next: str = ""

    def record(self) -> str:
        """Returns the ending as JSON."""
        return json.dumps(asdict(self)) + "\n"

    def text(self, width: int = WIDTH) -> str:
        """Returns the lines."""
        lines = [line for each in self.made for line in _made(Path(self.folder), each, width)]
        return "\n".join([*lines, *([f"next: {self.next}"] if self.next else [])]) + "\n"


def read_ending(path: Path) -> Ending:
    """Returns an ending that was recorded."""
    found = json.loads(path.read_text(encoding="utf-8"))
    return Ending(found["folder"], tuple(found["made"]), found["next"])


def _made(folder: Path, artifact: str, width: int) -> list[str]:
    """Returns the lines on an artifact: a report's verdict and its first table, and where it lies."""
    if artifact != "report":
        return [f"{Path(artifact).stem.replace('eval', 'evaluation')}: {folder / artifact}"]
    return [*report_lines(folder / artifact, width), f"report: {folder / artifact / 'report.html'}"]


def report_lines(report: Path, width: int = WIDTH) -> list[str]:
    """Returns the verdict of a report and its first table, as lines; none where it is damaged, which its manifest will tell."""
    try:
        verdict = str(json.loads((report / "summary.json").read_text(encoding="utf-8"))["verdict"])
        page = (report / "report.md").read_text(encoding="utf-8")
    except (OSError, ValueError, KeyError):
        return []
    found = re.search(r"(?:^\|.*\n)+", page, re.MULTILINE)
    rows = [] if found is None else [_cells(line) for line in found[0].splitlines()]
    return [verdict, "", *_aligned([rows[0], *rows[2:]], width), ""] if rows else [verdict, ""]


def _cells(line: str) -> list[str]:
    """Returns the cells of a line of a Markdown table, without emphasis."""
    return [cell.strip().replace("**", "").replace("\\|", "|") for cell in re.split(r"(?<!\\)\|", line.strip())[1:-1]]


def _aligned(rows: list[list[str]], width: int) -> list[str]:
    """Returns a table as lines; columns for which a line has no room follow below, again behind the first column."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    first, lines, start = widths[0], [], 1
    while start < len(widths):
        end, used = start, first
        while end < len(widths) and (end == start or used + 2 + widths[end] <= width):
            used += 2 + widths[end]
            end += 1
        lines += [""] * bool(lines)
        for row in rows:
            shown = [f"{cell:>{size}}" for cell, size in zip(row[start:end], widths[start:end], strict=True)]
            lines.append("  ".join([f"{row[0]:<{first}}", *shown]).rstrip())
        start = end
    return lines
