"""Every text of every stage's settings survives the way from the recipe into the stage's file and back."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from itertools import cycle
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import ValidationError

from handbook_ext.core.stage_settings import read_settings_as
from handbook_ext.graph import stages, stages_benchmarks
from handbook_ext.graph.makefile import settings_text
from handbook_ext.graph.rule import StageRule
from handbook_ext.graph.rules_benchmarks import asked_for
from handbook_ext.graph.run_rules import run_rules
from handbook_ext.recipes.overrides import inline
from handbook_ext.recipes.run import resolve
from handbook_ext.recipes.yaml_tree import parsed_value
from tests.recipe_folder import ROOT, enter_folder, mine
from tests.recipes.hostile_names import examples

ODD = [
    "1e5", "123e4567", "0x10", "1_000", "010", "0b1", "0o7", "yes", "No", "null", "~", "12:30:45", ".inf", "-.INF", ".nan", "=",
    "<<", "2020-01-01", "2020-01-01 10:00:00", "a\nb", "\n", " a", "a ", "", "é", "😀", "a\x85b", "\x85", "\u2028", "\ufeff",
    "\t", "a\r\nb", "\x1b[31m", "\x7f", "a\0b", "- a", "a: b", "#", "'", '"', "%", "@", "`", "!a", "&a", "*a", "|", ">", "? ",
    "{}", "[", "---", "...", "x" * 300, "a " * 200, "\U0010ffff", "\ufffe",
]  # fmt: skip
TEXTS = st.one_of(st.sampled_from(ODD), st.text(st.characters(exclude_categories=["Cs"]), max_size=20))


@pytest.fixture(scope="module")
def rules(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, StageRule]]:
    """A rule of each kind of stage that recipes have, by the name of its class."""
    with pytest.MonkeyPatch.context() as patch:
        folder = enter_folder(tmp_path_factory.mktemp("recipes"), patch)
        for name in ("zephyr", "tinyllama", "smollm2"):
            shutil.copytree(ROOT / "recipes" / name, folder / "recipes" / name)
        mine(
            "train: {alpha: 0}\nselect: {rule: sera, explore: false}\ndata: {portions: 1}\nhealth: {max_kl: 3}\n"
            "iterations: {iter0: {select: {rule: dataset}}}\n"
        )
        runs = [resolve(name) for name in ("tiny-selm", "mine-selm", "smollm2-selm", "tinyllama-sera")]
        zephyr = resolve("zephyr-selm")
        runs.append(asked_for(zephyr, zephyr.settings.benchmarks.evaluations))
        yield {type(rule.settings).__name__: rule for run in runs for rule in run_rules(run)}


def leaves(value: Any, place: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """Where a nested value holds text."""
    if isinstance(value, str):
        yield place
    for name, inner in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from leaves(inner, (*place, name))


def put(value: Any, place: tuple[str | int, ...], text: str) -> Any:
    """The value with a text in one place."""
    if not place:
        return text
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[place[0]] = put(value[place[0]], place[1:], text)
    return copy


def free(rule: StageRule) -> list[tuple[str | int, ...]]:
    """The places of a stage's settings that take any text; the recipe's name was checked, and stands in a comment."""
    values, found = rule.settings.model_dump(mode="json"), []
    for place in (each for each in leaves(values) if each != ("recipe",)):
        try:
            type(rule.settings).model_validate(put(values, place, "any text"))
        except ValidationError:
            continue
        found.append(place)
    return found


def test_all_kinds_of_stages_are_here(rules: dict[str, StageRule]) -> None:
    named = {name for module in (stages, stages_benchmarks) for name in vars(module) if name.endswith("Stage")}
    # Those of reports on several runs, which no recipe has.
    assert named - {*rules} <= {"TableStage", "CompareStage", "MatrixStage", "PolicyStage", "IterationStage"}


def test_every_text_of_every_stage_survives_its_file(rules: dict[str, StageRule], tmp_path: Path) -> None:
    path = tmp_path / "settings.yaml"
    for rule in rules.values():
        places = free(rule)
        assert places
        # Each odd text stands in one place at least, and each place holds several.
        for start in range(0, len(ODD), len(places)) if len(places) > 3 else (0, 7, 20):
            values = rule.settings.model_dump(mode="json")
            for place, text in zip(places, cycle([*ODD[start:], *ODD[:start]]), strict=False):
                values = put(values, place, text)
            typed = type(rule.settings).model_validate(values)
            path.write_text(settings_text(replace(rule, settings=typed)), encoding="utf-8")
            assert read_settings_as(type(typed), path)[0] == typed


@pytest.mark.parametrize("text", ODD)
def test_an_odd_title_survives_from_the_recipe_to_the_report(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    enter_folder(tmp_path, monkeypatch)
    run = mine(f"report: {{title: {inline(text)}}}\n")
    [rule] = [each for each in run_rules(run) if isinstance(each.settings, stages.ReportStage)]
    path = tmp_path / "report.yaml"
    path.write_text(settings_text(rule), encoding="utf-8")
    assert read_settings_as(stages.ReportStage, path)[0].report.title == text


@example("\x85")
@examples(200)
@given(TEXTS)
def test_what_is_shown_of_a_value_says_the_same_value(text: str) -> None:
    assert parsed_value(inline(text), "SET") == text
