"""Goals that evaluate on prompt sets, and those that read a run: what they need, and what they refuse."""

from __future__ import annotations

from pathlib import Path

import pytest

from handbook_ext.core.errors import UserError
from handbook_ext.graph.goals import plan_goals
from handbook_ext.graph.plan import Plan
from handbook_ext.graph.rules_benchmarks import asked_for, unused_sets
from handbook_ext.graph.run_rules import run_rules
from handbook_ext.recipes.run import resolve
from tests.recipe_folder import enter_folder, mine

SETS = """
benchmarks:
  judge: {model: m, base_url: "http://127.0.0.1:9/v1"}
  checkpoints: {iter1: {name_or_path: me/released}}
  sets:
    one: {source: test, measures: [single, pairwise]}
    two: {source: test, rows: 3, measures: [alpaca_eval], baseline: start}
iterations: {iter0: null, iter1: {}, iter2: {}, iter3: null}
"""


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes a folder with recipes the current one, with a recipe that has prompt sets."""
    enter_folder(tmp_path, monkeypatch)
    mine("data: {portions: 2}\ntrain: {alpha: 0}\n" + SETS)


def needed(plan: Plan, goal: str) -> set[str]:
    """Returns the evaluations that a goal waits for, as paths in the run's folder."""
    return {artifact for _, artifact in plan.wanted[goal] if artifact.endswith("eval.json")}


@pytest.mark.parametrize(
    ("goal", "variables", "evaluations"),
    [
        ("mine-selm-iter1-eval", {"SETS": "one"}, {"iter1/one/eval.json"}),
        ("mine-selm-iter2-eval", {}, {"iter2/one/eval.json", "iter2/two/eval.json"}),
        ("mine-selm-sft-eval", {"SETS": "two two"}, {"sft/two/eval.json"}),
        ("mine-selm-eval", {"SETS": "two"}, {"sft/two/eval.json", "iter1/two/eval.json", "iter2/two/eval.json"}),
        ("mine-selm-eval", {"SETS": "one", "CHECKPOINTS": "released"}, {"released-iter1/one/eval.json"}),
        ("mine-selm-iter1-eval", {"SETS": "one", "CHECKPOINTS": "released"}, {"released-iter1/one/eval.json"}),
        ("mine-selm", {"SETS": "two"}, {"sft/two/eval.json", "iter1/two/eval.json", "iter2/two/eval.json"}),
    ],
)
def test_an_evaluation_is_of_the_named_policies_and_sets(goal: str, variables: dict[str, str], evaluations: set[str]) -> None:
    plan = plan_goals([goal], variables, list(variables))
    assert needed(plan, goal) == evaluations
    made = {rule.artifact for rule in run_rules(plan.runs["mine-selm"])}
    assert evaluations <= made


@pytest.mark.parametrize(
    ("goal", "variables", "message"),
    [
        ("mine-selm-eval", {"SETS": "onee"}, "SETS: .*has no prompt set 'onee' .*did you mean 'one'.*; it has: one, two"),
        ("tiny-selm-eval", {}, "has no prompt set to evaluate on; state them in benchmarks.sets"),
        ("mine-selm-iter9-eval", {}, "has no policy iter9.*; it has: sft, iter1, iter2"),
        ("mine-selm-iter2-eval", {"CHECKPOINTS": "released"}, "has no policy released-iter2.*; it has: released-iter1"),
        ("tiny-selm-eval", {"SETS": "", "CHECKPOINTS": "released"}, "has no prompt set"),
        ("mine-selm-eval", {"CHECKPOINTS": "all"}, "CHECKPOINTS: 'all' is not released"),
        ("mine-selm-iter1", {"PAIR": "x"}, "PAIR is read by <run>-explain"),
        ("mine-selm-push", {"REPO": "a/b"}, "name the policy to be uploaded, such as mine-selm-iter1-push"),
        ("mine-selm-iter7-push", {"REPO": "a/b"}, "has no iteration 'iter7'"),
        ("mine-selm-iter1-push", {"REPO": "a b"}, "REPO: 'a b' is not a repository on the hub"),
    ],
)
def test_a_mistake_in_an_evaluation_is_one_line(goal: str, variables: dict[str, str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        plan_goals([goal], variables, list(variables))


def test_without_sets_a_run_has_no_stage_of_them() -> None:
    artifacts = {rule.artifact for rule in run_rules(plan_goals(["mine-selm"], {}).runs["mine-selm"])}
    assert not any("/one/" in each or each.startswith("prompts") for each in artifacts)


def test_sets_are_prepared_once_and_answered_before_they_are_graded() -> None:
    rules = run_rules(asked_for(resolve("mine-selm"), ["one", "two"]))
    order = [rule.artifact for rule in rules]
    assert order.count("prompts/one/prompts.jsonl") == 1
    graded = next(rule for rule in rules if rule.artifact == "iter2/one/eval.json")
    assert set(graded.inputs) == {"prompts/one/prompts.jsonl", "iter2/one/answers.jsonl", "sft/one/answers.jsonl"}
    started = next(rule for rule in rules if rule.artifact == "sft/one/eval.json")
    assert set(started.inputs) == {"prompts/one/prompts.jsonl", "sft/one/answers.jsonl"}


def test_a_released_checkpoint_is_answered_as_itself_and_compared_with_the_start() -> None:
    rules = {rule.artifact: rule for rule in run_rules(asked_for(resolve("mine-selm"), ["one"], released=True))}
    answered = rules["released-iter1/one/answers.jsonl"].settings
    assert answered.model.name_or_path == answered.checkpoint == "me/released" and answered.model.architecture is None
    assert "policy" not in answered.inputs
    assert "sft/one/answers.jsonl" in rules["released-iter1/one/eval.json"].inputs
    # The run's own policies can be asked for as well: a table shows both.
    assert rules["iter1/one/answers.jsonl"].settings.checkpoint is None


def test_evaluations_leave_the_name_of_a_run_as_it_is() -> None:
    plan = plan_goals(["mine-selm-eval"], {"SET": "benchmarks.judge=null benchmarks.sets.two=null"})
    assert [*plan.runs] == ["mine-selm"] and plan.runs["mine-selm"].sets == ("one",)


def test_goals_of_one_run_share_their_sets() -> None:
    plan = plan_goals(["mine-selm-iter1-eval", "mine-selm-iter2"], {"SETS": "one"})
    assert plan.runs["mine-selm"].sets == ("one",)


def test_a_pairs_walk_makes_nothing_and_hands_its_name_on_as_it_was_typed() -> None:
    plan = plan_goals(["mine-selm-explain"], {"PAIR": "it's $(x)"}, ["PAIR"])
    assert not plan.wanted
    assert plan.lines[-2].endswith("scripts/explain_pair.py runs/mine-selm --pair=$(call quoted,$(value PAIR))")


def test_an_upload_waits_for_its_policy() -> None:
    plan = plan_goals(["mine-selm-iter1-push"], {"REPO": "me/x", "DRY": "1"})
    assert {artifact for _, artifact in plan.wanted["mine-selm-iter1-push"]} == {
        "iter1/policy",
        "iter1/eval.json",
        "sft/eval.json",
    }
    assert any(line.endswith("push_policy.py runs/mine-selm/iter1 --repo me/x --dry") for line in plan.lines)


@pytest.mark.parametrize("name", ["policy", "harness", "One", "a-b", ""])
def test_a_set_with_the_name_of_something_else_is_refused(name: str) -> None:
    with pytest.raises(UserError, match="no prompt set can be called"):
        mine(f"benchmarks: {{sets: {{'{name}': {{source: test, measures: [single]}}}}}}", "bad")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{source: test, measures: [alpaca_eval]}", "compares with a baseline; set baseline to one of: start"),
        ("{source: test, measures: [pairwise], baseline: none}", "set baseline to one of: start"),
        ("{source: test, measures: []}", "measures"),
        ("{source: test, measures: [single], outputs: {A-B: 'https://x/y.json'}}", "is no name of a measure"),
    ],
)
def test_a_mistake_in_a_set_is_one_line(text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        mine(f"benchmarks: {{sets: {{x: {text}}}}}", "bad")


@pytest.mark.parametrize(("own", "message"), [
    ("sets: {x: {source: none.jsonl, measures: [single]}}", "benchmarks.sets.x.source: 'none.jsonl' does not exist"),
    ("sets: {x: {source: test, references: a.jsonl, measures: [single]}}", "benchmarks.sets.x.references: 'a.jsonl' does not"),
    ("harness: {include_path: none}", "benchmarks.harness.include_path: 'none' does not"),
])  # fmt: skip
def test_a_missing_file_of_a_prompt_set_stops_only_what_evaluates_on_it(own: str, message: str) -> None:
    mine(f"benchmarks: {{{own}}}\n", "bad")
    name = "x" if own.startswith("sets") else "harness"
    plan = plan_goals(["mine-bad", "mine-bad-iter1"], {})
    [line] = unused_sets(plan.runs["mine-bad"])
    assert message in line and f"only SETS={name} and mine-bad-eval need it" in line
    for goal, variables in (("mine-bad-eval", {}), ("mine-bad", {"SETS": name}), ("mine-bad-iter1-eval", {})):
        with pytest.raises(UserError, match=message):
            plan_goals([goal], variables)


def test_a_sets_own_judge_grades_it_as_often_as_it_says_and_nobody_where_the_judge_is_null() -> None:
    own = "benchmarks: {judge: {model: all}, sets: {one: {judge: {model: own}, judge_runs: 3}}}\n"
    text = "base: selm.yaml\n" + own
    for more, judges in (("", ["own", "all"]), ("judge: null", [None, None])):
        mine(text if not more else text.replace("judge: {model: all}", more), "other")
        rules = {rule.artifact: rule.settings for rule in run_rules(asked_for(resolve("mine-other"), ["one", "two"]))}
        graded = [rules[f"iter1/{name}/eval.json"] for name in ("one", "two")]
        assert [each.judge and each.judge.model for each in graded] == judges
        assert [each.judge_runs for each in graded] == [3, 1]


def test_an_answer_has_room_behind_the_longest_prompt() -> None:
    mine("base: selm.yaml\nbenchmarks: {sets: {one: {max_prompt_length: 70, max_new_tokens: 30}}}\n", "room")
    rules = {rule.artifact: rule for rule in run_rules(asked_for(resolve("mine-room"), ["one"]))}
    limits = rules["iter1/one/answers.jsonl"].settings.limits
    assert (limits.max_prompt_length, limits.max_length) == (70, 100)


def test_a_released_checkpoint_is_loaded_with_its_own_revision_and_without_the_runs_adapter() -> None:
    released = "benchmarks: {checkpoints: {iter1: {revision: theirs}}}"
    mine(f"base: selm.yaml\nmodel: {{name_or_path: me/base, revision: ours}}\n{released}\n", "revised")
    rules = {rule.artifact: rule for rule in run_rules(asked_for(resolve("mine-revised"), ["one"], released=True))}
    model = rules["released-iter1/one/answers.jsonl"].settings.model
    assert (model.name_or_path, model.revision, model.lora) == ("me/released", "theirs", None)


def test_every_file_of_a_set_is_looked_for_beside_its_recipe() -> None:
    names = ("set.jsonl", "right.jsonl", "gpt.json", "gamed.csv")
    text = "{source: set.jsonl, references: right.jsonl, outputs: {gpt: gpt.json}, length_control: gamed.csv, measures: [single]}"
    for name in names:
        Path("recipes/mine", name).touch()
    chosen = mine(f"benchmarks: {{sets: {{x: {text}}}}}", "files").settings.benchmarks.prompt_set("x")
    assert [chosen.source, chosen.references, chosen.outputs["gpt"], chosen.length_control] == [
        f"recipes/mine/{name}" for name in names
    ]
    for key, name in zip(("source", "references", "outputs.gpt", "length_control"), names, strict=True):
        Path("recipes/mine", name).unlink()
        with pytest.raises(UserError, match=f"benchmarks.sets.x.{key}: '{name}' does not exist"):
            asked_for(resolve("mine-files"), ["x"])
        Path("recipes/mine", name).touch()
