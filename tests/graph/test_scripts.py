"""What scripts/resolve_recipe.py writes, shows and refuses, and how light planning is."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.recipe_folder import ROOT, enter_folder, mine

SCRIPT = ROOT / "scripts" / "resolve_recipe.py"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder of a test."""
    return enter_folder(tmp_path, monkeypatch)


def script(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs scripts/resolve_recipe.py in the current folder."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    command = [sys.executable, str(SCRIPT), *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


def test_the_script_writes_silently_and_shows_on_request(folder: Path) -> None:
    done = script("tiny-selm", "--runs", "elsewhere")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert Path("elsewhere/tiny-selm/iter3/train.yaml").is_file()
    listed = script("--list").stdout
    assert "tiny-dpo" in listed
    assert "tiny-selm" in listed
    mine("train:\n  beta: 0.5\ndata: {dataset: some/pairs}\niterations:\n  iter3:\n    train: {learning_rate: 5e-7}\n")
    shown = script("mine-selm", "--show", "iter3").stdout.splitlines()
    assert shown[0] == "# iter3 of mine-selm starts from iter2 and uses portion 4 of 4"
    assert "train.learning_rate: 5.0e-07   # recipes/mine/selm.yaml:7" in shown
    assert "train.beta: 0.5   # recipes/mine/selm.yaml:3" in shown
    assert "train.weight_decay: 0.0   # default" in shown
    assert any(re.fullmatch(r"rank\.ranker: reward_model   # recipes/tiny/base\.yaml:\d+, resolved", x) for x in shown)
    assert not Path("runs").exists()
    tried = script("mine-selm", "--show", "--set", "train.beta=0.7").stdout.splitlines()
    assert "train.beta: 0.7   # --set train.beta" in tried


def test_the_script_tells_a_mistake_in_one_line(folder: Path) -> None:
    for arguments in (("tiny-slem",), (), ("tiny-selm", "--show", "iter9"), ("tiny-selm", "--set", "train.bta=1")):
        done = script(*arguments)
        assert done.returncode == 2
        assert done.stdout == ""
        assert done.stderr.startswith("error: ")
        assert done.stderr.count("\n") == 1
    assert not Path("runs").exists()


def test_planning_starts_without_heavy_libraries(folder: Path) -> None:
    code = "import sys, handbook_ext.graph.goals; print(sorted({'torch', 'transformers', 'numpy'} & set(sys.modules)))"
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert done.stdout.strip() == "[]"
