"""Artifacts of a run: their hashes, and the manifests that vouch for them.

An artifact is a file or a folder. A stage may depend on one file of a folder alone: `data/rows/sft.jsonl` is a part of the
artifact `data/rows`, whose manifest holds the hash of each part.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from handbook_ext.core.errors import UserError

UNHASHED = {"manifest.json", "trainer_state.json"}
ADAPTER_CONFIG = "adapter_config.json"
LOADED = {".safetensors", ".bin", ".json", ".jinja", ".model", ".txt", ".py"}


def sha256_of(path: Path) -> str:
    """Returns the hash of a file, or of a folder's relative names and contents (without manifest and log)."""
    if path.is_file():
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    parts = [
        f"{part.relative_to(path)} {sha256_of(part)}"
        for part in sorted(path.rglob("*"))
        if part.is_file() and part.name not in UNHASHED
    ]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def checkpoint_files(folder: Path) -> list[Path]:
    """Returns the files of a checkpoint that a library would load: weights, configuration, tokenizer, template.

    Those of an adapter's base are among them, where the base is a folder too.
    """
    found = [path for path in folder.iterdir() if path.suffix in LOADED and path.is_file() and path.name not in UNHASHED]
    files = sorted(path for path in found if not path.name.startswith("."))
    if (folder / ADAPTER_CONFIG).is_file():
        named = json.loads((folder / ADAPTER_CONFIG).read_text()).get("base_model_name_or_path") or ""
        base = next((place for place in (folder / named, Path(named)) if named and place.is_dir()), None)
        files += checkpoint_files(base) if base is not None else []
    return files


def manifest_path(artifact: Path) -> Path:
    """Returns where an artifact's manifest lies: in a folder, or beside a file."""
    if artifact.suffix in {".jsonl", ".json"}:
        return artifact.with_name(artifact.stem + ".manifest.json")
    return artifact / "manifest.json"


def read_manifest(artifact: Path) -> dict[str, Any]:
    """Returns the manifest; a UserError says that the artifact is not finished where there is none."""
    path = manifest_path(artifact)
    if not path.is_file():
        raise UserError(f"{artifact} is not finished: {path.name} is missing; run make, which makes it first")
    manifest: dict[str, Any] = json.loads(path.read_text())
    return manifest


def recorded_hash(artifact: Path) -> str | None:
    """Returns the hash that its manifest gives an artifact, or a part of one; None where no manifest speaks of it."""
    if manifest_path(artifact).is_file():
        return str(read_manifest(artifact)["sha256"])
    if manifest_path(artifact.parent).is_file():
        found = read_manifest(artifact.parent).get("parts", {}).get(artifact.name)
        return None if found is None else str(found)
    return None


def part_hashes(folder: Path) -> dict[str, str]:
    """Returns the hashes of the files that lie directly in a folder, by name."""
    return {path.name: sha256_of(path) for path in sorted(folder.iterdir()) if path.is_file() and path.name not in UNHASHED}


def verified(artifact: Path) -> str:
    """Returns the hash of an artifact or part; refuses one that was changed, or that was made from inputs since replaced."""
    whole = artifact if manifest_path(artifact).is_file() or recorded_hash(artifact) is None else artifact.parent
    manifest = read_manifest(whole)
    if not artifact.exists():
        raise UserError(f"{artifact} is missing though its manifest exists; delete {manifest_path(whole)}, run make")
    found, expected = sha256_of(artifact), recorded_hash(artifact)
    if found != expected:
        raise UserError(
            f"{artifact} was changed after stage '{manifest['stage']}' made it (sha256 {found[:12]}, its manifest says "
            f"{str(expected)[:12]}); restore it, or delete it and {manifest_path(whole).name} to make it again"
        )
    for name, before in manifest["inputs"].items():
        source = Path(os.path.normpath(whole.parent / name))
        if (now := recorded_hash(source)) not in (None, before):
            raise UserError(
                f"{artifact} is stale: it was made from another {source} (sha256 {before[:12]}, now "
                f"{str(now)[:12]}); run make, which makes it again"
            )
    return found
