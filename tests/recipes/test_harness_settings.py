"""The section benchmarks.harness: SELM's table 2 by default, completed by name, and what the graph makes of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from handbook_ext.core.errors import UserError
from handbook_ext.graph.goals import plan_goals
from handbook_ext.graph.rules_benchmarks import asked_for
from handbook_ext.graph.run_rules import run_rules
from handbook_ext.graph.stages_benchmarks import HarnessStage
from handbook_ext.recipes.listing import extras_of
from handbook_ext.recipes.run import Run
from handbook_ext.recipes.settings_harness import HarnessSettings
from tests.recipe_folder import enter_folder, mine

EQ_BENCH = (0, "eqbench", "points")
SELM_TABLE_2 = {
    "gsm8k_cot": (8, "exact_match,strict-match", "%"), "hellaswag": (10, "acc_norm", "%"), "arc_challenge": (25, "acc_norm", "%"),
    "truthfulqa_mc2": (0, "acc", "%"), "eq_bench": EQ_BENCH, "openbookqa": (10, "acc_norm", "%"),
}  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder of a test."""
    return enter_folder(tmp_path, monkeypatch)


def tasks_of(settings: HarnessSettings) -> dict[str, tuple[Any, ...]]:
    return {name: (each.num_fewshot, each.metric, each.unit) for name, each in settings.tasks.items()}


def test_the_default_is_selms_table_2() -> None:
    assert tasks_of(HarnessSettings()) == SELM_TABLE_2


@pytest.mark.parametrize(
    ("stated", "found"),
    [
        (["gsm8k_cot", "mine"], {"gsm8k_cot": SELM_TABLE_2["gsm8k_cot"], "mine": (None, None, "%")}),
        ({"gsm8k_cot": {"num_fewshot": 4}}, {"gsm8k_cot": (4, "exact_match,strict-match", "%")}),
        ({"hellaswag": {"metric": "acc"}, "eq_bench": None}, {"hellaswag": (10, "acc", "%"), "eq_bench": EQ_BENCH}),
        ({"hellaswag": {"metric": None, "num_fewshot": None}}, {"hellaswag": (None, None, "%")}),
    ],
)  # fmt: skip
def test_what_a_task_leaves_out_is_the_papers(stated: Any, found: dict[str, Any]) -> None:
    settings = HarnessSettings.model_validate({"tasks": stated})
    assert tasks_of(settings) == found
    # The settings file of the stage holds it completed, and reads back as the same.
    assert HarnessSettings.model_validate(settings.model_dump()) == settings


@pytest.mark.parametrize(
    ("harness", "message"),
    [
        ("{tasks: [hellaswag, hellaswag]}", "harness.tasks: tasks names hellaswag more than once; name each task once"),
        ("{tasks: {hellaswag: {shots: 3}}}", "benchmarks.harness.tasks.hellaswag has no setting 'shots'"),
        ("{tasks: []}", "benchmarks.harness.tasks"),
        ("{tasks: {hellaswag: {metric: 'a, b'}}}", "hellaswag.metric: metric 'a, b' is no name, such as acc_norm or"),
        ("{limit: 0}", "benchmarks.harness.limit: 0 is not a whole number from 1"),
        ("{engine: vlm}", "benchmarks.harness.engine: 'vlm' is not one of: transformers, vllm .did you mean 'vllm'"),
        ("{include_path: nowhere}", "harness.include_path: 'nowhere' does not exist: no folder recipes/mine/nowhere nor nowhere"),
    ],
)  # fmt: skip
def test_a_mistake_is_told_in_a_line(folder: Path, harness: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        asked_for(mine(f"benchmarks: {{harness: {harness}}}\n"), ["harness"])


def harness_rules(run: Run) -> dict[str, Any]:
    return {rule.artifact: rule for rule in run_rules(run) if isinstance(rule.settings, HarnessStage)}


def test_each_policy_has_a_stage_of_its_own(folder: Path) -> None:
    own = folder / "recipes" / "mine" / "tasks"
    own.mkdir()
    (own / "a.yaml").write_text("task: a")
    run = mine("benchmarks: {harness: {tasks: [a], include_path: tasks, limit: 5}}\n")
    assert harness_rules(run) == {} and "eval" not in extras_of(run)
    asked = asked_for(run, ["harness"])
    rules = harness_rules(asked)
    policies = ["sft", "iter0", "iter1", "iter2", "iter3"]
    assert [*rules] == [f"{policy}/harness/eval.json" for policy in policies]
    rule = rules["iter2/harness/eval.json"]
    assert (rule.script, rule.launcher, rule.settings_file) == ("run_harness.py", "per_device", "iter2/harness/harness.yaml")
    assert rule.inputs == ["iter2/policy"] and rule.after == ("check.json",)
    assert rule.external == (Path("recipes/mine/tasks/a.yaml"),)
    assert (rule.settings.policy, rule.settings.checkpoint, rule.settings.harness.limit) == ("iter2", None, 5)
    assert "eval" in extras_of(asked)


def test_a_released_checkpoint_goes_through_the_same_tasks(folder: Path) -> None:
    run = mine("benchmarks: {harness: {}, checkpoints: {iter1: {name_or_path: somebody/released, revision: abc}}}\n")
    rule = harness_rules(asked_for(run, ["harness"], released=True))["released-iter1/harness/eval.json"]
    settings = rule.settings
    assert rule.inputs == []
    assert (settings.policy, settings.checkpoint) == ("released-iter1", "somebody/released")
    model = settings.model
    assert (model.name_or_path, model.revision, model.architecture) == ("somebody/released", "abc", None)
    assert tasks_of(settings.harness) == SELM_TABLE_2


def test_vllm_wants_gpus_and_has_those_of_generate(folder: Path) -> None:
    text = "benchmarks: {harness: {engine: vllm}}\ngenerate: {gpu_memory_utilization: 0.5}\n"
    with pytest.raises(UserError, match=r"benchmarks\.harness\.engine: lm-eval uses vLLM on GPUs alone, and launch cpu has none"):
        run_rules(asked_for(mine(text), ["harness"]))
    run = asked_for(mine(text + "launch: gpu\n"), ["harness"])
    engine = harness_rules(run)["sft/harness/eval.json"].settings.engine
    assert (engine.engine, engine.gpu_memory_utilization) == ("vllm", 0.5) and {"eval", "vllm"} <= {*extras_of(run)}


def test_goals_ask_for_the_harness_by_its_name(folder: Path) -> None:
    mine("benchmarks: {harness: {tasks: [hellaswag]}}\n")
    plan = plan_goals(["mine-selm-iter1-eval"], {"SETS": "harness"})
    assert "iter1/harness/eval.json" in str(plan) and "iter2/harness/eval.json" not in str(plan.wanted)
    assert "sft/harness/eval.json" in str(plan_goals(["mine-selm-eval"], {}).wanted)
    mine("report: {title: none}\n")
    with pytest.raises(UserError, match=r"has no prompt set 'harness'; it has: none; state it in benchmarks\.harness"):
        plan_goals(["mine-selm-eval"], {"SETS": "harness"})
