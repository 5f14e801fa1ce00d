"""The papers' tables as data: their shapes, and whether what is printed as worked out follows from what it is worked out from."""

import shutil
import subprocess
import sys
from importlib import resources
from itertools import combinations_with_replacement
from pathlib import Path
from statistics import fmean

import pytest

from handbook_ext.core.errors import UserError
from handbook_ext.recipes.run import resolve
from handbook_ext.reports.paper_tables import PaperTable, paper_table_names, read_paper_table

ROOT = Path(__file__).parents[2]
SHAPES = {
    "selm1": (23, 6), "selm2": (18, 7), "sera1": (20, 10), "sera2": (14, 10), "sera3": (2, 5), "sera4": (16, 3), "sera5": (2, 2),
    "sera6": (2, 3), "sera7": (7, 8), "sera8": (7, 8), "sera9": (4, 10), "alpaca-eval": (5, 4), "prompt-sets": (6, 1),
    "selm-cards": (12, 2), "selm-deltas": (4, 2), "selm-figure2-llama3": (7, 7), "selm-figure2-zephyr": (7, 7),
    "selm-settings": (19, 3), "selm-versions": (8, 1), "sera-deltas": (1, 2), "sera-settings": (8, 1),
}  # fmt: skip
# What a family's gains are counted from.
FIRST = {"Zephyr-7B": "Zephyr-7B-SFT", "Llama-3-8B-Instruct": "Llama-3-8B-Instruct"}
# Printed numbers that do not follow from the others, and why each may stand.
EXCEPTIONS = {
    (
        "selm-figure2-llama3",
        "DPO1",
        "SELM2",
    ): "SELM2 over DPO1 is 51.91, so 48.09 is implied: a misprint, or a slip of the extraction",
    (
        "sera1",
        "TinyLlama-1.1B",
        "SeRA-DPO",
    ): "Vicuna vs SFT 85.8 is no share of 80 prompts: unread verdicts, or a slip of the digits",
    ("sera1", "Pythia-2.8B", "SeRA-DPO"): "Vicuna vs SFT 76.8, likewise",
    ("sera1", "Mistral-7B", "Iterative DPO"): "Vicuna vs SFT 88.2, likewise",
    ("sera9", "TinyLlama-1.1B", "SimPO"): "Vicuna vs SFT 67.2, likewise; 67.1875 would be one of 80 prompts in both orders",
    ("sera9", "TinyLlama-1.1B", "SeRA-SimPO"): "Vicuna vs SFT 76.5, likewise",
}


@pytest.fixture(scope="module")
def tables() -> dict[str, PaperTable]:
    """Every table by name."""
    return {name: read_paper_table(name) for name in paper_table_names()}


def test_each_table_has_its_shape(tables: dict[str, PaperTable]) -> None:
    assert {name: (len(table.rows), len(table.heading.columns)) for name, table in tables.items()} == SHAPES
    assert list(tables)[:11] == ["selm1", "selm2", *(f"sera{number}" for number in range(1, 10))]


def test_each_cell_of_a_printed_table_says_where_it_stands(tables: dict[str, PaperTable]) -> None:
    where = {"selm1": "SELM arXiv:2405.19332v3 table 1", "selm2": "SELM arXiv:2405.19332v3 table 2"}
    where |= {f"sera{number}": f"SeRA arXiv:2410.09362v1 table {number}" for number in (1, 2, 3, 5, 6, 7, 8, 9)}
    for name, source in where.items():
        assert {cell.source for cell in tables[name].cells} == {source}
        assert source.rpartition(" table ")[0].replace("arXiv:", "").split() == (
            tables[name].heading.source.replace(", arXiv", "").split(",")[0].split()
        )


@pytest.mark.parametrize(("name", "average", "parts", "tolerance"), [
    ("selm1", "MT-Bench average", ["MT-Bench turn 1", "MT-Bench turn 2"], 0.01),
    ("selm2", "average", None, 0.06),
])  # fmt: skip
def test_averages_are_those_of_their_parts(
    tables: dict[str, PaperTable], name: str, average: str, parts: list[str] | None, tolerance: float
) -> None:
    table, checked = tables[name], 0
    parts = parts or [column.name for column in table.heading.columns if column.name != average]
    for row in table.rows:
        if table.grid[*row, parts[0]].number is not None:
            assert abs(fmean(table.number(*row, part) for part in parts) - table.number(*row, average)) <= tolerance + 1e-9, row
            checked += 1
    # Yi-34B-Chat has no turns.
    assert checked == {"selm1": 22, "selm2": 18}[name]


def test_printed_gains_follow_from_the_rows(tables: dict[str, PaperTable]) -> None:
    for group, row, column in tables["selm-deltas"].grid:
        gain = tables["selm1"].number(group, row, column) - tables["selm1"].number(group, FIRST[group], column)
        assert round(gain, 2) == tables["selm-deltas"].number(group, row, column)
    implicit, judged = (
        {c.name: tables["sera6"].number("Mistral-7B", row, c.name) for c in tables["sera6"].heading.columns}
        for row in ("RM (implicit reward)", "SRLM")
    )
    faster, better = (
        tables["sera-deltas"].number("Mistral-7B", "RM (implicit reward)", column)
        for column in ("evaluation time", "Vicuna single")
    )
    assert round(judged["evaluation time"] / implicit["evaluation time"], 1) == faster
    assert round(implicit["Vicuna single"] - judged["Vicuna single"], 2) == better


def test_a_heat_map_gives_each_pair_one_hundred(tables: dict[str, PaperTable]) -> None:
    wrong = set()
    for name in ("selm-figure2-zephyr", "selm-figure2-llama3"):
        table = tables[name]
        group = table.rows[0][0]
        assert [row for _, row in table.rows] == [column.name for column in table.heading.columns]
        for ours, theirs in combinations_with_replacement([row for _, row in table.rows], 2):
            if abs(table.number(group, ours, theirs) + table.number(group, theirs, ours) - 100) > 1e-6:
                wrong.add((name, theirs, ours))
    assert wrong == {key for key in EXCEPTIONS if key[0].startswith("selm-figure2")}


def test_vicuna_win_rates_are_shares_of_eighty_prompts(tables: dict[str, PaperTable]) -> None:
    column, wrong = "Vicuna vs SFT", set()
    for name in ("sera1", "sera2", "sera7", "sera8", "sera9"):
        for row in tables[name].rows:
            value = tables[name].grid[*row, column].number
            # Wins and halves for ties: a share is a multiple of 100 / 160, printed with one decimal.
            if value is not None and abs(value - round(value / 0.625) * 0.625) > 0.05 + 1e-9:
                wrong.add((name, *row))
    assert wrong == {key for key in EXCEPTIONS if key[0].startswith("sera")}


def test_a_row_that_several_tables_print_is_the_same_in_all(tables: dict[str, PaperTable]) -> None:
    seen: dict[tuple[str, str, str], set[str]] = {}
    for name in ("sera1", "sera2", "sera7", "sera8", "sera9"):
        for key, cell in tables[name].grid.items():
            if key[1] == "SFT":
                seen.setdefault(key, set()).add(cell.value)
    assert len(seen) == 30
    assert all(len(values) == 1 for values in seen.values())
    checks, leaderboard = 0, tables["alpaca-eval"]
    for (group, row, column), cell in leaderboard.grid.items():
        own = next((ours for ours in tables["selm1"].cells if (ours.row, ours.column) == (row, column)), None)
        if own is not None and cell.number is not None:
            # Where the two disagree, the paper's cell says so.
            assert (own.value == cell.value) == (cell.value not in own.note), (group, row, column)
            checks += 1
    assert checks == 11


def test_each_row_of_ours_has_a_recipe_with_that_policy(tables: dict[str, PaperTable], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    for stand in {(each.recipe, each.policy) for table in tables.values() for each in table.heading.stands}:
        run = resolve(stand[0])
        assert stand[1] in (None, run.start, *(each.name for each in run.iterations)), stand


def test_quoted_models_have_no_recipe(tables: dict[str, PaperTable]) -> None:
    for name in ("selm1", "selm2"):
        table = tables[name]
        first = table.heading.columns[0].name
        quoted = {row for group, row in table.rows if table.stand(group, row, first) is None}
        assert quoted == {row for group, row in table.rows if group == "Quoted models"}
        assert {"SPIN", "SPPO (Mistral-it)"} <= quoted


@pytest.mark.parametrize(("old", "new", "words"), [
    ("SFT,M,a,1.5,%", "SFT,M,b,1.5,%", r"t\.csv: two cells stand at \('M', 'SFT', 'b'\)"),
    ("SFT,M,a,1.5,%", "SFT,M,aa,1.5,%", r"t\.csv: 'SFT', 'aa': no column is called so \(did you mean 'a'\?\)"),
    ("SFT,M,a,1.5,%", "SFT,M,a,,%", r"t\.csv: 'SFT', 'a': row, value and source must not be empty"),
    ("SFT,M,a,1.5,%,s,\n", "", r"t\.csv: no cell stands at \('M', 'SFT', 'a'\); write - where the paper has none"),
    ("DPO,M,a,2.5,%", "DPO,M,a,2.5,points", r"t\.csv: 'a' has the units '%' and 'points', where one is meant"),
    ("DPO,M,a,2.5,%,s,", "DPO,M,a,2.5,%,s", r"t\.csv:4: has 6 fields, not 7"),
    ("row,group", "group,row", r"t\.csv:1: the head must be row,group,"),
    ("row: DPO", "row: IPO", r"t\.yaml: tiny-dpo iter1 stands for 'IPO' of 'M', and no such cell is there"),
    ("name: b", "name: a", r"t\.yaml: two columns are called 'a'"),
    ("better: higher", "better: more", r"t\.yaml: columns: 0: better: Input should be 'higher' or 'lower'"),
    ("title: t", "title: [", r"t\.yaml: is no YAML"),
    (", set: evol, measure: single", "", r"t\.yaml: columns: 0: .*needs a set and a measure, or `quoted` with why it has none"),
    (", measure: single", "", r"needs a set and a measure, or `quoted`"),
    ("quoted: no measure", "set: evol, measure: single, quoted: x", r"columns: 1: .*needs a set and a measure, or `quoted`"),
    ("set: evol", "set: evils", r"set 'evils' is none of alpaca, mtbench, vicuna, evol, ultrafeedback, harness, run"),
    ("measure: single", "measure: lc_win_rate", r"measure 'lc_win_rate' is none of set evol: single, vs_"),
])  # fmt: skip
def test_a_mistake_in_a_table_is_told_in_a_line(tmp_path: Path, old: str, new: str, words: str) -> None:
    files = {
        "t.csv": "row,group,column,value,unit,source,note\nSFT,M,a,1.5,%,s,\nSFT,M,b,-,,s,\nDPO,M,a,2.5,%,s,\nDPO,M,b,7,,s,\n",
        "t.yaml": "title: t\npaper: SELM\nsource: s\ncolumns:\n"
        "  - {name: a, better: higher, set: evol, measure: single}\n  - {name: b, quoted: no measure of ours}\n"
        "stands:\n  - {group: M, row: DPO, recipe: tiny-dpo, policy: iter1}\n",
    }
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    table = read_paper_table("t", tmp_path)
    assert table.number("M", "DPO", "b") == 7
    with pytest.raises(UserError, match="table t prints no number at 'M', 'SFT', 'b'"):
        table.number("M", "SFT", "b")
    assert sum(text.count(old) for text in files.values()) == 1
    for name, text in files.items():
        (tmp_path / name).write_text(text.replace(old, new))
    with pytest.raises(UserError, match=words):
        read_paper_table("t", tmp_path)


def test_the_tables_are_files_of_the_package(tmp_path: Path) -> None:
    folder = resources.files("handbook_ext.reports") / "papers"
    files = {entry.name for entry in folder.iterdir()}
    assert files == {f"{name}.{ending}" for name in SHAPES for ending in ("csv", "yaml")}
    # What a wheel would hold: the same build, away from this checkout.
    for name in ("setup.cfg", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    shutil.copytree(ROOT / "src/handbook_ext/reports", tmp_path / "src/handbook_ext/reports")
    (tmp_path / "src/handbook_ext/__init__.py").touch()
    build = [sys.executable, "-c", "import setuptools; setuptools.setup()", "-q", "build_py", "--build-lib", "lib"]
    subprocess.run(build, cwd=tmp_path, check=True, capture_output=True, timeout=120)
    built = {path.name for path in (tmp_path / "lib/handbook_ext/reports/papers").iterdir()}
    assert built == files
    assert (tmp_path / "lib/handbook_ext/reports/templates/paper_table.tex.j2").is_file()
