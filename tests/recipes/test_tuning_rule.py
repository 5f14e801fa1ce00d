"""What is tried when methods are tuned: as many trials for each, drawn alike, and mistakes in the rule as one line."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml

from handbook_ext.core.errors import UserError
from handbook_ext.recipes.table_files import read_table, table_names
from handbook_ext.recipes.trials import methods_of
from handbook_ext.recipes.tuning_rule import Scope, TuningRule, point_text, read_rule
from tests.recipe_folder import ROOT, enter_folder

RATE, BETA, KNOB = "train.learning_rate", "train.beta", "select.bootstrap"
RULE: dict[str, Any] = {"seeds": [51, 52], "budget": 4, "grid": {RATE: [1e-4, 2e-4, 3e-4], BETA: [0.1, 0.2, 0.3]}}


def rule(**more: Any) -> TuningRule:
    """The rule with more in it."""
    return TuningRule.model_validate(RULE | more)


def test_a_method_with_a_knob_of_its_own_has_as_many_trials_as_one_without() -> None:
    found = rule(methods={"sera": {KNOB: [0.1, 0.3]}})
    plain, own = found.of("dpo"), found.of("sera")
    assert (plain.size, own.size) == (9, 18)
    assert len(plain.points()) == len(own.points()) == 4
    for points in (plain.points(), own.points()):
        assert len({point_text(each) for each in points}) == 4, "a point was drawn twice"
    assert all(KNOB in each for each in own.points())


def test_methods_of_equal_axes_try_the_same_points_and_a_larger_budget_keeps_those_of_a_smaller() -> None:
    found = rule()
    assert found.of("dpo").points() == found.of("spin").points()
    axes = found.of("dpo").axes
    drawn = [[point_text(each) for each in Scope(axes, budget, (51,)).points()] for budget in range(1, 10)]
    assert all({*fewer} < {*more} for fewer, more in pairwise(drawn))
    # Written down, so that no version of Python draws other ones.
    assert drawn[2] == [
        "train.beta=0.2 train.learning_rate=0.0001", "train.beta=0.1 train.learning_rate=0.0002",
        "train.beta=0.3 train.learning_rate=0.0003",
    ]  # fmt: skip


def test_the_draw_tries_every_value_of_an_axis_about_as_often_as_the_others() -> None:
    axes = rule(methods={"sera": {KNOB: [0.1, 0.3]}}).of("sera").axes
    for draw in range(20):
        points = Scope(axes, 6, (51,), draw).points()
        for name, values in axes.items():
            counts = [sum(each[name] == value for each in points) for value in values]
            assert min(counts) >= 1 and max(counts) - min(counts) <= 2, (draw, name, counts)


def test_another_draw_takes_other_points() -> None:
    axes = rule().of("dpo").axes
    assert len({tuple(map(point_text, Scope(axes, 4, (51,), draw).points())) for draw in range(5)}) > 1


def test_an_axis_of_the_grids_name_takes_its_place_and_variants_lie_above() -> None:
    found = rule(
        methods={"ipo": {BETA: [1.0, 2.0]}},
        variants={"noise": {"budget": 2, "seeds": [53], "methods": {"ipo": {RATE: [1e-3]}}}, "other": {"grid": {BETA: [0.5]}}},
    )
    assert found.of("ipo").axes == {RATE: RULE["grid"][RATE], BETA: [1.0, 2.0]}
    noisy = found.of("ipo", ("noise",))
    assert (noisy.axes, noisy.budget, noisy.seeds) == ({RATE: [1e-3], BETA: [1.0, 2.0]}, 2, (53,))
    assert found.of("dpo", ("other",)).axes == {BETA: [0.5]}
    assert found.every_seed == {51, 52, 53}


@pytest.mark.parametrize(("change", "words"), [
    ({"budget": 10}, r"train.learning_rate x train.beta has 9 points, and the budget is 10 trials; give more values"),
    ({"grid": {BETA: [0.1, 0.1]}, "budget": 1}, r"train.beta has \[0.1, 0.1\]; give each value once"),
    ({"grid": {RATE: RULE["grid"][RATE], "train.bta": [0.1, 0.2]}}, "'bta'"),
    ({"grid": {RATE: RULE["grid"][RATE], BETA: [-1.0, 0.2]}}, "train.beta"),
    ({"seeds": [51, 51]}, "seeds: .* has a seed twice"),
    ({"methods": {"smel": {KNOB: [0.1]}}}, r"methods: tiny has no method 'smel' \(did you mean 'selm'\?\)"),
])  # fmt: skip
def test_a_mistake_in_the_rule_is_one_line_that_names_its_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any], words: str
) -> None:
    enter_folder(tmp_path, monkeypatch)
    for name, text in (("tables/mine", "title: t\nsource: s\nrows: [{name: A, recipe: tiny-selm}]\n"),
                       ("tuning/tiny", yaml.safe_dump(RULE | change, sort_keys=False))):  # fmt: skip
        Path(f"recipes/{name}.yaml").parent.mkdir()
        Path(f"recipes/{name}.yaml").write_text(text)
    with pytest.raises(UserError, match=words) as caught:
        methods_of(read_table("mine"))
    assert str(caught.value).startswith("recipes/tuning/tiny.yaml")
    assert "\n" not in str(caught.value)


def test_every_method_of_tinys_tables_has_equal_chances_and_all_its_trials_resolve(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    for name in ("sera1", "sera-noise20", "sera-noise40", "selm1", "family"):
        methods = methods_of(read_table(name))
        assert len({(len(each.trials), each.scope.seeds) for each in methods}) == 1, name
        assert len({each.name.full for each in methods}) == len(methods), "a recipe of two rows is tuned twice"
        for each in methods:
            tried = {(key, str(value)) for trial in each.trials for key, value in trial.point.items()}
            assert tried == {(key, str(value)) for key, values in each.scope.axes.items() for value in values}, each.name.full
        # Each of them asks of the same rates.
        assert len({tuple(each.scope.axes[RATE]) for each in methods}) == 1
    found = read_rule("tiny")
    assert found is not None and min(found.every_seed) > 20, "a table of twenty seeds would have one that is tuned on"
    assert "sera1" in table_names(model="tiny")
