"""Pages of the papers' tables: each of our cells beside the paper's, in four formats, by the script and by make."""

import csv
import html.parser
import io
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from handbook_ext.core.errors import UserError
from handbook_ext.graph.goals import VARIABLES, plan_goals
from handbook_ext.reports.measurements import Filling, Measurement
from handbook_ext.reports.page_environment import latex_escaped, markdown_escaped
from handbook_ext.reports.paper_headings import Column, Heading, Stand
from handbook_ext.reports.paper_measurements import read_filling
from handbook_ext.reports.paper_pages import FORMATS, render_paper_table
from handbook_ext.reports.paper_tables import Cell, PaperTable, paper_table_names, read_paper_table
from handbook_ext.reports.verdicts import NOT_RUN
from tests.workspace import ROOT, Workspace

LC = ("Zephyr-7B", "SELM Iter 3 (Zephyr)", "AlpacaEval 2 LC")
OURS = Filling({LC: Measurement(23.904, 22.5, 25.31)})
SHOWN = "23.90 [22.50, 25.31], -0.35, reproduced"


def hostile() -> PaperTable:
    """A table whose texts mean something to every format."""
    name = 'a & b_c | 5 % <b> $x$ {y} #1 ~^\\ "q" *'
    cells = (Cell(name, name, name, "1.5", "%", "s", name), Cell("plain", name, name, "-", "%", "s", ""))
    stand = Stand(group=name, row=name, recipe="tiny-dpo")
    heading = Heading(
        title=name,
        paper="SELM",
        source="s",
        columns=[Column(name=name, better="lower", quoted=None, set="evol", measure="single")],
        notes=[name],
        stands=[stand],
    )
    return PaperTable("t", heading, cells)


class Cells(html.parser.HTMLParser):
    """Collects the text of each row of a page's table, and checks that tags nest."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.rows: list[list[str]] = []

    def handle_starttag(self, tag: str, attrs: object) -> None:
        if tag != "meta":
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if {"td", "th"} & set(self.open):
            self.rows[-1][-1] += data


def html_rows(page: str) -> list[list[str]]:
    parser = Cells()
    parser.feed(page)
    assert not parser.open
    return parser.rows


def markdown_rows(page: str) -> list[list[str]]:
    """The cells of a Markdown table, unescaped; every line must have as many as the first."""
    rows = [re.split(r"(?<!\\)\|", line)[1:-1] for line in page.splitlines() if line.startswith("|")]
    assert len({len(row) for row in rows}) == 1
    return [[re.sub(r"\\(.)", r"\1", cell.strip()) for cell in row] for row in rows]


def latex_rows(page: str) -> list[list[str]]:
    body = page.partition("\\toprule\n")[2].partition("\\bottomrule")[0]
    lines = [line.removesuffix(" \\\\") for line in body.splitlines() if line != "\\midrule"]
    return [[cell.strip() for cell in re.split(r"(?<!\\)&", line)] for line in lines]


@pytest.mark.parametrize("name", paper_table_names())
@pytest.mark.parametrize("form", FORMATS)
def test_every_cell_is_on_every_page_and_none_of_ours_is_made_up(name: str, form: str) -> None:
    table = read_paper_table(name)
    page = render_paper_table(table, form)
    of_ours = sum(table.stand(*key) is not None for key in table.grid)
    if form == "csv":
        lines = list(csv.DictReader(io.StringIO(page)))
        assert [(line["group"], line["row"], line["column"]) for line in lines] == list(table.grid)
        assert [line["paper"] for line in lines] == [cell.value for cell in table.cells]
        assert [line["ours"] for line in lines].count(NOT_RUN) == of_ours
        assert {line["ours"] for line in lines} <= {NOT_RUN, ""}
        return
    rows = {"md": markdown_rows, "latex": latex_rows, "html": html_rows}[form](page)
    first = len(rows[0]) - len(table.heading.columns)
    printed = {"latex": latex_escaped}.get(form, str)
    for group, row in table.rows:
        expected = [
            printed(table.grid[group, row, c.name].value) + ("" if table.stand(group, row, c.name) is None else f" ({NOT_RUN})")
            for c in table.heading.columns
        ]
        assert expected in [line[first:] for line in rows if line[0] == printed(row)], (group, row)
    assert sum(cell.endswith(f"({NOT_RUN})") for line in rows for cell in line[first:]) == of_ours


def test_a_value_of_ours_stands_beside_the_papers_with_interval_and_difference() -> None:
    table = read_paper_table("selm1")
    assert f"| 24.25 ({SHOWN}) |" in render_paper_table(table, "md", OURS)
    stacked = r"& \shortstack[r]{24.25 \\ (23.90 {[}22.50, 25.31{]}, \\ -0.35, reproduced)} &"
    assert stacked in render_paper_table(table, "latex", OURS)
    assert f'<td>24.25 <span class="ours">({SHOWN})</span></td>' in render_paper_table(table, "html", OURS)
    lines = {
        (line["group"], line["row"], line["column"]): line
        for line in csv.DictReader(io.StringIO(render_paper_table(table, "csv", OURS)))
    }
    shown = [lines[LC][name] for name in ("recipe", "policy", "paper", "ours", "low", "high", "difference")]
    assert shown == ["zephyr-selm", "iter3", "24.25", "23.904", "22.5", "25.31", "-0.346"]
    length = (*LC[:2], "AlpacaEval 2 length")
    page = render_paper_table(table, "md", Filling({length: Measurement(1700.2, 1650, 1750, seeds=3)}))
    assert "1694 (1700 [1650, 1750], +6, reproduced)" in page


@pytest.mark.parametrize("key", [
    ("Quoted models", "SPIN", "AlpacaEval 2 LC"), ("Zephyr-7B", "SELM Iter 4", "AlpacaEval 2 LC"), (*LC[:2], "AlpacaEval 3"),
])  # fmt: skip
def test_a_value_of_ours_without_a_cell_is_refused(key: tuple[str, str, str]) -> None:
    with pytest.raises(
        UserError, match=f"table selm1 has no cell of ours at {', '.join(map(repr, key)).replace('(', '.').replace(')', '.')}"
    ):
        render_paper_table(read_paper_table("selm1"), "md", Filling({key: Measurement(1, 0, 2)}))


def test_what_formats_take_for_their_own_is_escaped() -> None:
    table = hostile()
    name = table.cells[0].row
    assert [row[0] for row in markdown_rows(render_paper_table(table, "md"))][2:] == [name, "plain"]
    assert [row[0] for row in html_rows(render_paper_table(table, "html"))][1:] == [name, "plain"]
    page = render_paper_table(table, "latex")
    assert latex_rows(page)[1][0] == latex_escaped(name)
    # Nothing of the names is left bare: braces nest, and only & and $ of the template itself remain.
    bare = re.sub(r"\\[\\&%$#_{}]", "", page.replace("\\textbackslash{}", "").replace("$\\downarrow$", ""))
    assert bare.count("{") == bare.count("}")
    assert not set("$#_~^<>|") & set(bare.replace("%", "", 1))
    assert bare.count("%") == 1
    assert latex_escaped("\u2021 [1]") == "\\ddag{} {[}1{]}"
    assert markdown_escaped("a|b\nc") == "a\\|b c"


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="no LaTeX here")
def test_latex_takes_every_table(tmp_path: Path) -> None:
    pages = [
        render_paper_table(table, "latex", OURS if table.name == "selm1" else None)
        for table in (*map(read_paper_table, paper_table_names()), hostile())
    ]
    head = "\\documentclass{article}\\usepackage[T1]{fontenc}\\usepackage{booktabs,graphicx}\\begin{document}\n"
    (tmp_path / "all.tex").write_text(head + "\\clearpage\n".join(pages) + "\\end{document}\n")
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "-draftmode", "all.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, errors="replace", timeout=120, check=False)
    assert done.returncode == 0, done.stdout[-1000:]
    assert "Float too large" not in done.stdout


def test_an_unknown_table_or_format_names_the_close_one() -> None:
    with pytest.raises(
        UserError, match=r"no table of the papers is called 'sera66' \(did you mean 'sera6'\?\); there are: selm1, selm2, sera1"
    ):
        read_paper_table("sera66")
    with pytest.raises(UserError, match=r"no format is called 'htm' \(did you mean 'html'\?\); there are: md, latex, csv, html"):
        render_paper_table(read_paper_table("selm1"), "htm")


@pytest.mark.parametrize(("goals", "variables", "words"), [
    (["tiny-selm"], {"T": "selm1"}, "T is read by paper-table and paper-figure, and no goal here is one of these: tiny-selm"),
    (["bench"], {"FORMAT": "md"}, "FORMAT is read by paper-table"),
    (["paper-table"], {"FORMAT": "pdf"}, "FORMAT: 'pdf' is not md, latex, csv or html"),
    (["paper-table"], {"T": "../x"}, r"T: '\.\./x' is not a table or figure of the papers, such as selm1; make"),
    (["paper-table"], {"SEEDS": "2"}, "SEEDS is read by"),
    (["paper-table"], {"CLUSTER": "slurm"}, "CLUSTER is read by|submits"),
])  # fmt: skip
def test_variables_of_a_printed_table_are_read_by_it_alone(goals: list[str], variables: dict[str, str], words: str) -> None:
    with pytest.raises(UserError, match=words):
        plan_goals(goals, variables, list(variables))


def test_each_format_can_be_asked_of_make() -> None:
    assert all(re.fullmatch(VARIABLES["FORMAT"][0], form) for form in FORMATS)
    assert all(re.fullmatch(VARIABLES["T"][0], name) for name in paper_table_names())


def test_make_prints_a_table_and_lists_all(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path / "clone")
    listed = workspace.make("paper-table")
    assert [line.split()[0] for line in listed.stdout.splitlines()] == paper_table_names(), listed.stderr
    table = read_paper_table("sera6")
    filling = read_filling(table, Path("runs"), ROOT / "recipes")
    assert workspace.make("paper-table", "T=sera6").stdout == render_paper_table(table, "md", filling)
    assert workspace.make("paper-table", "T=sera6", "FORMAT=csv").stdout == render_paper_table(table, "csv", filling)
    for words, told in ((["T=sera66"], "(did you mean 'sera6'?)"), (["FORMAT=md"], "md is the format of a table")):
        done = workspace.make("paper-table", *words)
        assert (done.returncode, done.stdout) == (2, "")
        assert told in done.stderr
    # A shell's own T and FORMAT are no words to make.
    done = subprocess.run(
        ["env", "-u", "MAKELEVEL", "-u", "MAKEFLAGS", "T=$(error x)", "FORMAT=a b", "make", "paper-table"],
        cwd=workspace.folder,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == listed.stdout
