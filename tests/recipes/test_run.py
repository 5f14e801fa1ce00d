"""Recipes: inheritance, iterations, seeds, files beside the recipe, and the ranker that the data allow."""

from __future__ import annotations

from pathlib import Path

import pytest

from handbook_ext.recipes.writing import (
    resolve,
    shown_settings,
    stage_settings,
)
from handbook_ext.recipes.yaml_tree import Mark, Tree, merged, read_yaml
from tests.recipe_folder import enter_folder, mine


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder of a test."""
    return enter_folder(tmp_path, monkeypatch)


def test_mappings_merge_and_everything_else_replaces(folder: Path) -> None:
    run = mine("evaluate: {temperatures: [1.0]}\ntrain: {beta: 0.2}\nmodel: {architecture: {hidden_size: 64}}\n")
    assert run.settings.evaluate.temperatures == [1.0]
    assert run.settings.train == resolve("tiny-selm").settings.train.model_copy(update={"beta": 0.2})
    architecture = run.settings.model.architecture
    assert architecture is not None
    assert (architecture["hidden_size"], architecture["model_type"]) == (64, "mistral")


def test_null_replaces_a_section_and_drops_its_marks() -> None:
    here, there = Mark(Path("a"), 1), Mark(Path("b"), 2)
    parent = Tree({"sft": {"x": [1, 2]}}, {(): here, ("sft",): here, ("sft", "x"): here, ("sft", "x", 0): here})
    result = merged(parent, Tree({"sft": None}, {(): there, ("sft",): there}))
    assert result.values == {"sft": None}
    assert set(result.marks) == {(), ("sft",)}
    assert result.where(("sft", "x")) == there


def test_a_child_with_only_data_is_a_complete_selm_recipe(folder: Path) -> None:
    for name in ("a.jsonl", "b.jsonl"):
        (folder / name).touch()
    run = mine("data: {train: a.jsonl, test: b.jsonl}\n")
    assert [each.name for each in run.iterations] == ["iter0", "iter1", "iter2", "iter3"]
    assert [each.ranks for each in run.iterations] == [False, True, True, True]
    assert [each.settings.train.alpha > 0 for each in run.iterations] == [False, True, True, True]
    assert run.settings.rank.ranker == "reward_model"
    assert run.settings.data.dataset is None
    assert run.trains_reward_model


def test_numbers_are_read_as_numbers(folder: Path) -> None:
    path = folder / "numbers.yaml"
    path.write_text("a: 5e-7\nb: 1E3\nc: .5\nd: 7\ne: '5e-7'\nf: 2024-01-01\ng: 1.5\nh: -.inf\ni: e5\nj: on\n")
    values = read_yaml(path).values
    assert values == {
        "a": 5e-7, "b": 1000.0, "c": 0.5, "d": 7, "e": "5e-7", "f": "2024-01-01", "g": 1.5, "h": float("-inf"),
        "i": "e5", "j": True,
    }  # fmt: skip
    assert mine("train: {learning_rate: 5e-7}\n").settings.train.learning_rate == 5e-7


def test_iterations_inherit_override_and_chain(folder: Path) -> None:
    mine("train: {beta: 0.3}\niterations:\n  iter1: {generate: {top_p: 0.9}}\n  iter3: {train: {beta: 0.4}}\n", "a")
    run = mine("base: a.yaml\niterations:\n  iter1: {generate: {temperature: 1.25}}\n")
    assert [each.settings.train.beta for each in run.iterations] == [0.3, 0.3, 0.3, 0.4]
    first = run.iteration("iter1").settings.generate
    assert (first.top_p, first.temperature, first.batch_size) == (0.9, 1.25, run.settings.generate.batch_size)
    assert [each.policy_from for each in run.iterations] == ["sft", "iter0", "iter1", "iter2"]
    assert [each.index for each in run.iterations] == [0, 1, 2, 3]


def test_ten_comes_after_nine_and_one_portion_gives_all_rows(folder: Path) -> None:
    extra = "".join(f"  iter{number}: {{}}\n" for number in (10, 4, 5, 6, 7, 8, 9))
    run = mine("data: {portions: 1}\niterations:\n" + extra)
    assert [each.name for each in run.iterations] == [f"iter{number}" for number in range(11)]
    assert {each.index for each in run.iterations} == {0}


def test_null_removes_an_inherited_iteration(folder: Path) -> None:
    run = mine("iterations: {iter0: null, iter3: null}\n")
    assert [each.name for each in run.iterations] == ["iter1", "iter2"]
    assert (run.iterations[0].policy_from, run.iterations[0].index) == ("sft", 0)


def test_without_sft_the_first_iteration_starts_from_the_checkpoint(folder: Path) -> None:
    run = mine("sft: null\nmodel: {architecture: null, name_or_path: some/model}\n")
    stages = stage_settings(run)
    assert run.start == "start"
    assert stages["start/evaluate.yaml"]["policy_from"] is None
    assert stages["iter0/train.yaml"]["policy_from"] is None
    assert stages["iter1/train.yaml"]["policy_from"] == "iter0"
    assert "sft/sft.yaml" not in stages


def test_a_seed_in_the_name_is_the_seed_of_the_run(folder: Path) -> None:
    plain, seeded = resolve("tiny-selm"), resolve("tiny-selm-seed7")
    assert (seeded.name, seeded.recipe, seeded.settings.seed) == ("tiny-selm-seed7", "tiny-selm", 7)
    assert {each.settings.seed for each in seeded.iterations} == {7}
    before, after = stage_settings(plain), stage_settings(seeded)
    assert all({**after[path], "seed": 1} == before[path] for path in before)
    assert any(line == "seed: 7   # run name tiny-selm-seed7" for line in shown_settings(seeded))


def test_files_are_looked_for_beside_the_recipe_that_states_them_then_here(folder: Path) -> None:
    (folder / "recipes/mine/a.jsonl").touch()
    (folder / "a.jsonl").touch()
    (folder / "b.parquet").touch()
    data = mine("data: {train: a.jsonl, test: b.parquet}\n", "files").settings.data
    assert (data.train, data.test, data.dataset) == ("recipes/mine/a.jsonl", "b.parquet", None)
    (folder / "recipes/other").mkdir()
    (folder / "recipes/other/selm.yaml").write_text("base: ../mine/files.yaml\n")
    assert resolve("other-selm").settings.data == data


def test_a_file_outside_the_folder_is_absolute(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    outside = tmp_path_factory.mktemp("outside") / "a.json"
    outside.touch()
    data = mine(f"data: {{train: {outside}, test: {outside}}}\n").settings.data
    assert (data.train, data.test) == (str(outside), str(outside))


def test_a_chat_template_file_is_found_too(folder: Path) -> None:
    (folder / "recipes/mine/chat.jinja").touch()
    assert mine("model: {chat_template: chat.jinja}\n").settings.model.chat_template == "recipes/mine/chat.jinja"


@pytest.mark.parametrize(
    ("text", "ranker", "fitted"),
    [
        ("seed: 1\n", "oracle", False),
        ("data: {dataset: some/pairs}\n", "reward_model", True),
        ("data: {dataset: some/pairs}\nrank: {model: some/judge}\n", "reward_model", False),
        ("rank: {ranker: reward_model}\n", "reward_model", True),
        ("iterations: {iter2: {rank: {ranker: reward_model}}}\n", "oracle", True),
    ],
)
def test_the_ranker_auto_depends_on_the_data(folder: Path, text: str, ranker: str, fitted: bool) -> None:
    run = mine(text)
    assert run.settings.rank.ranker == ranker
    assert run.trains_reward_model == fitted
    assert ("ranker/ranker.yaml" in stage_settings(run)) == fitted
