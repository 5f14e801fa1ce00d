"""Who marks the policies of a run, and whether it fits a reward model: exactly where a stage reads one."""

from __future__ import annotations

from pathlib import Path

import pytest

from handbook_ext.graph.run_rules import run_rules
from handbook_ext.graph.stages import EvaluateStage, RankerStage
from tests.recipe_folder import enter_folder, mine

OTHER = "data: {dataset: some/pairs}\n"
LABELS = "select: {rule: dataset}\ntrain: {alpha: 0}\n"


@pytest.mark.parametrize(("text", "evaluator", "fitted"), [
    ("seed: 1\n", "oracle", False),
    ("rank: {ranker: reward_model}\n", "oracle", True),
    # The labels of the data need no judge, and in the tiny world the true reward measures.
    ("rank: {ranker: reward_model}\n" + LABELS, "oracle", False),
    (OTHER + LABELS, "reward_model", True),
    ("rank: {ranker: self}\n", "oracle", False),
    (OTHER + "rank: {ranker: self}\n", "reward_model", True),
    (OTHER + "rank: {ranker: self, model: some/judge}\n", "reward_model", False),
    # One iteration that judges itself asks for no model, where another judge marks the policies.
    (OTHER + "rank: {ranker: pairrm, model: some/ranker}\niterations: {iter2: {rank: {ranker: self}}}\n", "pairrm", False),
    (
        OTHER + "rank: {ranker: pairrm, model: some/ranker}\niterations: {iter2: {rank: {ranker: reward_model, model: null}}}\n",
        "pairrm", True,
    ),
])  # fmt: skip
def test_one_judge_marks_all_policies_and_a_reward_model_is_fitted_for_its_readers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, evaluator: str, fitted: bool
) -> None:
    enter_folder(tmp_path, monkeypatch)
    run = mine(text)
    rules = run_rules(run)
    assert {rule.settings.rank.ranker for rule in rules if isinstance(rule.settings, EvaluateStage)} == {evaluator}
    assert run.evaluator.ranker == evaluator
    made, read = ("ranker/model" in {rule.artifact for rule in rules}, any("ranker/model" in rule.inputs for rule in rules))
    assert (run.trains_reward_model, made, read) == (fitted, fitted, fitted)


APART = OTHER + "evaluate: {judge: apart}\n"


@pytest.mark.parametrize(("text", "reads"), [
    (APART, ["judge/model", "ranker/model"]),
    # Nobody labels: there is no second column, and no ranker for it.
    (APART + LABELS, ["judge/model"]),
    (APART + "rank: {fit: {model: some/encoder}}\n", ["judge/model", "ranker/model"]),
])  # fmt: skip
def test_a_judge_apart_marks_all_policies_and_labels_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, reads: list[str]
) -> None:
    enter_folder(tmp_path, monkeypatch)
    rules = {rule.settings_file: rule for rule in run_rules(mine(text))}
    for path in ("sft/evaluate.yaml", "iter3/evaluate.yaml"):
        inputs = rules[path].settings.inputs
        assert [inputs[role] for role in ("ranker", "labeller") if role in inputs] == [f"../{each}" for each in reads]
    fitted = {rule.artifact: rule.settings for rule in rules.values() if isinstance(rule.settings, RankerStage)}
    assert {path: settings.part for path, settings in fitted.items()} == dict(
        zip(reads, ["judge", "labels"] if len(reads) > 1 else ["all"], strict=True)
    )
    assert all(("policy" in settings.inputs) == ("fit" not in text) for settings in fitted.values())
    if "iter1/rank.yaml" in rules:
        assert rules["iter1/rank.yaml"].settings.inputs["ranker"] == "../ranker/model"
