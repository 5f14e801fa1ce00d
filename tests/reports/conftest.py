"""A made run with everything that is shared of one, for the tests of cards, uploads and ledgers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from handbook_ext.reports.ledger_archive import Ledger
from handbook_ext.reports.ledger_pack import packed
from tests.recipe_folder import enter_folder
from tests.reports.staged_run import RECIPE, made_run


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with recipes/mine/selm.yaml and its finished run in runs/mine-selm; tests change copies of it."""
    folder = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        enter_folder(folder, patch)
        Path("recipes/mine/selm.yaml").write_text(RECIPE)
        made_run(Path("runs"))
    return folder


@pytest.fixture
def made(home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The run's folder, seen from the current one; it is not to be changed."""
    monkeypatch.chdir(home)
    return Path("runs/mine-selm")


@pytest.fixture(scope="session")
def ledger(home: Path) -> Iterator[Ledger]:
    """The run's ledger."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        yield packed(Path("runs/mine-selm"))
