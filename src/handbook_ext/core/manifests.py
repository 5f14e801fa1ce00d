"""The manifest of an artifact: where it lies, and the one place where it is read.

A manifest that a full disk, a kill or a hand has damaged counts as none: the artifact is not finished, and is made again.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from handbook_ext.core.errors import UserError

LISTED = {".jsonl", ".json"}
"""Suffixes of artifacts that are one file; all others are folders."""
POLICY = "policy"
"""The name of an artifact that is a policy; its manifest has its identity under the same name."""


class FileRecord(BaseModel):
    """What a manifest records of a file; size in bytes."""

    model_config = ConfigDict(strict=True)
    sha256: str
    size: int
    mtime_ns: int


class _Manifest(BaseModel):
    """What every manifest has, and the types of what readers take from it unseen; a stage adds facts of its own."""

    model_config = ConfigDict(strict=True)
    stage: str
    sha256: str
    files: dict[str, FileRecord]
    key: str
    inputs: dict[str, str]
    settings: dict[str, Any]
    counts: dict[str, Any]
    external: dict[str, str] = {}
    beside: dict[str, FileRecord] = {}
    recipe: str = ""
    overrides: list[str] = []
    launch: dict[str, Any] = {}
    code: dict[str, Any] = {}
    hardware: dict[str, Any] = {}
    packages: dict[str, Any] = {}


def manifest_path(artifact: Path) -> Path:
    """Returns where an artifact's manifest lies: in a folder, or beside a file."""
    if artifact.suffix in LISTED:
        return artifact.with_name(artifact.stem + ".manifest.json")
    return artifact / "manifest.json"


def read_manifest(artifact: Path) -> dict[str, Any]:
    """Returns the manifest; raises UserError where there is none, so that the artifact is not finished, or a damaged one."""
    manifest = finished_manifest(artifact)
    if manifest is None:
        path = manifest_path(artifact)
        fault = f"{path} is damaged; delete it" if path.is_file() else f"{path.name} is missing"
        raise UserError(f"{artifact} is not finished: {fault}, and run make, which makes it again")
    return manifest


def finished_manifest(artifact: Path) -> dict[str, Any] | None:
    """Returns the manifest of an artifact; None where it is missing or damaged: the artifact is then to be made again."""
    manifest = json_object(manifest_path(artifact))
    if manifest is None or (artifact.name == POLICY and POLICY not in manifest):
        return None
    try:
        _Manifest.model_validate(manifest)
    except ValidationError:
        return None
    return manifest


def json_object(path: Path) -> dict[str, Any] | None:
    """Returns the mapping in a JSON file; None where it is missing, or damaged as by a full disk or a kill."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None
