"""What identifies a table: its file, its seeds, what it was made from, and the bootstrap of its intervals."""

from __future__ import annotations

import json
import runpy
from pathlib import Path
from typing import Any

import pytest

from handbook_ext.graph.stages import TableStage
from handbook_ext.recipes.settings import ReportSettings
from tests.recipe_folder import ROOT, enter_folder

TABLE = "title: t\nsource: s\nrows: [{name: A, recipe: tiny-selm}]\n"


def test_a_table_with_another_bootstrap_is_another_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = enter_folder(tmp_path, monkeypatch)
    (folder / "recipes/tables").mkdir()
    (folder / "recipes/tables/mine.yaml").write_text(TABLE)
    main = runpy.run_path(str(ROOT / "scripts" / "write_table.py"))["main"]
    drawn: list[dict[str, Any]] = []
    monkeypatch.setitem(main.__globals__, "table_inputs", lambda table, runs: [])
    monkeypatch.setitem(main.__globals__, "summarise_table", lambda table, runs, **bootstrap: drawn.append(bootstrap))
    monkeypatch.setitem(main.__globals__, "render_table", lambda numbers, seeds: {"table.md": b"# t\n"})
    for _ in range(2):
        main(["mine", "--seeds", "1"])
    manifest = json.loads((folder / "runs/table-mine/report/manifest.json").read_text())
    assert manifest["settings"]["report"] == ReportSettings().model_dump()
    assert drawn == [{"resamples": 2000, "confidence": 0.95}]

    class Coarse(TableStage):
        report: ReportSettings = ReportSettings(bootstrap_resamples=100, confidence=0.8)

    monkeypatch.setitem(main.__globals__, "TableStage", Coarse)
    main(["mine", "--seeds", "1"])
    assert drawn[1:] == [{"resamples": 100, "confidence": 0.8}]
