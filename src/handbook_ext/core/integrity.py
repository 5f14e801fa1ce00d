"""Whether an artifact is still what its stage made: its files, the settings that are expected of it, what it was made from."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from handbook_ext.core.artifacts import Files, current_hash, files_of, part_of, recorded_hash, sha256_of
from handbook_ext.core.errors import UserError
from handbook_ext.core.manifests import LISTED, finished_manifest, manifest_path, read_manifest
from handbook_ext.core.stage_settings import differences, identity, read_settings, shortened

NAMED = 3  # Files that a line names.


@dataclass(frozen=True)
class Damage:
    """The files of an artifact that are not as its manifest has them, by their names in it."""

    missing: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()
    added: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        """Tells whether there are any."""
        return bool(self.missing or self.changed or self.added)

    @property
    def only_missing(self) -> bool:
        """Tells whether nothing is lost where the artifact is made again: nobody has put anything of theirs there."""
        return bool(self.missing) and not (self.changed or self.added)

    def __str__(self) -> str:
        """Returns what happened to which files, in words."""
        kinds = (("missing", self.missing), ("changed", self.changed), ("added by hand", self.added))
        return "; ".join(f"{_names(names)} {'is' if len(names) == 1 else 'are'} {what}" for what, names in kinds if names)


def damage_of(artifact: Path, files: Files, hash_of: Callable[[Path], str] = sha256_of) -> Damage:
    """Returns which files of an artifact are not those that its manifest records.

    A file of the recorded size and time is not read, nor one of another size; `hash_of` is asked for all others.
    """
    here = files_of(artifact)
    changed = []
    for name, path in here.items():
        record, stat = files.get(name), path.stat()
        if record is None or (record["size"], record["mtime_ns"]) == (stat.st_size, stat.st_mtime_ns):
            continue
        if record["size"] != stat.st_size or hash_of(path) != record["sha256"]:
            changed.append(name)
    return Damage(
        tuple(name for name in files if name not in here), tuple(changed), tuple(name for name in here if name not in files)
    )


def check_place(artifact: Path) -> None:
    """Raises UserError where something lies in an artifact's place that it cannot take: that is somebody's, so it stays."""
    folder = artifact.suffix not in LISTED
    if folder and os.path.lexists(artifact) and not artifact.is_dir():
        raise UserError(f"{artifact}: is a file or a broken link, and a folder is needed there; move it away")
    for path in () if folder else (artifact, manifest_path(artifact)):
        if path.is_dir():
            raise UserError(f"{path}: is a folder, and a file is needed there; move it away")


def verified(artifact: Path, *, settings: bool = True) -> str:
    """Returns the hash of an artifact or part; raises UserError for one that was changed, or is stale.

    It is stale where the manifest of an input now has another hash than when the artifact was made from it and, with `settings`,
    where the settings file of its stage now says something else than when it was made.
    """
    whole = _whole(artifact)
    manifest, found = read_manifest(whole), unchanged(artifact)
    if (fault := stale_settings(whole, manifest) if settings else None) is not None:
        raise UserError(f"{artifact} is stale: {fault}; run make, which makes it again, or give the recipe the former settings")
    for source, before, now in changed_inputs(whole, manifest):
        raise UserError(
            f"{artifact} is stale: it was made from another {source} (sha256 {before[:12]}, now {now[:12]}); run make, which "
            "makes it again"
        )
    return found


def unchanged(artifact: Path) -> str:
    """Returns the hash of an artifact or part; raises UserError where it is no longer what its stage made."""
    whole = _whole(artifact)
    manifest = read_manifest(whole)
    if not artifact.exists():
        raise UserError(f"{artifact} is missing though its manifest exists; delete {manifest_path(whole)}, run make")
    files = manifest["files"] if whole == artifact else part_of(manifest["files"], artifact.name)
    found, expected = current_hash(artifact, files), recorded_hash(artifact)
    if found != expected:
        damage = damage_of(artifact, files)
        which = f"{damage}; " if damage and artifact.is_dir() else ""
        raise UserError(
            f"{artifact} was changed after stage '{manifest['stage']}' made it ({which}sha256 {found[:12]}, its manifest says "
            f"{str(expected)[:12]}); restore it, or delete it and {manifest_path(whole).name} to make it again"
        )
    return found


def changed_inputs(artifact: Path, manifest: Mapping[str, Any]) -> list[tuple[Path, str, str]]:
    """Returns the inputs that have become other ones since an artifact was made from them, each with its hash then and now.

    An input that nobody has any more is none of them.
    """
    # One level, and by manifests alone: the stages before have verified the same of their own inputs.
    found = []
    for name, before in manifest["inputs"].items():
        source = Path(os.path.normpath(artifact.parent / name))
        if (now := recorded_hash(source)) not in (None, before):
            found.append((source, before, str(now)))
    return found


def stale_settings(artifact: Path, manifest: Mapping[str, Any]) -> str | None:
    """Returns how the settings that made an artifact differ from those in the settings file of its stage; None where they do not.

    The graph writes that file beside the artifact, under the stage's name. Outside a run that it has written, as where a policy
    was copied elsewhere, nothing is expected.
    """
    stage = str(manifest["stage"])
    path = artifact.parent / f"{stage}.yaml"
    if not path.is_file():
        others = sorted(each.stem for each in artifact.parent.glob("*.yaml"))
        if not others or not any((parent / "run.mk").is_file() for parent in artifact.parents):
            return None
        return f"stage '{stage}' made it, and {artifact.parent} has the settings of {', '.join(others)} alone"
    # Through JSON, as the manifest went.
    found = differences(identity(manifest["settings"]), json.loads(json.dumps(identity(read_settings(path)))))
    if not found:
        return None
    name, old, new = found[0]
    more = f" ({len(found) - 1} more differ)" if len(found) > 1 else ""
    return f"it was made with {name} {shortened(old)}, and {path} now says {shortened(new)}{more}"


def _whole(artifact: Path) -> Path:
    """Returns the artifact whose manifest records an artifact or part."""
    if manifest_path(artifact).is_file() or not manifest_path(artifact.parent).is_file():
        return artifact
    # A manifest that is damaged may have recorded it, and is the one to be told of.
    return artifact.parent if recorded_hash(artifact) is not None or finished_manifest(artifact.parent) is None else artifact


def _names(names: tuple[str, ...]) -> str:
    """Returns the first names, and how many there are more."""
    return ", ".join(names[:NAMED]) + (f" and {len(names) - NAMED} more" if len(names) > NAMED else "")
