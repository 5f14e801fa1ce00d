"""Recipes, data files, names and words of make with something wrong in them: `make fuzz CASES=500` draws many."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given

from handbook_ext.core.stage_settings import read_settings_as
from handbook_ext.data.offline import load_offline_data
from handbook_ext.graph.run_rules import run_rules
from handbook_ext.recipes.run import resolve
from handbook_ext.recipes.settings import DataSettings
from tests.fuzz.mutations import commands, data_files, recipes
from tests.fuzz.property import SECONDS, held, inside, make_folder, remove_new, share, tree
from tests.recipes.hostile_names import examples, script
from tests.workspace import Workspace


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A working folder with a few recipes, the current one; nothing else lies beside it."""
    folder = tmp_path / "parent" / "work"
    folder.mkdir(parents=True)
    make_folder(folder)
    with contextlib.chdir(folder):
        yield folder


def test_a_recipe_is_resolved_right_or_refused_in_one_line(folder: Path) -> None:
    @examples(share(0.4))
    @given(recipes())
    def check(content: bytes) -> None:
        path = folder / "recipes" / "tiny" / "fuzzed.yaml"
        path.write_bytes(content)
        with held(folder):
            script("plan_goals", "--", "tiny-fuzzed")
            run = resolve("tiny-fuzzed")
            for rule in run_rules(run):
                # What the stage reads is what the recipe says.
                assert read_settings_as(type(rule.settings), Path("runs", run.name, rule.settings_file))[0] == rule.settings

    check()


def test_a_data_file_is_read_right_or_refused_in_one_line(folder: Path) -> None:
    (folder / "test.jsonl").write_text('{"prompt": "a", "chosen": "b", "rejected": "c"}\n')

    @examples(share(0.3))
    @given(data_files())
    def check(drawn: tuple[str, bytes]) -> None:
        name, content = drawn
        (folder / name).write_bytes(content)
        with held(folder):
            loaded = load_offline_data(DataSettings(train=name, test="test.jsonl"), 1)
            assert loaded.read == loaded.kept + loaded.dropped.total()
            for row in loaded.train:
                texts = [turn["content"] for turns in (row.prompt, row.chosen, row.rejected) for turn in turns]
                assert texts and all(isinstance(text, str) for text in texts)
                "".join(texts).encode()

    check()


def test_words_of_make_are_planned_or_refused_in_one_line(folder: Path) -> None:
    @examples(share(0.28))
    @given(commands())
    def check(drawn: tuple[list[str], dict[str, str]]) -> None:
        goals, variables = drawn
        runs = variables.get("RUNS", "runs")
        if not inside(runs) and len(runs) < 256:
            return  # Its files may lie where it says.
        said = [f"--variable={name}={value}" for name, value in variables.items()]
        with held(folder, runs):
            script("plan_goals", *said, *(f"--given={name}" for name in variables), "--", *goals)

    check()


def test_make_itself_does_so(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path / "parent" / "work")
    outer = ("MAKEFLAGS", "MFLAGS", "MAKELEVEL", "RUNS")
    environment = {name: value for name, value in os.environ.items() if name not in outer}

    @examples(share(0.02))
    @given(commands())
    def check(drawn: tuple[list[str], dict[str, str]]) -> None:
        goals, variables = drawn
        runs = variables.get("RUNS", "runs")
        # Make itself reads `a=b` among goals as a variable, and expands what stands behind := and !=.
        if any("=" in goal or len(os.fsencode(goal)) > 250 for goal in goals) or not inside(runs):
            return
        before = tree(workspace.folder)
        done = subprocess.run(
            ["make", "-n", *(f"{name}={value}" for name, value in variables.items()), "--", *goals], cwd=workspace.folder,
            env=environment, capture_output=True, timeout=SECONDS * 3, check=False,
        )  # fmt: skip
        said = done.stderr.decode("utf-8", "replace")
        assert "Traceback" not in said
        assert done.returncode in (0, 2)
        assert done.returncode == 0 or "error: " in said or "make: *** " in said
        remove_new(workspace.folder, runs, before)
        assert tree(workspace.folder) == before

    check()
