"""Artifacts of a run: their hashes, and the manifests that record their content.

An artifact is a file or a folder. A stage may depend on a part of a folder alone: on the file `data/rows/sft.jsonl` of the
artifact `data/rows`, or on `iter1/policy/at-25`, a policy that training kept on its way to `iter1/policy`. A manifest records
hash, size and time of each file when it was made, so that a checkpoint is read for hashing once, when it is published: later a
file of the recorded size and time has the recorded hash, and any other is read.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from handbook_ext.core.errors import UserError
from handbook_ext.core.jsonl import replace_text
from handbook_ext.core.manifests import finished_manifest, json_object, manifest_path, read_manifest

__all__ = [
    "ADAPTER_CONFIG", "HASHES", "LOADED", "START", "UNHASHED", "WEIGHTS", "Files", "checkpoint_files", "current_hash",
    "file_records", "files_of", "finished_manifest", "flush_folder", "hash_of_files", "json_object", "manifest_path", "part_of",
    "read_manifest", "recorded_hash", "records_beside", "remembered_hashes", "sha256_of", "weights_hash",
]  # fmt: skip

Files = dict[str, dict[str, Any]]
"""For each file of an artifact by its relative name: sha256, size (bytes) and mtime_ns."""

START = "start"
"""The folder of the policy that a run starts from where that is the recipe's checkpoint: no stage makes it."""

HASHES = ".hashes.json"
"""The file of a run that remembers the hashes of files with another time than a manifest has, or with none."""

# What is written beside the result: it differs between equal makes, and a manifest cannot hold its own hash.
UNHASHED = {"manifest.json", "trainer_state.json"}
WEIGHTS = {".safetensors", ".bin"}
ADAPTER_CONFIG = "adapter_config.json"
# Suffixes of what transformers reads from a checkpoint. ".py": the code of a model that needs trust_remote_code.
LOADED = {".safetensors", ".bin", ".json", ".jinja", ".model", ".txt", ".py"}


def sha256_of(path: Path) -> str:
    """Returns the hash of a file, or of a folder's relative names and contents (without manifest and log)."""
    if path.is_file():
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    return hash_of_files(path, file_records(path))


def file_records(artifact: Path) -> Files:
    """Returns hash, size and time of every file of an artifact; reads each file once."""
    return {name: _record(path) for name, path in files_of(artifact).items()}


def records_beside(artifact: Path) -> Files:
    """Returns the records of the files of a folder that are no part of what identifies it: the log of a training."""
    found = [path for path in sorted(artifact.rglob("*")) if path.name in UNHASHED and path.name != "manifest.json"]
    return {str(path.relative_to(artifact)): _record(path) for path in found}


def hash_of_files(artifact: Path, files: Files) -> str:
    """Returns the hash of an artifact from the records of its files, without reading them."""
    if artifact.is_file():
        return str(files[artifact.name]["sha256"])
    lines = [f"{name} {record['sha256']}" for name, record in files.items()]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def weights_hash(hashes: Mapping[str, str]) -> str | None:
    """Returns the hash that identifies a policy: over the hashes of its weights and configuration; None where there are none.

    This is a policy's one identity. The hash of the whole artifact covers its tokenizer and template as well, and shows only
    whether its files are unchanged since publishing.
    """
    # Names with a slash are an adapter's, or of policies kept on the way, which are no part of the policy.
    names = sorted(name for name in hashes if name.endswith(".safetensors") and "/" not in name)
    if not names or "config.json" not in hashes:
        return None
    parts = [hashes[name] for name in sorted([*names, "config.json"])]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def checkpoint_files(folder: Path) -> list[Path]:
    """Returns the files of a checkpoint that a library would load: weights, configuration, tokenizer, template.

    Those of an adapter's base are among them, where the base is a folder too. Raises UserError for an adapter without an end
    of bases, or whose configuration cannot be read.
    """
    files: list[Path] = []
    seen: list[Path] = []
    base: Path | None = folder
    while base is not None:
        if base.resolve() in seen:
            raise UserError(f"{folder}: its base_model_name_or_path leads back to itself; name the model it was trained on")
        seen.append(base.resolve())
        found = [path for path in base.iterdir() if path.suffix in LOADED and path.is_file() and path.name not in UNHASHED]
        files += sorted(path for path in found if not path.name.startswith("."))
        base = _base_of(base)
    return files


def _base_of(folder: Path) -> Path | None:
    """Returns the folder of an adapter's base; None for a base on the hub, and for a checkpoint that is no adapter."""
    config = folder / ADAPTER_CONFIG
    if not config.is_file():
        return None
    try:
        named = str(json.loads(config.read_text(encoding="utf-8")).get("base_model_name_or_path") or "")
    except (ValueError, AttributeError):
        raise UserError(f"{config}: is no JSON object; save the adapter again") from None
    return next((path for path in (folder / named, Path(named)) if named and os.path.isdir(path)), None)


def recorded_hash(artifact: Path) -> str | None:
    """Returns the hash that its manifest gives an artifact, or a part of one; None where no manifest records it.

    A damaged manifest records nothing.
    """
    if manifest_path(artifact).is_file():
        own = finished_manifest(artifact)
        return None if own is None else str(own["sha256"])
    whole = finished_manifest(artifact.parent)
    part = {} if whole is None else part_of(whole["files"], artifact.name)
    if artifact.name in part:
        return str(part[artifact.name]["sha256"])
    return hash_of_files(artifact, part) if part else None


def current_hash(artifact: Path, recorded: Files) -> str:
    """Returns the hash of an artifact as it is now; a file of its recorded size and time is not read."""
    files = {}
    for name, path in files_of(artifact).items():
        record, stat = recorded.get(name), path.stat()
        same = record is not None and (record["size"], record["mtime_ns"]) == (stat.st_size, stat.st_mtime_ns)
        files[name] = record if same and record is not None else _record(path)
    return hash_of_files(artifact, files)


def remembered_hashes(cache: Path) -> Callable[[Path], str]:
    """Returns sha256_of for files outside a run, which reads a file of known size and time once; `cache` is a JSON file.

    Several processes may write the cache at once: each writes it whole, the last one wins, and a file may be read again.
    """
    known: Files = json_object(cache) or {}  # Only a cache: where it is damaged, files are read again.

    def hash_of(path: Path) -> str:
        """Returns the hash of a file, or of a folder through those of its files."""
        if path.is_dir():
            lines = [f"{name} {hash_of(file)}" for name, file in files_of(path).items()]
            return hashlib.sha256("\n".join(lines).encode()).hexdigest()
        full, stat = os.path.abspath(path), path.stat()
        record = known.get(full)
        recorded = (record.get("size"), record.get("mtime_ns")) if isinstance(record, dict) and "sha256" in record else None
        if record is None or recorded != (stat.st_size, stat.st_mtime_ns):
            record = known[full] = _record(path)
            with contextlib.suppress(OSError):  # Of a finished run on a disk that is read-only, say.
                cache.parent.mkdir(parents=True, exist_ok=True)
                replace_text(cache, json.dumps(known))
        return str(record["sha256"])

    return hash_of


def part_of(files: Files, name: str) -> Files:
    """Returns the records of a part of an artifact, a file or a folder, named as if it were an artifact itself."""
    if name in files:
        return {name: files[name]}
    return {each.removeprefix(f"{name}/"): record for each, record in files.items() if each.startswith(f"{name}/")}


def files_of(artifact: Path) -> dict[str, Path]:
    """Returns an artifact's files by relative name, in the order of their paths."""
    if artifact.is_file():
        return {artifact.name: artifact}
    found = sorted(path for path in artifact.rglob("*") if path.is_file() and path.name not in UNHASHED)
    return {str(path.relative_to(artifact)): path for path in found}


def _record(path: Path) -> dict[str, Any]:
    """Returns what a manifest records of one file."""
    stat = path.stat()  # Before the content, so that a write in between leaves a time that matches no record.
    return {"sha256": sha256_of(path), "size": stat.st_size, "mtime_ns": stat.st_mtime_ns}


def flush_folder(folder: Path) -> None:
    """Flushes every file of a folder to disk, so that a rename never outlives its content."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as stream:
                os.fsync(stream.fileno())
