"""A file that no goal can reach, and a recipe that does not resolve: told where one looks, and in nobody else's way."""

from __future__ import annotations

from pathlib import Path

import pytest

from handbook_ext.core.errors import UserError
from handbook_ext.graph.goals import plan_goals
from handbook_ext.recipes.listing import listed_recipes
from handbook_ext.recipes.names import read_name, recipe_files, unusable_files
from tests.recipe_folder import enter_folder, mine
from tests.recipes.hostile_names import script


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder of a test."""
    return enter_folder(tmp_path, monkeypatch)


@pytest.mark.parametrize("stem", ["selm-iter1", "x-seed3", "x-report", "x-eval", "x-plan", "iter1", "a b"])
def test_a_recipe_that_no_goal_can_reach_is_told_by_the_list_and_by_the_goal(stem: str) -> None:
    Path(f"recipes/mine/{stem}.yaml").write_text("base: ../tiny/base.yaml\n")
    [line] = unusable_files()
    assert f"'recipes/mine/{stem}.yaml'" in line
    if " " not in stem:
        with pytest.raises(UserError, match=f"'recipes/mine/{stem}.yaml' is called like a goal of another recipe"):
            plan_goals([f"mine-{stem}"], {})


def test_one_bad_recipe_leaves_the_others_in_the_list() -> None:
    for name, text in (("bad", "base: nowhere.yaml\n"), ("worse", "- [\n")):
        Path(f"recipes/mine/{name}.yaml").write_text(text)
    mine("seed: 3\n", "good")
    found = list(listed_recipes())
    assert [each.name for each in found if not isinstance(each, str)] == ["mine-good", "tiny-dpo", "tiny-selm"]
    bad, worse = [each for each in found if isinstance(each, str)]
    assert bad.startswith("mine-bad is not listed: recipes/mine/bad.yaml:1: base 'nowhere.yaml' does not exist")
    assert worse.startswith("mine-worse is not listed: recipes/mine/worse.yaml:2: is not valid YAML")
    assert "tiny-selm" in script("resolve_recipe", "--list")


def test_a_seed_that_two_runs_would_have_is_told_before_anything_starts() -> None:
    mine("seed: 2\n", "seeded")
    with pytest.raises(UserError, match=r"mine-seeded has seed 2 by itself and -seed2 under SEEDS=2; give the recipe seed: 1"):
        plan_goals(["mine-seeded-seeds"], {"SEEDS": "2"})
    assert not Path("runs").exists()


@pytest.mark.parametrize("folder", ["recipes", "recipes/mine", "./scripts", "src/x", ".git", ".venv/y", "a/../recipes"])
def test_runs_among_the_projects_own_files_are_refused(folder: str) -> None:
    with pytest.raises(UserError, match="which belongs to this project; give another folder"):
        plan_goals(["tiny-selm"], {"RUNS": folder})


def test_runs_with_a_name_that_no_folder_can_have_are_refused() -> None:
    with pytest.raises(UserError, match="RUNS: a folder's name has 255 bytes at most"):
        plan_goals(["tiny-selm"], {"RUNS": f"a/{'x' * 300}"})


def test_what_a_number_may_be_is_told() -> None:
    for name, value, said in (
        ("GPUS", "99999", "'99999' is not a number from 1 to 9999"), ("GPUS", "0", "from 1 to 9999"),
        ("VRAM", "100000", "above 0 and below 100000, such as 24"), ("RAM", "1e3", "above 0 and below 100000, such as 128"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=said):
            plan_goals(["tiny-selm-plan"], {name: value}, [name])


@pytest.mark.parametrize(("path", "said"), [
    ("elsewhere/x.yaml", "is not recipes/<folder>/<name>.yaml in letters, digits and . _ - alone"),
    ("recipes/mine/a-iter1.yaml", "is called like a goal of another recipe, or of make; name another file"),
    ("recipes/mine/base.yaml", "is no recipe: base.yaml is for others to build on"),
    ("recipes/accelerate/x.yaml", "accelerate, tables and tuning hold other files"),
])  # fmt: skip
def test_why_a_recipe_cannot_be_written_is_told_before_it_is_planned(path: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        plan_goals(["tiny-selm-plan"], {"WRITE": path}, ["WRITE"])


def test_a_matrix_of_nothing_is_refused_before_its_extras_are_installed() -> None:
    with pytest.raises(UserError, match="runs/a runs/b: no policy has answered alpaca, and two are compared; make a-eval SETS="):
        plan_goals(["matrix"], {"OF": "a b", "SETS": "alpaca"})
    with pytest.raises(UserError, match="name the runs and their prompt set"):
        plan_goals(["matrix"], {})


def test_fewer_than_two_runs_are_not_compared() -> None:
    for name in ("one", "two"):
        Path("runs", name).mkdir(parents=True)
        Path("runs", name, "report.yaml").touch()
    for named in ("one", "one one"):
        with pytest.raises(UserError, match="OF: two or more runs are compared, each named once, and here it names one"):
            script("compare_runs", "--of", named)
    with pytest.raises(UserError, match="runs/none is no folder of a run; make each first"):
        script("compare_runs", "--of", "one none")


def test_a_variant_is_named_once_and_a_seed_has_at_most_19_digits() -> None:
    mine("variants: {hot: {train: {beta: 0.9}}, cold: {train: {alpha: 0}}}\n", "v")
    assert read_name("mine-v-hot-cold-seed12").variants == ("hot", "cold")
    for name in ("mine-v-hot-hot", f"mine-v-seed{'9' * 20}", "mine-v-seed007"):
        with pytest.raises(UserError, match=f"no recipe is called '{name}'"):
            read_name(name)


def test_two_files_of_one_name_are_told_and_neither_is_taken() -> None:
    for path in ("recipes/a/b-c.yaml", "recipes/a-b/c.yaml"):
        Path(path).parent.mkdir()
        Path(path).write_text("base: ../tiny/base.yaml\n")
    assert "a-b-c" not in recipe_files()
    [line] = unusable_files()
    assert line.endswith("is called a-b-c as well; rename one of the two")
