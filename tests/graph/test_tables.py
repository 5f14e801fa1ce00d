"""A table to the stages behind its rows: what the plan of its goal needs, and rows that no run can give."""

from __future__ import annotations

from pathlib import Path

import pytest

from handbook_ext.core.errors import UserError
from handbook_ext.graph.goals import plan_goals
from handbook_ext.recipes.table_files import read_table, run_of_row
from tests.recipe_folder import enter_folder

TABLE = "title: t\nsource: s\nrows: [{name: A, recipe: tiny-selm, policy: %s}]\n"


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes a folder with recipes the current one."""
    enter_folder(tmp_path, monkeypatch)
    Path("recipes/tables").mkdir()


def needed(policy: str) -> set[str]:
    """The evaluations that a table of one row needs, of one seed."""
    Path("recipes/tables/mine.yaml").write_text(TABLE % policy)
    text = "\n".join(plan_goals(["table-mine"], {"SEEDS": "1"}).lines)
    return {word.removeprefix("runs/tiny-selm/") for word in text.split() if word.endswith("eval.json")}


@pytest.mark.parametrize(("policy", "evaluated"), [("null", "iter3"), ("iter1", "iter1"), ("sft", "sft"), ("start", "sft")])
def test_a_row_needs_the_evaluations_of_its_policy_and_of_its_start(policy: str, evaluated: str) -> None:
    assert needed(policy) == {"sft/eval.json", f"{evaluated}/eval.json"}


@pytest.mark.parametrize("policy", ["iter9", "started", "policy"])
def test_a_row_of_a_policy_that_its_recipe_has_not_is_one_line(policy: str) -> None:
    recipe = "recipes/tables/mine.yaml: row 'A': recipes/tiny/selm.yaml: recipe tiny-selm"
    words = f"{recipe} has no iteration '{policy}'.*; it has: iter0, iter1, iter2, iter3"
    with pytest.raises(UserError, match=words):
        needed(policy)
    with pytest.raises(UserError, match=words):
        run_of_row(read_table("mine").rows[0], "mine", 1)
