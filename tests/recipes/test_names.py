"""Whatever data files, checkpoints, recipes, goals and variables are called: the right rows or one line, and never a command.

Each property plans as make has it done, in this process, and reads the makefiles with a checker of its own; the real make is
asked in test_names_in_make.py. The quick cases of a property are among the slow ones.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest
import yaml
from hypothesis import assume, given
from hypothesis import strategies as st

from handbook_ext.core.errors import UserError
from handbook_ext.core.stage import Stage
from handbook_ext.graph.stages import DataStage, SFTStage
from handbook_ext.recipes.names import recipe_files, unusable_files
from tests.manifests import BARE
from tests.recipes.hostile_names import FILE_NAMES, empty_folder, examples, planned, script, words

SUFFIXES = st.sampled_from([".jsonl", ".json", ".parquet"])
Property = Callable[..., None]


def both(quick: int, slow: int, check: Property, **drawn: st.SearchStrategy[Any]) -> tuple[Property, Property]:
    """A property as two tests: some cases in `make test`, many in `make test-slow`."""
    few = examples(quick)(given(**drawn)(check))

    def many(**values: Any) -> None:
        check(**values)

    return few, pytest.mark.slow(examples(slow)(given(**drawn)(many)))


def write_pairs(path: Path, text: str, age: int) -> None:
    """Writes two pairs, a file as old as no other one here."""
    rows = [{"prompt": f"{text} {number}", "chosen": "yes", "rejected": "no"} for number in range(2)]
    if path.suffix == ".parquet":
        datasets.disable_progress_bars()
        datasets.Dataset.from_list(rows).to_parquet(path.open("wb"))
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    stamp = 1_700_000_000_000_000_000 + age
    os.utime(path, ns=(stamp, stamp))


class Quoting(yaml.SafeDumper):
    """Puts text in quotes: YAML's editions differ in what else is a number."""


Quoting.add_representer(str, lambda dumper, text: dumper.represent_scalar("tag:yaml.org,2002:str", text, style='"'))


def write_recipe(values: dict[str, Any], name: str = "own") -> None:
    """Writes recipes/mine/<name>.yaml over the tiny base."""
    Path(f"recipes/mine/{name}.yaml").write_text(yaml.dump({"base": "../tiny/base.yaml", **values}, Dumper=Quoting))


def outdated(rules: dict[Path, list[str]], target: Path) -> bool:
    """Tells whether make would make a target again: it is missing, or something that it needs is newer."""
    return not target.exists() or any(os.stat(each).st_mtime_ns > target.stat().st_mtime_ns for each in rules[target])


def made_rows(rules: dict[Path, list[str]], manifest: Path) -> list[str]:
    """Makes the rows again where make would; returns the prompts of the training rows that are there then."""
    if outdated(rules, manifest):
        script("prepare_data", str(manifest.parents[2]))
    return [json.loads(line)["prompt"][0]["content"] for line in (manifest.parent / "train.jsonl").open()]


def a_data_files_name_leads_to_its_rows(name: str, suffix: str, in_folder: bool) -> None:
    with empty_folder():
        train, test = (
            (Path(name, f"train{suffix}"), Path(name, "test.jsonl")) if in_folder else (Path(name + suffix), Path("t.jsonl"))
        )
        train.parent.mkdir(exist_ok=True)
        write_recipe({"data": {"portions": 1, **({} if in_folder else {"train": str(train), "test": str(test)})}})
        variables = {"DATA": name} if in_folder else {}
        write_pairs(train, "first", 0)
        write_pairs(test, "held out", 1)
        try:
            rules = planned("mine-own", **variables)
        except UserError as error:
            assert "UTF-8" in str(error)
            assert "\udcff" in name or "\udcc3" in name
            return
        [manifest] = [path for path in rules if str(path).endswith("data/rows/manifest.json")]
        assert Stage.open(manifest.parents[2], DataStage).settings.data.train == str(train)
        for age, text in enumerate(("first", "other", "first"), 2):
            write_pairs(train, text, age)
            time.sleep(0.01)  # Files written within one tick of the clock have the same time.
            again = planned("mine-own", **variables)
            assert outdated(again, manifest)
            assert made_rows(again, manifest) == [f"{text} 0", f"{text} 1"]
            assert not outdated(planned("mine-own", **variables), manifest)


test_data_files, test_data_files_at_length = both(
    25, 120, a_data_files_name_leads_to_its_rows, name=FILE_NAMES, suffix=SUFFIXES, in_folder=st.booleans()
)


def a_checkpoints_name_is_watched(name: str) -> None:
    assume(not name.startswith("~"))  # That is a home folder.
    with empty_folder():
        Path(name).mkdir()
        for file in ("config.json", "model.safetensors"):
            Path(name, file).write_text("{}")
        write_recipe({"model": {"name_or_path": name, "architecture": None, "tokenizer_vocab_size": None}})
        try:
            rules = planned("mine-own")
        except UserError as error:
            assert "UTF-8" in str(error)
            return
        stage = Stage.open(Path("runs/mine-own"), SFTStage)
        assert stage.settings.model.name_or_path == name
        target = Path("runs/mine-own/sft/policy/manifest.json")
        for needed in (target, *map(Path, rules[target])):
            needed.parent.mkdir(parents=True, exist_ok=True)
            needed.touch()
        target.write_text(json.dumps(BARE | {"settings": stage.raw}))
        assert not outdated(planned("mine-own"), target)
        os.utime(Path(name, "model.safetensors"), ns=(1, 1))
        time.sleep(0.01)
        assert outdated(planned("mine-own"), target)


test_checkpoints, test_checkpoints_at_length = both(25, 100, a_checkpoints_name_is_watched, name=FILE_NAMES)


def a_recipes_name_is_planned_or_told(name: str) -> None:
    with empty_folder():
        write_recipe({}, name)
        goal = f"mine-{name}"
        listed, refused = recipe_files(), unusable_files()
        assert (goal in listed) + len(refused) + (name == "base") == 1
        try:
            rules = planned(goal)
        except UserError:
            assert goal not in listed
            return
        assert goal in listed
        assert rules[Path(goal)] == [f"runs/{goal}/report/manifest.json"]
        assert Path(rules[Path(goal)][0]) in rules


test_recipes, test_recipes_at_length = both(40, 150, a_recipes_name_is_planned_or_told, name=FILE_NAMES)
VARIABLES = [
    "RUNS",
    "SET",
    "DATA",
    "SEEDS",
    "BESIDE",
    "LAUNCH",
    "GPUS",
    "CLUSTER",
    "JOBS",
    "THREADS",
    "ONLY",
    "T",
    "FORMAT",
    "FOO",
]
GOALS = st.sampled_from(["tiny-selm", "tiny-selm-seeds", "tiny-selm-why", "tiny-dpo-iter1", "tiny-selm-seed2"])


def any_word_is_a_goal_or_told(goal: str, variable: str, value: str) -> None:
    with empty_folder():
        try:
            rules = planned(goal, **{variable: value})
        except UserError as error:
            assert "\n" not in str(error) or repr(str(error))
            return
        folder = Path(value if variable == "RUNS" else "runs")
        assert {path for path in rules if len(path.parts) > 1 and not path.is_relative_to(folder)} <= {Path(".PHONY")}
        assert any(str(path).endswith("report/manifest.json") for path in rules)


def behind(*beginnings: str) -> st.SearchStrategy[str]:
    """Any word, alone or behind one of these."""
    return st.tuples(st.sampled_from(["", *beginnings]), words()).map("".join)


test_variables, test_variables_at_length = both(
    60,
    250,
    any_word_is_a_goal_or_told,
    goal=GOALS,
    variable=st.sampled_from(VARIABLES),
    value=behind("train.beta=", "report.title=", "tiny-dpo "),
)
test_goals, test_goals_at_length = both(
    60, 250, any_word_is_a_goal_or_told,
    goal=behind("tiny-selm", "runs/tiny-selm/", "table-"),
    variable=st.just("RUNS"), value=st.sampled_from(["runs", "a//b", "./c", "d/", "ü/e", "+@,"]),
)  # fmt: skip


@pytest.mark.parametrize("name", ["tables", "table-x", "tune-x", "test-slow"])
def test_a_recipe_is_not_called_like_a_goal_of_make(name: str) -> None:
    with empty_folder():
        model, _, method = name.partition("-")
        Path("recipes", model).mkdir(exist_ok=True)
        Path("recipes", model, f"{method or 'x'}.yaml").write_text("base: ../tiny/base.yaml\n")
        assert not [each for each in recipe_files() if each.startswith(model)]


def test_tables_and_their_rows_bring_no_words_into_a_makefile() -> None:
    table = "title: t\nsource: s\nrows: [{name: a, recipe: tiny-dpo, policy: '%s'}]\n"
    for file, policy in (("$(shell touch PWND)", "iter1"), ("a b", "iter1"), ("fine", "$(shell touch PWND)"), ("fine", "-x y")):
        with empty_folder():
            Path("recipes/tables", f"{file}.yaml").write_text(table % policy)
            with pytest.raises(UserError):
                planned("tables")
    with empty_folder():
        Path("recipes/tables/fine.yaml").write_text(table % "iter0")
        assert Path("tables") in planned("tables", "table-fine")


@pytest.mark.parametrize("base", [".", "../adapter", "other", "x" * 300, "\0", "$(shell touch PWND)", "\udcff"])
def test_the_base_that_an_adapter_names_is_a_folder_or_none(base: str) -> None:
    with empty_folder():
        for name, named in (("adapter", base), ("other", "../adapter")):
            Path(name).mkdir()
            Path(name, "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": named}))
        write_recipe({"model": {"name_or_path": "adapter", "architecture": None, "tokenizer_vocab_size": None}})
        if base in (".", "../adapter", "other"):
            with pytest.raises(UserError, match="leads back to itself"):
                planned("mine-own")
        else:
            assert Path("mine-own") in planned("mine-own")
        Path("adapter/adapter_config.json").write_text("[]" if base == "." else "{")
        with pytest.raises(UserError, match="is no JSON object"):
            planned("mine-own")
