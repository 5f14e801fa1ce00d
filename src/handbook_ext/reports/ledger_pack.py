"""What of a run goes into its ledger: every manifest, the settings, the texts and the verdicts; no weights and no paths."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import yaml

from handbook_ext.core.artifacts import manifest_path, read_manifest
from handbook_ext.core.errors import UserError
from handbook_ext.core.integrity import verified
from handbook_ext.core.stage_settings import read_settings
from handbook_ext.reports.ledger_archive import Ledger
from handbook_ext.reports.privacy import home_paths, without_paths

REPORT = "report"
# Of artifacts that are folders these files are taken; of all others the manifest alone, which has their hashes.
_OF_FOLDERS = {"report": ("summary.json",), "policy": ("trainer_state.json",)}


def artifacts_of(run: Path) -> list[Path]:
    """Returns every artifact of a run that has a manifest, in the order of their paths; workspaces and checkpoints are none."""
    found = []
    for path in sorted(run.rglob("*manifest.json")):
        inside = path.relative_to(run)
        if any(part.startswith((".", "checkpoint-")) for part in inside.parts) or not path.is_file():
            continue
        if path.name == "manifest.json":
            found.append(path.parent)
        elif path.name.endswith(".manifest.json"):
            name = path.name.removesuffix(".manifest.json")
            found += [path.with_name(name + suffix) for suffix in (".jsonl", ".json") if path.with_name(name + suffix).is_file()]
    return found


def packed(run: Path) -> Ledger:
    """Returns the ledger of a finished run; its artifacts are verified, and no text of it names this machine's folders.

    Raises UserError for a run without a report, for an artifact that was changed or is stale, and for one whose texts name the
    run's folder or the working folder.
    """
    if not run.is_dir():
        raise UserError(f"{run}: is no folder of a run; make {run.name}-report makes it")
    if not (run / REPORT / "manifest.json").is_file():
        raise UserError(f"{run}: has no report, so it is not finished; make {run.name}-report first")
    return Ledger(run.resolve().name, shared_files(run, artifacts_of(run)))


def shared_files(run: Path, artifacts: Iterable[Path]) -> dict[str, bytes]:
    """Returns what is shared of artifacts of a run, by its name in the run's folder: manifests, settings, texts, verdicts.

    Raises UserError for an artifact that was changed or is stale, and for a text that names a folder of this machine.
    """
    files: dict[str, bytes] = {}
    for artifact in artifacts:
        verified(artifact)
        for path in _files_of(artifact):
            name = str(path.relative_to(run))
            files[name] = shareable(path)
            if home := home_paths(files[name].decode("utf-8"), run, Path.cwd()):
                raise UserError(
                    f"{path}: its texts name {home}, a folder of this machine; take it out, and make what follows again"
                )
    return files


def _files_of(artifact: Path) -> Iterator[Path]:
    """Yields the files of an artifact that are shared: its manifest, its stage's settings, and what of it is text."""
    yield manifest_path(artifact)
    yield artifact.parent / f"{read_manifest(artifact)['stage']}.yaml"
    parts = [artifact / name for name in _OF_FOLDERS.get(artifact.name, ())] if artifact.is_dir() else [artifact]
    yield from (path for path in parts if path.is_file())


def shareable(path: Path) -> bytes:
    """Returns the content of a file without paths and hosts of this machine; as it is, byte by byte, where it has none."""
    content = path.read_bytes()
    if path.suffix == ".jsonl":
        return content
    value: Any = read_settings(path) if path.suffix == ".yaml" else json.loads(content)
    kept = without_paths(value)
    if kept == value:
        return content
    if path.suffix == ".yaml":
        text: str = yaml.dump(kept, Dumper=yaml.CSafeDumper, sort_keys=False, allow_unicode=True, width=110)
        return text.encode()
    return json.dumps(kept, indent=1, ensure_ascii=False).encode() + b"\n"
