"""Policies kept along a training in the graph: what evaluates them, what waits for them, and how goals and tables name them."""

from __future__ import annotations

from pathlib import Path

import pytest

from handbook_ext.core.errors import UserError
from handbook_ext.graph.goals import plan_goals
from handbook_ext.graph.makefile import run_text
from handbook_ext.graph.rule import whole_of
from handbook_ext.graph.run_rules import StageRule, run_rules
from handbook_ext.graph.slurm import jobs_of
from handbook_ext.planning.preflight import unfinished
from handbook_ext.planning.space import disk_needed
from handbook_ext.recipes.overrides import parse_set
from handbook_ext.recipes.run import Run, resolve
from handbook_ext.recipes.table_files import read_table, run_of_row
from handbook_ext.reports.table_summary import RowRuns, table_inputs
from tests.graph.test_run_rules import SERA, values_of
from tests.recipe_folder import enter_folder, mine

KEPT = """
iterations: {iter0: null, iter2: null, iter3: null, iter1: {train: {keep_at: [0.25, 0.5]}, evaluate: {temperatures: [0.3]}}}
train: {alpha: 0}
select: {rule: dataset}
data: {portions: 1}
"""
SET = "benchmarks: {sets: {small: {source: test, measures: [single]}}}\n"


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes a folder with recipes the current one."""
    enter_folder(tmp_path, monkeypatch)
    Path("recipes/tables").mkdir()


def rules_of(run: Run) -> dict[str, StageRule]:
    """The rules by artifact."""
    return {rule.artifact: rule for rule in run_rules(run)}


def test_a_kept_policy_is_evaluated_like_that_of_its_iteration() -> None:
    run = mine(KEPT)
    rules = rules_of(run)
    assert run.policies == ["sft", "iter1@25", "iter1@50", "iter1"]
    ours, whole = rules["iter1@25/eval.json"], rules["iter1/eval.json"]
    assert ours.inputs == ["data/rows/test.jsonl", "iter1/policy/at-25", "sft/policy"]
    changes = {"iteration": "iter1@25", "policy": "iter1@25", "inputs": ours.settings.inputs}
    assert ours.settings == whole.settings.model_copy(update=changes)
    assert ours.settings.inputs["policy"] == "../iter1/policy/at-25"
    text = run_text(run, [*rules.values()], Path("runs"))
    [block] = [each for each in text.split("\n\n") if "evaluate_policy.py runs/mine-selm/iter1@25" in each]
    assert "    runs/mine-selm/iter1/policy/manifest.json \\\n" in block and "at-25" not in block


def test_a_run_is_whole_with_the_evaluations_of_its_kept_policies_which_its_report_does_not_read() -> None:
    report = rules_of(mine(KEPT + "health: {max_kl: 3}\n"))["report"]
    assert report.after == ("iter1@25/eval.json", "iter1@50/eval.json", "iter1/health.json")
    assert not any("@" in name for name in report.inputs)


@pytest.mark.parametrize("text", ["seed: 1\n", SERA, SET])
def test_a_recipe_that_keeps_nothing_has_the_stages_that_it_had(text: str) -> None:
    run = mine(text)
    for path, values in values_of(run).items():
        assert ("keep_at" in values.get("train", {})) == path.endswith("/train.yaml"), path
    assert not any("@" in name for name in [*rules_of(run), *run.policies])


def test_the_shares_change_the_training_that_keeps_and_no_other_stage() -> None:
    before, after = values_of(mine(KEPT)), values_of(mine(KEPT.replace("[0.25, 0.5]", "[0.25, 0.5, 0.75]")))
    assert {path for path in before if before[path] != after[path]} == {"iter1/train.yaml"}
    assert {*after} - {*before} == {"iter1@75/evaluate.yaml"}


def test_a_part_stands_for_the_policy_that_it_was_kept_in() -> None:
    assert whole_of("iter1/policy/at-12.5") == "iter1/policy"
    for name in ("iter1/policy", "iter1/policy/adapter", "iter1/at-25", "iter1@25/eval.json"):
        assert whole_of(name) == name


def test_goals_of_sets_name_a_kept_policy() -> None:
    mine(KEPT + SET)
    one = "\n".join(plan_goals(["mine-selm-iter1@25-eval"], {}).lines)
    assert "runs/mine-selm/iter1@25/small/eval.json" in one and "iter1/small" not in one and "iter1@50" not in one
    every = "\n".join(plan_goals(["mine-selm-eval"], {}).lines)
    for policy in ("sft", "iter1@25", "iter1@50", "iter1"):
        assert f"runs/mine-selm/{policy}/small/eval.json" in every
    file = plan_goals(["runs/mine-selm/iter1@50/small/eval.json"], {})
    assert list(file.wanted.values()) == [{("mine-selm", "iter1@50/small/eval.json"): None}]
    with pytest.raises(UserError, match=r"has no policy iter1@30 .*; it has: sft, iter1@25, iter1@50, iter1$"):
        plan_goals(["mine-selm-iter1@30-eval"], {})


def test_an_answer_to_a_set_comes_from_the_part() -> None:
    run = plan_goals(["mine-selm-iter1@25-eval"], {}).runs["mine-selm"] if mine(KEPT + SET) else None
    assert run is not None
    answers = rules_of(run)["iter1@25/small/answers.jsonl"]
    assert answers.inputs == ["prompts/small/prompts.jsonl", "iter1/policy/at-25"]
    assert answers.settings.inputs["policy"] == "../../iter1/policy/at-25"


def test_a_row_of_a_table_shows_a_kept_policy() -> None:
    mine(KEPT)
    rows = "rows: [{name: A, recipe: mine-selm, policy: iter1@25}]\n"
    Path("recipes/tables/mine.yaml").write_text(f"title: t\nsource: s\n{rows}")
    plan = plan_goals(["table-mine"], {"SEEDS": "1"})
    assert [*plan.wanted["table-mine"]] == [("mine-selm", "sft/eval.json"), ("mine-selm", "iter1@25/eval.json")]
    table = read_table("mine")
    found = table_inputs(table, {"A": RowRuns("sft", "iter1", [Path("r")])})
    assert [str(path) for path in found] == ["r/sft/eval.json", "r/iter1@25/eval.json", "r/iter1/pairs.jsonl"]
    # Another seed may keep others.
    Path("recipes/tables/mine.yaml").write_text(f"title: t\nsource: s\n{rows.replace('@25', '@75')}")
    words = r"recipe mine-selm keeps no policy iter1@75.*; train.keep_at of iter1 keeps: iter1@25, iter1@50"
    with pytest.raises(UserError, match=words):
        run_of_row(read_table("mine").rows[0], "mine", 1)
    assert run_of_row(table.rows[0].model_copy(update={"policy": "iter1"}), "mine", 1).name == "mine-selm"


@pytest.mark.parametrize("policy", ["iter1@", "sft@25", "iter9@25", "@25", "iter1@25@50"])
def test_a_name_that_is_nearly_one_is_refused(policy: str) -> None:
    run = mine(KEPT)
    with pytest.raises(UserError, match=r"(has no iteration|keeps no policy)"):
        run.check_policy(policy)
    for each in run.policies:
        run.check_policy(each)


def test_a_try_may_keep_policies() -> None:
    run = resolve("tiny-dpo", overrides=parse_set("train.keep_at=[0.125]"))
    assert run.policies == ["sft", *(name for each in run.iterations for name in (f"{each.name}@12.5", each.name))]
    assert run.iterations[0].settings.train.kept == {"12.5": 0.125}


def test_jobs_of_slurm_wait_for_the_training_that_keeps() -> None:
    mine(KEPT)
    run = resolve("mine-selm", cluster=True)
    pending = unfinished(run, {("mine-selm", "report"): None}, Path("runs"))
    jobs = {job.artifact: job for job in jobs_of(run, pending, "runs/mine-selm", "1")}
    assert set(jobs["iter1@25/eval.json"].after) == {"data/rows", "iter1/policy", "sft/policy", "check.json"}
    assert {"iter1@25/eval.json", "iter1@50/eval.json"} <= set(jobs["report"].after)
    assert "scripts/evaluate_policy.py runs/mine-selm/iter1@25" in jobs["iter1@25/eval.json"].script


@pytest.mark.parametrize(("launch", "each"), [("cpu", 4), ("ddp-cpu", 4), ("zero2-cpu", 2)])
def test_the_disk_holds_kept_policies_in_the_type_that_trains(launch: str, each: int) -> None:
    needed = []
    for text in (KEPT, KEPT.replace("[0.25, 0.5]", "[]")):
        mine(text + "model: {dtype: bfloat16}\n")
        run = resolve("mine-selm", launch=launch)
        needed.append(disk_needed(run, [rules_of(run)["iter1/policy"]], 1000))
    assert needed[0] - needed[1] == 2 * each * 1000
