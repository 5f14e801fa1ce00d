"""Hashes of files outside a run, each read once, and which files a checkpoint has."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from handbook_ext.core.artifacts import checkpoint_files, remembered_hashes, sha256_of


def test_a_file_of_the_same_size_and_another_time_is_read_again(tmp_path: Path) -> None:
    weights, cache = tmp_path / "weights", tmp_path / ".hashes.json"
    weights.write_text("one")
    before = remembered_hashes(cache)(weights)
    weights.write_text("two")
    os.utime(weights, ns=(1, 1))
    assert before != remembered_hashes(cache)(weights) == sha256_of(weights)


@pytest.mark.parametrize(
    "damage", ["[1]", '{"PATH": 3}', '{"PATH": null}', '{"PATH": {"size": 3, "mtime_ns": 1}}', '{"PATH": "a"}']
)
def test_a_cache_of_hashes_with_other_things_in_it_is_read_past(tmp_path: Path, damage: str) -> None:
    weights, cache = tmp_path / "weights", tmp_path / ".hashes.json"
    weights.write_text("one")
    os.utime(weights, ns=(1, 1))
    cache.write_text(damage.replace("PATH", str(weights)))
    assert remembered_hashes(cache)(weights) == sha256_of(weights)


def test_hidden_files_are_no_part_of_a_checkpoint(tmp_path: Path) -> None:
    """Such as those that macOS leaves beside each file on a disk of another system."""
    for name in ("model.safetensors", "config.json", "._model.safetensors", ".cache.json", "README.md"):
        (tmp_path / name).touch()
    assert [path.name for path in checkpoint_files(tmp_path)] == ["config.json", "model.safetensors"]


def test_the_base_beside_an_adapter_goes_before_one_of_its_name_in_the_working_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As it is loaded: a run can be moved as a whole."""
    monkeypatch.chdir(tmp_path)
    adapter = tmp_path / "adapter"
    for folder in (tmp_path / "base", adapter / "base"):
        folder.mkdir(parents=True)
        (folder / "config.json").touch()
    (adapter / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "base"}))
    assert checkpoint_files(adapter) == [adapter / "adapter_config.json", adapter / "base/config.json"]
