"""The pages of reports and tables: numbers to Markdown and HTML through the templates beside, to JSON, and pictures to PNG."""

from __future__ import annotations

import base64
import dataclasses
import json
from collections.abc import Sequence
from functools import partial
from typing import Any

import jinja2

from handbook_ext.evaluation.implicit_summary import UNBIASED_AT
from handbook_ext.objectives.metrics import Interval, word_verdict
from handbook_ext.objectives.power import detectable, told_in_words
from handbook_ext.reports import run_figures, table_figures
from handbook_ext.reports.answers import short
from handbook_ext.reports.compare import compared_verdict
from handbook_ext.reports.evaluations import Json
from handbook_ext.reports.made_words import made_lines
from handbook_ext.reports.page_environment import markdown_escaped
from handbook_ext.reports.pairing import Compared
from handbook_ext.reports.run_report import FinishedRun
from handbook_ext.reports.table_summary import TableNumbers
from handbook_ext.reports.verdict import falls, verdict


def environment() -> jinja2.Environment:
    """Returns the templates of the pages; HTML escapes by itself, texts of data and recipes pass the filter `md` in Markdown."""
    pages = jinja2.Environment(
        loader=jinja2.PackageLoader("handbook_ext.reports"), autoescape=jinja2.select_autoescape(["html.j2"], default=False)
    )
    pages.filters |= {"fromjson": json.loads, "oneline": one_line, "md": markdown_escaped}
    return pages


def one_line(text: str, longest: int) -> str:
    """Returns a text on one line, cut to that many characters."""
    return short(" ".join(text.split()), longest)


def render_report(groups: Sequence[Sequence[FinishedRun]], summary: Json) -> dict[str, bytes]:
    """Returns the files of a report by name: two pages, the summary with its conclusions and warnings, the pictures.

    The summary's first words are the verdict; what went with falls of the reward is beside it.
    """
    summary = {"verdict": verdict(summary), "falls": falls(groups, summary), **summary}
    files, captions = run_figures.draw_figures(groups, summary)
    pages = environment()
    # The HTML page holds its pictures, so that it can be sent alone.
    encoded = {name: base64.b64encode(content).decode() for name, content in files.items()}
    pages.globals |= _words_of(summary) | {"captions": captions, "pictures": encoded}
    # report.md.j2 defines the sentences as macros: both pages and the summary take them from there.
    markdown: Any = pages.get_template("report.md.j2").module
    summary = _with_sentences(summary, markdown)
    files["report.md"] = f"{markdown}\n".encode()
    files["report.html"] = pages.get_template("report.html.j2").render().encode()
    files["summary.json"] = to_json(summary)
    return files


def concluded(groups: Sequence[Sequence[FinishedRun]], summary: Json) -> Json:
    """Returns a summary with the words that `render_report` adds to it, without a page or a picture."""
    summary = {"verdict": verdict(summary), "falls": falls(groups, summary), **summary}
    pages = environment()
    pages.globals |= _words_of(summary) | {"captions": {}}
    return _with_sentences(summary, pages.get_template("report.md.j2").module)


def _words_of(summary: Json) -> Json:
    """Returns a report's summary, and what puts its win rates into words: the verdict, and what as many seeds could have told."""

    def could_tell(won: Interval, seeds: int) -> str:
        """Returns the smallest difference that would have been told, in brackets; nothing of one seed."""
        words = told_in_words(detectable(won, seeds, summary["confidence"]), "reports")
        return f" ({words})" if words else ""

    return {"summary": summary, "verdict": word_verdict, "could_tell": could_tell, "unbiased_at": UNBIASED_AT}


def _with_sentences(summary: Json, markdown: Any) -> Json:
    """Returns a summary with the sentences of the page, a list of lines each."""
    sentences = {"conclusions": markdown.conclusions(summary), "warnings": markdown.warnings(summary)}
    return summary | {name: [line.strip() for line in text.splitlines() if line.strip()] for name, text in sentences.items()}


def render_comparison(compared: Sequence[Compared], summary: Json) -> dict[str, bytes]:
    """Returns the files of a page that compares runs by name; its picture has the runs that were judged alike."""
    summary = {"verdict": compared_verdict(summary), **summary}
    alike = [each for each, run in zip(compared, summary["runs"], strict=True) if run["shown"]]
    drawn = {"recipes": summary.pop("summaries"), "reward": summary["reward"], "primary": summary["primary"]}
    caption = f"Mean {summary['reward']} and mean completion length of each policy of {', '.join(each.label for each in alike)}."
    files, captions = run_figures.drawn({"reward_and_length": (partial(run_figures.draw_means, drawn), caption)})
    pages = environment()
    encoded = {name: base64.b64encode(content).decode() for name, content in files.items()}
    pages.globals |= {"summary": summary, "captions": captions, "pictures": encoded}
    files["compare.md"] = f"{pages.get_template('compare.md.j2').render()}\n".encode()
    files["compare.html"] = pages.get_template("compare.html.j2").render().encode()
    files["summary.json"] = to_json(summary)
    return files


def render_table(numbers: TableNumbers, seeds: Sequence[int]) -> dict[str, bytes]:
    """Returns the files of a table by name: the page, its numbers, the pictures."""
    files, captions = table_figures.draw_figures(numbers)
    between_rows = numbers.overlap_between_rows
    page = environment().get_template("table.md.j2").render(
        table=numbers.table, rows=numbers.rows, claims=numbers.claims, decodings=numbers.decodings, seeds=seeds,
        overlap_between_rows=between_rows, overlap_between_iterations=numbers.overlap_between_iterations,
        names=list(dict.fromkeys(name for names in between_rows for name in names)), pictures=captions, **numbers.bootstrap,
        starts={name: run.start for name, run in numbers.runs.items()}, made=made_lines(numbers.made),
    )  # fmt: skip
    files["table.md"] = page.encode() + b"\n"
    files["summary.json"] = to_json(numbers.summary())
    return files


def to_json(summary: Json) -> bytes:
    """Returns a summary as the bytes of a JSON file; intervals become objects of their fields."""
    return json.dumps(summary, indent=1, default=dataclasses.asdict).encode() + b"\n"
