"""The recipes in the repository: they resolve, repeat nothing, cite their sources and say what the papers say."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from handbook_ext.recipes.writing import (
    recipe_files,
    resolve,
    shown_settings,
    stage_settings,
)
from handbook_ext.recipes.yaml_tree import read_recipe, read_yaml
from tests.recipe_folder import ROOT, enter_folder

PAPER_SCALE = ("zephyr", "llama3", "phi3")
# recipes/mine is the user's own.
FILES = sorted(path for path in ROOT.glob("recipes/*/*.yaml") if path.parent.name not in {"accelerate", "mine"})
DELIVERED = sorted(name for name, path in recipe_files(ROOT / "recipes").items() if path in FILES)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder of a test."""
    return enter_folder(tmp_path, monkeypatch)


@pytest.mark.parametrize("name", DELIVERED)
def test_every_delivered_recipe_resolves_for_every_iteration(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    run = resolve(name)
    assert stage_settings(run)
    for iteration in (None, *(each.name for each in run.iterations)):
        assert len(shown_settings(run, iteration)) > 50


@pytest.mark.parametrize("path", FILES, ids=[str(path.relative_to(ROOT)) for path in FILES])
def test_a_child_repeats_nothing_that_it_inherits(path: Path) -> None:
    own = read_yaml(path)
    parent = own.values.pop("base", None)
    whole = read_recipe(path).values
    iterations = own.values.get("iterations") or {}
    inherited = read_recipe(path.parent / parent).values.get("iterations") or {} if parent is not None else {}
    for name, override in iterations.items():
        # What an inherited iteration overrides may be put back to what the sections say.
        sections = overlaid(whole, inherited.get(name) or {})
        assert not repeated(override or {}, sections), f"{path}: {name} repeats what its sections say"
    if parent is not None:
        assert not repeated(own.values, read_recipe(path.parent / parent).values)


def overlaid(under: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """Mappings merged, other values replaced."""
    both = {name: overlaid(under[name], over[name]) for name in under.keys() & over.keys() if isinstance(over[name], dict)}
    return under | over | both


def repeated(child: Any, parent: Any) -> list[str]:
    """The settings that a child states with the value that they have anyway."""
    if isinstance(child, dict) and isinstance(parent, dict) and child:
        return [f"{name}.{x}" for name in child if name in parent for x in repeated(child[name], parent[name])]
    return ["this"] if child == parent else []


@pytest.mark.parametrize(
    "path",
    [path for path in FILES if path.parent.name in PAPER_SCALE],
    ids=lambda path: str(path.relative_to(ROOT)),
)
def test_every_value_at_paper_scale_has_its_source(path: Path) -> None:
    for number, line in enumerate(path.read_text().splitlines(), start=1):
        states = re.match(r"\s*[a-z_0-9]+: ?[^\s#]", line) and not re.match(r"base:|\s*iter\d: \{\}", line)
        assert not states or re.search(r"# .*(SELM|blender|assumed|deviation|null removes)", line), f"{path}:{number}"


@pytest.mark.parametrize(
    ("name", "rates", "portions", "alphas", "batch"),
    [
        ("zephyr-selm", [5e-7, 5e-7, 5e-7, 1e-7], 4, [0, 0.001, 0.001, 0.001], 256),
        ("zephyr-dpo", [5e-7, 5e-7, 5e-7, 1e-7], 4, [0, 0, 0, 0], 256),
        ("zephyr-stepwise-dpo", [5e-7, 5e-7, 5e-7, 1e-7], 4, [0, 0, 0, 0], 256),
        ("zephyr-offline-dpo", [5e-7], 1, [0], 256),
        ("llama3-selm", [5e-7, 3e-7, 1e-7], 3, [0.0001] * 3, 128),
        ("llama3-dpo", [5e-7, 3e-7, 1e-7], 3, [0] * 3, 128),
        ("phi3-selm", [5e-7, 3e-7, 1e-7], 3, [0.001] * 3, 128),
        ("phi3-dpo", [5e-7, 3e-7, 1e-7], 3, [0] * 3, 128),
    ],
)
def test_the_papers_schedule(
    name: str, rates: list[float], portions: int, alphas: list[float], batch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    run = resolve(name)
    trains = [each.settings.train for each in run.iterations]
    assert [train.learning_rate for train in trains] == rates
    assert [train.alpha for train in trains] == alphas
    assert {train.global_batch_size for train in trains} == {batch}
    assert {(train.beta, train.max_length, train.max_prompt_length) for train in trains} == {(0.01, 1024, 512)}
    assert (run.settings.data.portions, run.settings.launch, run.start) == (portions, "zero3", "start")
    first = 0 if name.startswith("zephyr") else 1
    assert [each.name for each in run.iterations] == [f"iter{first + index}" for index in range(len(rates))]
    stepwise = "stepwise" in name or "offline" in name
    assert [each.ranks for each in run.iterations] == [not stepwise and each.name != "iter0" for each in run.iterations]


def test_the_other_label_rule_of_the_zephyr_readme_resolves(folder: Path) -> None:
    shutil.copytree(ROOT / "recipes/zephyr", folder / "recipes/zephyr")
    readme = (folder / "recipes/zephyr/README.md").read_text()
    (folder / "recipes/zephyr/b.yaml").write_text(readme.split("```yaml\n")[1].split("```")[0])
    run = resolve("zephyr-b")
    assert [each.settings.select.rule for each in run.iterations] == ["dataset", *["against_chosen"] * 3]


@pytest.mark.parametrize("path", sorted(ROOT.glob("recipes/accelerate/*.yaml")), ids=lambda path: path.stem)
def test_launch_files_are_accelerate_configurations(path: Path) -> None:
    from accelerate.commands.config.config_args import load_config_from_file

    config = load_config_from_file(str(path))
    assert config.num_processes == {"cpu": 1, "gpu": 1, "zero3-cpu": 2}.get(path.stem, 8)
    assert config.mixed_precision == ("no" if "cpu" in path.stem else "bf16")
