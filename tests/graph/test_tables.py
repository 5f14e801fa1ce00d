"""A table to the stages behind its rows: what the plan of its goal needs, of which model, and rows that no run can give."""

from __future__ import annotations

from pathlib import Path

import pytest

from handbook_ext.core.errors import UserError
from handbook_ext.graph.goals import plan_goals
from handbook_ext.graph.plan import Plan
from handbook_ext.graph.run_rules import run_rules
from handbook_ext.recipes.table_files import read_table, run_of_row, table_names
from tests.recipe_folder import ROOT, enter_folder

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


def planned(goal: str, monkeypatch: pytest.MonkeyPatch, **variables: str) -> Plan:
    """The plan of a goal with the delivered recipes, of one seed, whatever was kept of their runs."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr("handbook_ext.graph.measured.read_measured", lambda path: None)
    return plan_goals([goal], {"SEEDS": "1", **variables}, list(variables))


def test_a_table_of_a_model_trains_evaluates_on_its_sets_and_prints_the_papers(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = planned("table-selm1", monkeypatch, MODEL="llama3")
    assert set(plan.runs) == {"llama3-selm", "llama3-dpo"}
    wanted = {artifact for run, artifact in plan.wanted["table-selm1"] if run == "llama3-dpo"}
    # DPO's row starts where SELM's does, which each run evaluates for itself.
    policies = ("start", "iter1", "iter2", "iter3")
    assert wanted == {
        f"{policy}/{part}" for policy in policies for part in ("eval.json", "alpaca/eval.json", "mtbench/eval.json")
    }
    assert [line.strip() for line in plan.lines if "scripts/" in line] == [
        "$(PYTHON) scripts/write_table.py selm1 --model llama3 --seeds 1 --runs runs",
        "@$(PYTHON) scripts/paper_table.py selm1 --model llama3 --runs runs",
    ]


def test_released_checkpoints_are_evaluated_beside_the_policies_that_they_stand_for(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = planned("table-selm1", monkeypatch, MODEL="llama3", CHECKPOINTS="released")
    released = {(run, artifact) for run, artifact in plan.wanted["table-selm1"] if "released-" in artifact}
    sets = ("alpaca", "mtbench")
    assert released == {("llama3-selm", f"released-iter{place}/{name}/eval.json") for place in (1, 2, 3) for name in sets}
    assert ("llama3-selm", "iter3/alpaca/eval.json") in plan.wanted["table-selm1"]
    rules = {rule.artifact for rule in run_rules(plan.runs["llama3-selm"])}
    assert {artifact for run, artifact in plan.wanted["table-selm1"] if run == "llama3-selm"} <= rules
    assert any(line.endswith("paper_table.py selm1 --model llama3 --checkpoints released --runs runs") for line in plan.lines)


def test_without_a_model_a_table_is_tinys_and_asks_no_judge(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = planned("table-selm1", monkeypatch)
    assert set(plan.runs) == {"tiny-selm", "tiny-dpo"}
    assert {artifact.partition("/")[2] for _, artifact in plan.wanted["table-selm1"]} == {"eval.json"}
    assert [line.strip() for line in plan.lines if "scripts/" in line] == [
        "$(PYTHON) scripts/write_table.py selm1 --seeds 1 --runs runs"
    ]


def test_all_tables_are_those_that_serve_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    for model in ("tiny", "pythia"):
        plan = planned("tables", monkeypatch, **({} if model == "tiny" else {"MODEL": model}))
        assert {run.file.parent.name for run in plan.runs.values()} == {model}
        assert {goal for goal in plan.wanted} == {f"table-{name}" for name in table_names(model=model)}
    with pytest.raises(UserError, match=r"selm-alpha\.yaml: it has no rows for pythia; it serves: tiny, zephyr"):
        planned("table-selm-alpha", monkeypatch, MODEL="pythia")


def test_a_table_waits_for_the_evaluations_of_every_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = planned("table-selm1", monkeypatch, SEEDS="2")
    [line] = [each for each in plan.lines if each.startswith("table-selm1:") and "eval.json" in each]
    files = line.split()
    assert {"runs/tiny-selm/iter3/eval.json", "runs/tiny-selm-seed2/iter3/eval.json"} <= set(files)


def test_a_planted_difference_has_two_arms_without_a_common_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each run, the recipe's own seed too, says its seed; tables wait for the same two evaluations of it."""
    plan = planned("planted", monkeypatch, OF="tiny-sera tiny-dpo", SEEDS="4")
    arms = {
        recipe: [run.settings.seed for run in plan.runs.values() if run.recipe == recipe] for recipe in ("tiny-sera", "tiny-dpo")
    }
    assert arms == {"tiny-sera": [1, 3, 5, 7], "tiny-dpo": [2, 4, 6, 8]}
    assert {artifact for _, artifact in plan.wanted["planted"]} == {"sft/eval.json", "iter3/eval.json"}
    assert len(plan.wanted["planted"]) == 16
    [command] = [line.split() for line in plan.lines if "scripts/" in line]
    assert command[2:4] == ["--better", "runs/tiny-sera-seed1"] and command[7:9] == ["--worse", "runs/tiny-dpo-seed2"]
    # One recipe twice is two equal arms.
    assert len(planned("planted", monkeypatch, OF="tiny-dpo tiny-dpo", SEEDS="4").runs) == 8


@pytest.mark.parametrize("given", [{"OF": "tiny-sera", "SEEDS": "20"}, {"OF": "tiny-sera tiny-dpo", "SEEDS": "3"}])
def test_a_planted_difference_wants_two_recipes_and_enough_seeds(given: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"planted: OF names two recipes, the better one first, and SEEDS is 4 or more, not OF="):
        planned("planted", monkeypatch, **given)
