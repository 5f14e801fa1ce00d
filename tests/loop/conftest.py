"""Two finished micro runs that the tests of the loop read: SELM on two parts of noisy data, SeRA on fixed labels."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.workspace import SELM, SERA, Workspace


@pytest.fixture(scope="session")
def selm(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """A run of SELM, with its report: iter0 on the labels of the first part, iter1 on judged samples of the second."""
    workspace = Workspace(tmp_path_factory.mktemp("selm"), SELM)
    workspace.run("mine-micro")
    return workspace


@pytest.fixture(scope="session")
def sera(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """A run of three iterations of SeRA."""
    workspace = Workspace(tmp_path_factory.mktemp("sera"), SERA)
    workspace.run("mine-micro-iter3")
    return workspace


@pytest.fixture
def copy_of(tmp_path: Path) -> Callable[[Workspace, str], Workspace]:
    """Returns a function workspace, recipe -> a copy of its runs under a new recipe; times are kept, so what is done stays so."""

    def make(finished: Workspace, recipe: str) -> Workspace:
        workspace = Workspace(tmp_path / "copy", recipe)
        shutil.copytree(finished.folder / "runs", workspace.folder / "runs", copy_function=shutil.copy2)
        return workspace

    return make
