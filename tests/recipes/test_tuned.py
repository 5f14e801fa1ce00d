"""What trials chose lies between a recipe and what overrides it, names its lines, and tells when it is of another recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from handbook_ext.core.errors import UserError
from handbook_ext.graph.goals import plan_goals
from handbook_ext.graph.makefile import run_text
from handbook_ext.graph.run_rules import run_rules
from handbook_ext.recipes.overrides import parse_set
from handbook_ext.recipes.run import resolve
from tests.recipe_folder import enter_folder
from tests.recipes.choices import CHOSEN, choose

FILE = Path("recipes/tuning/tiny/selm.yaml")


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes a folder with recipes the current one."""
    enter_folder(tmp_path, monkeypatch)


def test_a_recipe_has_what_was_chosen_for_it_and_what_overrides_it_lies_above() -> None:
    untuned = resolve("tiny-selm")
    assert untuned.tuned is None
    choose()
    for name in ("tiny-selm", "tiny-selm-seed3"):
        run = resolve(name)
        assert (run.settings.train.learning_rate, run.settings.train.beta) == (3e-4, 0.7)
        assert run.name == name, "what is chosen is the recipe's, and no try"
        assert all(each.settings.train.beta == 0.7 for each in run.iterations)
        # An iteration's own value wins over it, as over the recipe's.
        assert run.iterations[0].settings.train.alpha == 0
    tried = resolve("tiny-selm", overrides=parse_set("train.beta=0.4"))
    assert (tried.settings.train.learning_rate, tried.settings.train.beta) == (3e-4, 0.4)
    assert resolve("tiny-selm", tuned=False).settings == untuned.settings
    assert resolve("tiny-dpo").settings.train.beta == 1.0, "another recipe is not tuned by it"


def test_a_value_names_the_line_of_the_choices_and_run_mk_says_that_the_run_is_tuned() -> None:
    path = choose()
    run = resolve("tiny-selm")
    line = next(place for place, text in enumerate(path.read_text().splitlines(), start=1) if "train.beta" in text)
    assert str(run.tree.where(("train", "beta"))) == f"{path}:{line}"
    assert str(run.tree.where(("train", "alpha"))).startswith("recipes/tiny/base.yaml")
    heading = run_text(run, run_rules(run), Path("runs")).splitlines()[0]
    assert f"{path}, tuned over 2 trials: learning_rate x beta, on seeds 51, 52" in heading


def test_a_variant_and_a_child_are_tuned_by_their_own_trials() -> None:
    Path("recipes/tiny/sera.yaml").write_text("base: base.yaml\nvariants: {noise: {train: {beta: 0.3}}}\n")
    Path("recipes/mine/sera.yaml").write_text("base: ../tiny/sera.yaml\n")
    choose("tiny-sera", {"train.beta": 0.7})
    assert [resolve(name).settings.train.beta for name in ("tiny-sera", "tiny-sera-noise", "mine-sera")] == [0.7, 0.3, 1.0]
    choose("tiny-sera-noise", {"train.beta": 0.9})
    assert [resolve(name).settings.train.beta for name in ("tiny-sera", "tiny-sera-noise")] == [0.7, 0.9]


def test_choices_of_another_recipe_are_told_by_the_section_that_changed() -> None:
    choose()
    recipe, base = Path("recipes/tiny/selm.yaml"), Path("recipes/tiny/base.yaml")
    # Neither the tuned values nor the words of the report make another experiment.
    base.write_text(base.read_text().replace("learning_rate: 2e-4", "learning_rate: 1e-4"))
    recipe.write_text(recipe.read_text().replace("title: SELM", "title: Another title"))
    tuned = resolve("tiny-selm").tuned
    assert tuned is not None and tuned.stale is None
    base.write_text(base.read_text().replace("train_rows: 8000", "train_rows: 2000"))
    run = resolve("tiny-selm")
    assert run.tuned is not None and run.tuned.changed == ("data",)
    assert run.settings.train.beta == 0.7
    assert str(run.tuned.stale).startswith("tiny-selm: the recipe has changed since it was tuned (data)")
    assert str(run.tuned.stale).endswith("make tune-selm1 tunes it again, or delete that file")
    # SET is no change of the recipe.
    choose()
    tried = resolve("tiny-selm", overrides=parse_set("data.train_rows=100")).tuned
    assert tried is not None and not tried.changed


def test_choices_under_another_rule_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    choose()
    rule: dict[str, Any] = {"seeds": [51, 52], "budget": 2, "grid": {key: [value, value * 2] for key, value in CHOSEN.items()}}
    Path("recipes/tuning/tiny.yaml").write_text(yaml.safe_dump(rule))
    tuned = resolve("tiny-selm").tuned
    assert tuned is not None and not tuned.changed
    Path("recipes/tuning/tiny.yaml").write_text(yaml.safe_dump(rule | {"budget": 3}))
    tuned = resolve("tiny-selm").tuned
    assert tuned is not None and tuned.changed == ("what is tried",)


@pytest.mark.parametrize(("more", "words"), [
    ({"trials": [{"set": {"train.beta": 0.9}, "reward": 0.5, "seeds": [{"seed": 51, "reward": 0.5}]}]}, "of the greatest reward"),
    ({"trials": [{"set": CHOSEN, "reward": None, "seeds": [{"seed": 51, "failed": "x"}]}]}, "chosen is not the trial"),
    ({"chosn": {}}, "chosn: Extra inputs"),
    ({"seeds": "51"}, "seeds: "),
])  # fmt: skip
def test_a_file_that_was_edited_is_one_line(more: dict[str, Any], words: str) -> None:
    path = choose(**more)
    with pytest.raises(UserError, match=words) as caught:
        resolve("tiny-selm")
    assert str(caught.value).startswith(f"{path}: ") and "\n" not in str(caught.value)


def test_a_seed_that_was_tuned_on_is_none_of_a_table_or_of_a_report_of_seeds() -> None:
    Path("recipes/tables").mkdir()
    Path("recipes/tables/mine.yaml").write_text("title: t\nsource: s\nrows: [{name: A, recipe: tiny-selm}]\n")
    for goal in ("table-mine", "tiny-selm-seeds"):
        plan_goals([goal], {"SEEDS": "51"})
    choose()
    for goal in ("table-mine", "tiny-selm-seeds"):
        plan_goals([goal], {"SEEDS": "50"})
        with pytest.raises(UserError, match=r"tiny-selm: seed 51 is one that methods are tuned on .*give SEEDS below 51"):
            plan_goals([goal], {"SEEDS": "51"})
    # Also before anything was chosen.
    FILE.unlink()
    Path("recipes/tuning/tiny.yaml").write_text("seeds: [7]\nbudget: 1\ngrid: {train.beta: [1.0]}\n")
    with pytest.raises(UserError, match=r"seed 7 .*recipes/tuning/tiny\.yaml.*give SEEDS below 7"):
        plan_goals(["table-mine"], {"SEEDS": "8"})
