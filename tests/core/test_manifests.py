"""A manifest that a full disk, a kill or a hand has damaged: its artifact is not finished, and never a traceback."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from handbook_ext.core.artifacts import recorded_hash
from handbook_ext.core.errors import UserError
from handbook_ext.core.integrity import verified
from handbook_ext.core.manifests import finished_manifest, manifest_path, read_manifest
from tests.core.test_stage import make
from tests.manifests import BARE

RECORD = {"sha256": "s", "size": 1, "mtime_ns": 1}
WRONG: list[dict[str, Any]] = [
    {"files": 3}, {"files": None}, {"files": []}, {"files": {"a": 3}}, {"files": {"a": {"sha256": "s"}}},
    {"files": {"a": {**RECORD, "size": "1"}}}, {"inputs": None}, {"inputs": ["a"]}, {"inputs": {"a": None}}, {"settings": None},
    {"settings": "x"}, {"counts": 3}, {"sha256": None}, {"key": 1}, {"stage": None}, {"external": None}, {"hardware": "x"},
]  # fmt: skip


def test_a_manifest_of_the_right_types_is_finished(tmp_path: Path) -> None:
    (tmp_path / "pairs.manifest.json").write_text(json.dumps(BARE | {"files": {"a": RECORD}, "more": [1]}))
    assert finished_manifest(tmp_path / "pairs.jsonl") == BARE | {"files": {"a": RECORD}, "more": [1]}


@pytest.mark.parametrize("wrong", WRONG, ids=json.dumps)
def test_a_value_of_another_type_is_damage(tmp_path: Path, wrong: dict[str, Any]) -> None:
    (tmp_path / "pairs.manifest.json").write_text(json.dumps(BARE | wrong))
    assert finished_manifest(tmp_path / "pairs.jsonl") is None
    assert recorded_hash(tmp_path / "pairs.jsonl") is None
    with pytest.raises(UserError, match=r"pairs.manifest.json is damaged; delete it, and run make"):
        read_manifest(tmp_path / "pairs.jsonl")


@pytest.mark.parametrize("key", BARE)
def test_a_policy_without_a_key_of_its_manifest_is_not_finished(tmp_path: Path, key: str) -> None:
    (tmp_path / "policy").mkdir()
    (tmp_path / "policy/manifest.json").write_text(json.dumps({name: value for name, value in BARE.items() if name != key}))
    assert finished_manifest(tmp_path / "policy") is None


def test_a_manifest_nested_without_end_or_that_is_a_number_is_damage(tmp_path: Path) -> None:
    (tmp_path / "policy").mkdir()
    for damage in ("[" * 100_000, "3"):
        (tmp_path / "policy/manifest.json").write_text(damage)
        assert finished_manifest(tmp_path / "policy") is None


@pytest.mark.parametrize("damage", ["", "[]", "{", '{"files": 3}', "\0\0"])
def test_an_input_whose_manifest_is_damaged_is_one_line_and_made_again(tmp_path: Path, damage: str) -> None:
    source = make(tmp_path / "iter0").artifact
    result = make(tmp_path / "iter1", [source]).artifact
    manifest_path(source).write_text(damage)
    with pytest.raises(UserError, match=r"iter0/pairs.jsonl is not finished: .*pairs.manifest.json is damaged; delete it"):
        verified(source)
    make(tmp_path / "iter0")
    assert verified(result)
