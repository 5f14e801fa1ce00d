"""Files that are written whole or not at all, whoever writes them."""

from __future__ import annotations

from pathlib import Path

import pytest

from handbook_ext.core.artifacts import remembered_hashes, sha256_of
from handbook_ext.core.jsonl import replace_text


def refuse(path: Path, target: Path) -> None:
    """As a rename where the disk is full."""
    raise OSError(28, "No space left on device")


def test_text_takes_the_place_of_a_file_or_leaves_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "run.mk"
    for text in ("a", "ä\n"):
        replace_text(path, text)
        assert path.read_bytes() == text.encode()
    monkeypatch.setattr(Path, "replace", refuse)
    with pytest.raises(OSError, match="No space left"):
        replace_text(path, "c")
    assert [(each.name, each.read_text()) for each in tmp_path.iterdir()] == [("run.mk", "ä\n")]


def test_a_cache_of_hashes_that_cannot_be_written_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "weights").write_text("1")
    cache = tmp_path / "run" / ".hashes.json"
    assert remembered_hashes(cache)(tmp_path / "weights") == sha256_of(tmp_path / "weights")
    before = cache.read_text()
    (tmp_path / "weights").write_text("22")
    monkeypatch.setattr(Path, "replace", refuse)
    with pytest.raises(OSError, match="No space left"):
        remembered_hashes(cache)(tmp_path / "weights")
    assert [(each.name, each.read_text()) for each in cache.parent.iterdir()] == [(".hashes.json", before)]
