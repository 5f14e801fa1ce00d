"""Where in the raw data a row stands, whatever was dropped before it, and the ids of rows that repeat a prompt."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import TypeVar

from handbook_ext.core.records import Demonstration, OfflinePair
from handbook_ext.data.row_checks import RawRow

Kept = TypeVar("Kept", OfflinePair, Demonstration)


class CountedRows:
    """Raw rows, each behind its place, with the number of those that were read so far."""

    def __init__(self, rows: Iterable[tuple[str, RawRow]]) -> None:
        """Takes the rows, none of which is read yet."""
        self.rows, self.count = rows, 0

    def __iter__(self) -> Iterator[tuple[str, RawRow]]:
        """Yields the rows and counts them."""
        for row in self.rows:
            self.count += 1
            yield row


def numbered(kept: Iterable[Kept], raw: CountedRows) -> list[Kept]:
    """Returns what a reader keeps of the raw rows, each with its number among them, from 0, and how many they are.

    The reader must yield what it makes of a row before it reads the next one.
    """
    rows = [(row, raw.count - 1) for row in kept]
    return [row.model_copy(update={"raw_row": number, "raw_rows": raw.count}) for row, number in rows]


def distinct_ids(pairs: Iterable[OfflinePair]) -> list[OfflinePair]:
    """Returns the pairs with distinct prompt ids: the second of a repeated prompt gets '#2' appended to its id.

    A name that some row brings itself is left to that row, and the repeated one gets the next number. The ids of its completions
    follow, so that equal texts of two rows are two completions of the score store.
    """
    rows = list(pairs)
    taken = {row.prompt_id for row in rows}
    seen: Counter[str] = Counter()
    result = []
    for row in rows:
        name = row.prompt_id
        seen[name] += 1
        if seen[name] == 1:
            result.append(row)
            continue
        while f"{name}#{seen[name]}" in taken:
            seen[name] += 1
        result.append(row.renamed(f"{name}#{seen[name]}"))
        taken.add(result[-1].prompt_id)
    return result


def golden(demonstrations: Iterable[Demonstration], limit: int | None) -> list[OfflinePair]:
    """Returns training rows of the first `limit` raw demonstrations: each one's completion is both chosen and rejected."""
    return distinct_ids(
        OfflinePair.of(
            row.prompt_id, row.prompt, row.completion, row.completion, source=row.source, raw_row=row.raw_row,
            raw_rows=row.raw_rows if limit is None else min(row.raw_rows, limit),
        )
        for row in demonstrations
        if limit is None or row.raw_row < limit
    )  # fmt: skip
