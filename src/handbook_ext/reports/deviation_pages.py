"""What runs did otherwise than the paper, as a part of a table's page: Markdown, HTML, LaTeX or CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict

from handbook_ext.reports.deviations import Deviation
from handbook_ext.reports.page_environment import page_environment

CSV_HEAD = ["run", "what", "paper", "ours", "where", "source"]
_TEMPLATES = {"md": "deviations.md.j2", "html": "deviations.html.j2", "latex": "deviations.tex.j2"}


def counted(found: Mapping[str, Sequence[Deviation]], command: str) -> list[str]:
    """Returns a line with the number of deviations of each run, and the command that shows them; none where nothing was run."""
    if not found:
        return []
    told = ", ".join(f"{run} {len(each)}" for run, each in found.items())
    return [f"Deviations from the paper's setup: {told}. {command} lists them."]


def render_deviations(found: Mapping[str, Sequence[Deviation]], form: str = "md") -> str:
    """Returns the deviations by run as a part of a page in one of the formats of a table."""
    if form != "csv":
        return page_environment().get_template(_TEMPLATES[form]).render(runs=found)
    text = io.StringIO()
    writer = csv.DictWriter(text, CSV_HEAD, lineterminator="\n")
    writer.writeheader()
    writer.writerows({"run": run} | asdict(each) for run, deviations in found.items() for each in deviations)
    return text.getvalue()
