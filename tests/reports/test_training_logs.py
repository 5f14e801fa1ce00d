"""The log of a training: read as it is, or one line; a damaged one has no traceback in reports, and verify finds it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from handbook_ext.core.errors import UserError
from handbook_ext.core.manifests import read_manifest
from handbook_ext.core.stage import Stage
from handbook_ext.core.stage_settings import StageSettings
from handbook_ext.reports.training_logs import FILE, training_log
from handbook_ext.reports.verification import CHANGED, MISSING, OK, _of_files


def test_a_log_is_its_rows_and_none_where_there_is_none(tmp_path: Path) -> None:
    assert training_log(tmp_path) == []
    (tmp_path / FILE).write_text(json.dumps({"log_history": [{"step": 1, "loss": 0.5}]}))
    assert training_log(tmp_path) == [{"step": 1, "loss": 0.5}]


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"log_history": 3}', '{"log_history": [1]}', '{"log_history": [{"step": 1, "loss": "x"}]}']
)
def test_a_damaged_log_is_one_line(tmp_path: Path, text: str) -> None:
    (tmp_path / FILE).write_text(text)
    with pytest.raises(UserError, match="is no log of a training"):
        training_log(tmp_path)


def test_verify_finds_a_log_of_a_training_that_was_changed_or_lost(tmp_path: Path) -> None:
    stage = Stage(tmp_path / "policy", StageSettings(stage="train"))
    stage.finished()
    stage.out.mkdir()
    for name in ("model.safetensors", "config.json", FILE):
        (stage.out / name).write_text("1")
    stage.publish({"in": 1, "out": 1})
    assert FILE not in read_manifest(tmp_path / "policy")["files"]
    log = tmp_path / "policy" / FILE
    for text, word in (("1", OK), ("2", CHANGED), (None, MISSING)):
        log.unlink() if text is None else log.write_text(text)
        found = _of_files(tmp_path, "policy", read=True)
        assert found.word == word
        assert (FILE in found.about) == (word != OK)
