"""The templates of the papers' pages: Markdown, HTML and LaTeX, each with its escapes."""

from __future__ import annotations

import re

import jinja2

_LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}",
    "[": "{[}", "]": "{]}", "\u2021": r"\ddag{}", "\u2020": r"\dag{}", "\u2191": r"$\uparrow$",
    "\u2193": r"$\downarrow$", "\n": " ",
}  # fmt: skip


def page_environment() -> jinja2.Environment:
    """Returns the templates; HTML escapes by itself, the filters `md` and `latex` escape for the other two."""
    pages = jinja2.Environment(
        loader=jinja2.PackageLoader("handbook_ext.reports"), trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True,
        autoescape=jinja2.select_autoescape(["html.j2"], default=False), undefined=jinja2.StrictUndefined,
    )  # fmt: skip
    pages.filters |= {"latex": latex_escaped, "latex_cell": latex_cell, "md": markdown_escaped}
    return pages


def latex_escaped(text: object) -> str:
    """Returns text that LaTeX prints as it stands."""
    return "".join(_LATEX.get(letter, letter) for letter in str(text))


def latex_cell(paper: str, ours: str | None) -> str:
    """Returns the paper's text with ours behind it in brackets; a value of ours goes below it, line by line, to be less wide."""
    if ours is None:
        return latex_escaped(paper)
    # After the interval, or after the value where there is none, comes what it means; after a semicolon the training.
    value, _, rest = ours.partition("], ") if "]" in ours else ours.partition(", ")
    if not rest:
        return f"{latex_escaped(paper)} ({latex_escaped(ours)})"
    first = f"{value}]" if "]" in ours else value
    lines = [paper, f"({first},", *f"{rest})".split("; ")]
    stack = r" \\ ".join(latex_escaped(line) for line in lines)
    return rf"\shortstack[r]{{{stack}}}"


def markdown_escaped(text: object) -> str:
    """Returns text that Markdown prints as it stands, in the cell of a table too: no tag, picture, link or heading of its own."""
    return re.sub(r"([\\`*_<|\[\]]|^[#>+-])", r"\\\1", " ".join(str(text).splitlines()))
