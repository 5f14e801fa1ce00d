"""A graph with a mistake in it is an error: make cannot leave out a stage because a name in a rule is misspelt."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from handbook_ext.core.errors import UserError
from handbook_ext.graph import run_rules as graph
from handbook_ext.graph.makefile import write_run
from handbook_ext.graph.rule import StageRule
from handbook_ext.recipes.run import resolve
from tests.recipe_folder import enter_folder

RULES = [name for name in vars(graph) if name.endswith("_rule")]
READERS = [name for name in RULES if name not in ("data_rule", "checkpoint_rule")]


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes a folder with a recipe of all stages the current one."""
    enter_folder(tmp_path, monkeypatch)
    Path("recipes/mine/all.yaml").write_text(
        "base: ../tiny/base.yaml\nhealth: {max_kl: 3}\nrank: {ranker: reward_model}\ndata: {dataset: some/pairs}\n"
        "model: {name_or_path: some/model, package: some-model==1.0}\nevaluate: {judge: apart}\n"
        "iterations: {iter2: {train: {alpha: 0}, select: {rule: sera}}}\n"
    )


def broken(monkeypatch: pytest.MonkeyPatch, name: str, change: Callable[[StageRule], StageRule]) -> None:
    """Changes what one function of the graph returns."""
    right = getattr(graph, name)
    monkeypatch.setattr(graph, name, lambda *values: change(right(*values)))


def with_inputs(rule: StageRule, inputs: dict[str, str | list[str]]) -> StageRule:
    """The rule, reading other artifacts."""
    return replace(rule, settings=rule.settings.model_copy(update={"inputs": inputs}))


def test_the_recipe_has_every_stage() -> None:
    assert len(RULES) > 10
    stages = {rule.settings.stage for rule in graph.run_rules(resolve("mine-all"))}
    assert {
        "data",
        "checkpoint",
        "sft",
        "ranker",
        "judge",
        "generate",
        "rank",
        "select",
        "score",
        "train",
        "evaluate",
        "health",
        "report",
    } <= stages


@pytest.mark.parametrize("name", READERS)
def test_a_misspelt_input_is_an_error(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    def misspelt(rule: StageRule) -> StageRule:
        role, value = next(iter(rule.settings.inputs.items()))
        wrong = f"{value}x" if isinstance(value, str) else [f"{value[0]}x", *value[1:]]
        return with_inputs(rule, {**rule.settings.inputs, role: wrong})

    broken(monkeypatch, name, misspelt)
    with pytest.raises(UserError, match="which no stage before makes"):
        write_run(resolve("mine-all"), Path("runs"))


@pytest.mark.parametrize("name", [name for name in RULES if name not in ("report_rule", "health_rule")])
def test_a_misspelt_artifact_is_an_error(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Two rules, the score of candidates and that of pairs, make the same artifact of different iterations."""

    def elsewhere(rule: StageRule) -> StageRule:
        class Misspelt(type(rule.settings)):  # type: ignore[misc]
            artifact = f"{rule.settings.artifact}x"

        return replace(rule, settings=Misspelt.model_construct(**dict(rule.settings)))

    broken(monkeypatch, name, elsewhere)
    with pytest.raises(UserError, match="which no stage before makes"):
        write_run(resolve("mine-all"), Path("runs"))
