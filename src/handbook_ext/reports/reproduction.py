"""Did a run reproduce its paper? The cells of printed tables that it stands for, and what was done otherwise."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from handbook_ext.reports.deviations import deviations_of
from handbook_ext.reports.measurements import Filling
from handbook_ext.reports.page_cells import in_words
from handbook_ext.reports.paper_measurements import read_filling
from handbook_ext.reports.paper_tables import PaperTable, paper_table_names, read_paper_table
from handbook_ext.reports.paper_verdicts import judged
from handbook_ext.reports.verdicts import NOT_RUN, VERDICTS

Json = dict[str, Any]


def reproduction(folder: Path, recipe: str) -> Json | None:
    """Returns the paper's part of a run's report, None for a recipe that stands for no cell of a printed table.

    `sentence` counts the verdicts; `cells` are the run's cells with the paper's value, ours in words, its verdict, why it is not
    run, and the seeds in it; `deviations` what the run did otherwise than its paper, none where nothing of it is finished.
    """
    cells: list[Json] = []
    otherwise: dict[str, Json] = {}
    for name in paper_table_names():
        table = read_paper_table(name)
        if not any(stand.recipe == recipe for stand in table.heading.stands):
            continue
        filling = read_filling(table, folder.parent)
        cells += _cells(table, filling, recipe)
        for each in deviations_of(table, filling, folder.parent).get(folder.name, []):
            otherwise[each.what] = asdict(each)
    if not cells:
        return None
    pooled = max((cell["seeds"] for cell in cells), default=1)
    counts = Counter(cell["verdict"] for cell in cells)
    run = len(cells) - counts[NOT_RUN]
    words = ", ".join(f"{counts[word]} {word}" for word in VERDICTS if counts[word] and word != NOT_RUN)
    told = f"{run} were run{f': {words}' if words else ''}"
    return {
        "sentence": f"Of the {len(cells)} cells of the papers' tables that {recipe} stands for, {told}."
        + (f" Up to {pooled} seeds beside this run are pooled in a cell." if pooled > 1 else ""),
        "cells": cells, "deviations": list(otherwise.values()),
    }  # fmt: skip


def _cells(table: PaperTable, filling: Filling, recipe: str) -> Iterator[Json]:
    """Yields the cells of a table that a recipe stands for."""
    verdicts = judged(table, filling)
    for key, stand in filling.stands.items():
        if stand.recipe != recipe or key not in verdicts.cells:
            continue
        cell, verdict, ours = table.grid[key], verdicts.cells[key], filling.ours.get(key)
        yield {
            "table": table.name, "row": key[1], "column": key[2], "policy": stand.policy or "last", "paper": cell.value,
            "ours": in_words(cell, ours, None), "verdict": verdict.word, "why": verdict.why,
            "seeds": 1 if ours is None else ours.seeds,
        }  # fmt: skip
