"""The cells of a printed table's page: the paper's text, our value with its verdict, and that of a released checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from handbook_ext.reports.measurements import Filling, Key, Measurement
from handbook_ext.reports.paper_footers import SEEN
from handbook_ext.reports.paper_tables import Cell, PaperTable
from handbook_ext.reports.paper_verdicts import Verdicts
from handbook_ext.reports.verdicts import NOT_RUN, Verdict


@dataclass(frozen=True)
class Page:
    """What a page is made of: a table, what is known of ours, the verdicts, lines that are put below it, and the page's end."""

    table: PaperTable
    filling: Filling
    verdicts: Verdicts
    remarks: Sequence[str] = ()
    appendix: str = ""

    def ours(self, key: Key) -> str | None:
        """Returns our value of a cell in words; None for one that is quoted alone."""
        if key not in self.filling.stands:
            return None
        words = in_words(self.table.grid[key], self.filling.ours.get(key), self.verdicts.cells.get(key))
        training = self.verdicts.training.get(key)
        return words if training is None else f"{words}; training {gap_in_words(self.table.grid[key], training)}"

    def released(self, key: Key) -> str:
        """Returns the released checkpoint's value of a cell in words, a dash where none is named."""
        filling = self.filling
        if filling.released is None or (key not in filling.released and key not in filling.released_lacks):
            return "-"
        return in_words(self.table.grid[key], filling.released.get(key), self.verdicts.evaluation.get(key))


def in_words(cell: Cell, measured: Measurement | None, verdict: Verdict | None) -> str:
    """Returns a value with its interval, its difference to the paper's and the verdict, with the paper's decimals; or `not run`.

    A value is marked whose prompts training has seen in part.
    """
    if measured is None:
        return NOT_RUN
    digits = cell.decimals
    value, low, high = (f"{number:.{digits}f}" for number in (measured.value, measured.low, measured.high))
    interval = "" if measured.way == "none" else f" [{low}, {high}]"
    gap = "" if verdict is None or cell.number is None else f", {gap_in_words(cell, verdict)}"
    return f"{value}{SEEN if measured.seen else ''}{interval}{gap}"


def gap_in_words(cell: Cell, verdict: Verdict) -> str:
    """Returns a verdict's difference and word."""
    return verdict.word if verdict.difference is None else f"{verdict.difference:+.{cell.decimals}f}, {verdict.word}"
