"""A printed table as CSV: a line for each cell, with all that is known of our value and its verdict."""

from __future__ import annotations

import csv
import io

from handbook_ext.reports.measurements import Key, Measurement
from handbook_ext.reports.page_cells import Page
from handbook_ext.reports.verdicts import NOT_RUN

CSV_HEAD = [
    "group", "row", "column", "unit", "paper", "source", "note", "recipe", "policy", "ours", "low", "high", "difference",
    "verdict", "why", "margin", "confidence", "interval", "n", "missing", "prompts", "of", "seen", "seeds", "judge",
    "released", "released low", "released high", "evaluation", "training",
]  # fmt: skip


def as_csv(page: Page) -> str:
    """Returns a line for each cell: the paper's value, what stands for it, ours, the verdict; quoted cells have none of ours."""
    text = io.StringIO()
    writer = csv.DictWriter(text, CSV_HEAD, lineterminator="\n", restval="")
    writer.writeheader()
    for key, cell in page.table.grid.items():
        line: dict[str, object] = dict(zip(CSV_HEAD[:7], [*key, cell.unit, cell.value, cell.source, cell.note], strict=True))
        stand, measured, verdict = page.filling.stands.get(key), page.filling.ours.get(key), page.verdicts.cells.get(key)
        if stand is not None:
            line |= {"recipe": stand.recipe, "policy": stand.policy or "last", "ours": NOT_RUN, "verdict": NOT_RUN}
        if verdict is not None:
            line |= {"verdict": verdict.word, "why": verdict.why, "margin": _number(verdict.margin)}
        if measured is not None:
            line |= _csv_of(measured)
            line["difference"] = _number(verdict.difference if verdict is not None else None)
        line |= _csv_of_released(page, key)
        writer.writerow(line)
    return text.getvalue() + (f"\n{page.appendix}" if page.appendix else "")


def _csv_of(measured: Measurement) -> dict[str, object]:
    """Returns the fields of a value of ours."""
    interval = {} if measured.way == "none" else {"low": measured.low, "high": measured.high, "confidence": measured.confidence}
    return interval | {
        "ours": measured.value, "interval": measured.way, "n": measured.n, "missing": measured.missing,
        "prompts": measured.prompts, "of": measured.of, "seen": measured.seen, "seeds": measured.seeds,
        "judge": "" if measured.judge is None else measured.judge.model,
    }  # fmt: skip


def _csv_of_released(page: Page, key: Key) -> dict[str, object]:
    """Returns the fields of a released checkpoint's value, none where there is none."""
    released = (page.filling.released or {}).get(key)
    if released is None:
        return {}
    both = {"evaluation": page.verdicts.evaluation.get(key), "training": page.verdicts.training.get(key)}
    fields: dict[str, object] = {"released": released.value, "released low": released.low, "released high": released.high}
    return fields | {name: each.word for name, each in both.items() if each is not None}


def _number(value: float | None) -> str:
    """Returns a number with twelve digits, which hold every decimal of two printed ones and none of their difference's noise."""
    return "" if value is None else f"{value:.12g}"
