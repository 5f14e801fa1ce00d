"""A working folder for tests of recipes: the base of tiny, its SELM and DPO, the launch files; tests add their own."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from handbook_ext.recipes.run import Run, resolve

ROOT = Path(__file__).parents[1]


def enter_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Copies the recipes there and makes it the current folder."""
    shutil.copytree(ROOT / "recipes" / "accelerate", folder / "recipes" / "accelerate")
    (folder / "recipes" / "tiny").mkdir()
    for name in ("base", "selm", "dpo"):
        shutil.copy(ROOT / "recipes" / "tiny" / f"{name}.yaml", folder / "recipes" / "tiny")
    (folder / "recipes" / "mine").mkdir()
    monkeypatch.chdir(folder)
    return folder


def mine(text: str, name: str = "selm") -> Run:
    """Writes recipes/mine/<name>.yaml, over the tiny base unless it names one, and resolves it."""
    own = text if text.startswith("base:") else "base: ../tiny/base.yaml\n" + text
    Path(f"recipes/mine/{name}.yaml").write_text(own)
    return resolve(f"mine-{name}")
