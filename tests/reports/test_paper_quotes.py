"""Every number of a paper that a README or a recipe quotes is the one of the papers' tables."""

import re
from pathlib import Path

import pytest

from handbook_ext.recipes.names import paper_row, recipe_files
from handbook_ext.recipes.run import resolve
from handbook_ext.recipes.table_files import policy_of_row, read_table, run_of_row, table_names, written_table
from handbook_ext.reports.paper_tables import PaperTable, paper_table_names, read_paper_table

ROOT = Path(__file__).parents[2]
MODELS = ["zephyr", "llama3", "phi3", "tinyllama", "pythia", "mistral"]
TABLES = [read_paper_table(name) for name in paper_table_names()]
# Numbers in the READMEs' sentences that no source prints, and how they are worked out.
DERIVED = {
    "2.06": "LC of SELM less iterative DPO at iteration 3, Zephyr: 24.25 - 22.19", "1.50": "the same for Llama-3: 34.67 - 33.17",
    "0.625": "a half of one of 80 prompts, in percent",
}  # fmt: skip


def numbers_section(model: str) -> str:
    """The part of a model's README that quotes the paper."""
    text = (ROOT / "recipes" / model / "README.md").read_text(encoding="utf-8")
    return next(
        part
        for part in re.split(r"^## ", text, flags=re.MULTILINE)
        if part.startswith(("The paper's numbers", "The authors' numbers"))
    )


def rows_of(table: PaperTable) -> dict[tuple[str, str], list[str]]:
    """The printed values of each row, in order."""
    return {
        (group, row): [table.grid[group, row, column.name].value for column in table.heading.columns] for group, row in table.rows
    }


def quoted_rows(model: str) -> list[tuple[str, list[str]]]:
    """What stands for each row of the README's tables, and the values that it quotes."""
    found = []
    for line in numbers_section(model).splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")] if line.startswith("|") else []
        values = [cell.rstrip("%") for cell in cells if re.fullmatch(r"\d+(\.\d+)?%?|-", cell)]
        if len(values) > 1:
            found.append((next((cell.replace("`", "") for cell in cells if cell.startswith("`")), ""), values))
    return found


@pytest.mark.parametrize(("model", "count"), zip(MODELS, (8, 7, 4, 29, 12, 10), strict=True))
def test_a_row_that_a_readme_quotes_is_printed_so(model: str, count: int) -> None:
    quoted = quoted_rows(model)
    assert len(quoted) == count
    for here, values in quoted:
        stands = []
        for table in TABLES:
            for (group, row), printed in rows_of(table).items():
                if printed == values:
                    stands += [each.words for each in table.heading.stands if (each.group, each.row) == (group, row)]
        # `start`, `sft` and `iter0` alone are the model's own.
        assert any(each == here or (each.startswith(model) and each.split()[-1] == here) or not here for each in stands), (
            here,
            values,
        )


@pytest.mark.parametrize("model", MODELS)
def test_a_number_in_a_readmes_sentences_is_in_a_table(model: str) -> None:
    known = {cell.value for table in TABLES for cell in table.cells} | set(DERIVED)
    lines = [line for line in numbers_section(model).splitlines()[1:] if not line.startswith("|")]
    assert set(re.findall(r"(?<![\w.])\d+\.\d+(?![\w.]*\d)", "\n".join(lines))) <= known


@pytest.mark.parametrize("name", table_names(ROOT / "recipes"))
def test_a_table_of_ours_types_no_number_of_a_paper(name: str) -> None:
    """Rows name a cell of the printed tables; what is printed there is read. Words of sources and claims hold no results."""
    file = written_table(name, ROOT / "recipes")
    printed = {cell.value for table in TABLES for cell in table.cells if re.fullmatch(r"\d+\.\d+", cell.value)}
    words = " ".join([*(claim.words for claim in file.claims), *(str(row.paper) for row in file.rows)])
    assert not set(re.findall(r"\d+\.\d+", words)) & printed


def test_the_row_of_a_table_stands_where_the_printed_row_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """At paper scale the recipe of a row, and its policy, are those that the printed table names for the cell beside it."""
    monkeypatch.chdir(ROOT)
    checked = 0
    for name in table_names():
        for model in {*written_table(name).models} & {*MODELS}:
            for row in read_table(name, model=model).rows:
                if row.printed is None:
                    continue
                place, run = row.printed, run_of_row(row, name, 1)
                table = read_paper_table(place.table)
                stand = table.stand(place.group, place.row, place.column)
                if stand is None:  # Not printed, as the SFT policy's win rate against itself.
                    assert table.grid[place.group, place.row, place.column].value == "-"
                    stand = next(each for each in table.heading.stands if (each.group, each.row) == (place.group, place.row))
                shown = resolve(stand.recipe)
                alike = {"sft", "start"}
                policies = {policy_of_row(row, run), stand.policy or shown.iterations[-1].name}
                assert len(policies) == 1 or policies <= alike, (name, model, row.name)
                assert row.recipe == stand.recipe or policies <= alike, (name, model, row.name)
                checked += 1
    assert checked == 95


def test_the_row_that_a_recipe_claims_is_printed_and_is_its_own() -> None:
    checked = 0
    for recipe, file in recipe_files(ROOT / "recipes").items():
        claim = re.fullmatch(r"(SELM|SeRA) tables? ([\d, ]+), (.+?)( to \d)?( \(INF\))?", paper_row(file))
        if claim is None:
            continue
        for number in claim[2].split(", "):
            table = read_paper_table(f"{claim[1].lower()}{number}")
            if recipe.startswith("tiny-"):
                # The tiny world has no row of its own.
                names = [row for _, row in table.rows] + [column.name for column in table.heading.columns]
                assert any(name.startswith(claim[3]) for name in names), recipe
            else:
                # In table 3 the methods are columns, in table 6 cells have recipes of their own.
                ours = [s for s in table.heading.stands if re.fullmatch(rf"{recipe}(-(noise\d0|hh|tldr))?", s.recipe)]
                shown = [each for each in ours if each.policy not in ("start", "sft", "iter0")]
                words = {word for each in shown for word in (each.column, each.row) if word}
                method = claim[3].removesuffix("-DPO") if (number, claim[3]) == ("3", "SeRA-DPO") else claim[3]
                assert any(word == method or word.startswith(f"{method} ") or word.endswith(method) for word in words), recipe
            checked += 1
    assert checked == 88
