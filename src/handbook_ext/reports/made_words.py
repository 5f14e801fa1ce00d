"""What a table says of where its numbers come from: machines, days, and rows that were kept without their runs."""

from __future__ import annotations

from collections.abc import Sequence

from handbook_ext.reports.evaluations import Json

APART = "Equal seeds of two machines have equal data and prompts, but policies that rounding has parted."


def made_lines(made: Sequence[Json]) -> list[str]:
    """Returns the lines below a table, one per machine, of `TableNumbers.made`; none where no run says where it was made.

    Rows of which a machine has made every seed are named alone, others with their seeds.
    """
    if not made:
        return []
    whole: dict[str, int] = {}
    groups: dict[str, list[Json]] = {}
    for each in made:
        whole[each["row"]] = whole.get(each["row"], 0) + 1
        groups.setdefault(" and ".join(each["machines"]), []).append(each)
    lines = [_of_machine(machine, found, whole, len(made)) for machine, found in groups.items()]
    lines += [APART] if len(groups) > 1 else []
    if kept := sum(each["kept"] for each in made):
        lines.append(f"Kept rows, whose runs are not here: {kept} of {len(made)}, a row under a seed each.")
    return lines


def _of_machine(machine: str, found: Sequence[Json], whole: dict[str, int], total: int) -> str:
    """Returns which rows a machine has made, under which seeds, and on which days."""
    days = ", ".join(f"{day} ({count})" for day, count in _counted(each["date"] for each in found))
    if len(found) == total:
        return f"Made on {machine}: all {total} rows under a seed; by day: {days}."
    seeds: dict[str, list[int]] = {}
    for each in found:
        seeds.setdefault(each["row"], []).append(each["seed"])
    rows = [
        row if len(numbers) == whole[row] else f"{row} (seed{'s' * (len(numbers) > 1)} {', '.join(map(str, numbers))})"
        for row, numbers in seeds.items()
    ]
    return f"Made on {machine}: {len(found)} of {total} rows under a seed; by day: {days}: {'; '.join(rows)}."


def _counted(words: Sequence[str]) -> list[tuple[str, int]]:
    """Returns each word once, in order, with how often it is there."""
    listed = sorted(words)
    return [(word, listed.count(word)) for word in dict.fromkeys(listed)]
