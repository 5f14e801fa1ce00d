"""A run's folder: what each stage reads and leaves, hashed, published whole, refused when stale.

A stage works in a hidden folder beside its artifact and renames the result into place. The manifest comes last, so a
stage is done exactly when its manifest exists and names the settings and inputs that hold now.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from handbook_ext.core.artifacts import manifest_path, part_hashes, sha256_of, verified
from handbook_ext.core.errors import UserError
from handbook_ext.core.provenance import code_state, hardware, package_versions

# Set to 1, a stage takes over what another run under the same root made from equal settings and inputs.
SHARE = "HANDBOOK_SHARE"
# What every manifest says of its own making; the rest are a stage's findings.
OWN_FACTS = {
    "stage", "recipe", "iteration", "sha256", "parts", "key", "inputs", "external", "settings", "counts", "seed", "seconds",
    "code", "hardware", "packages", "shared_from",
}  # fmt: skip


@dataclass
class Stage:
    """One stage's work on one artifact: its settings, its verified inputs, its workspace and its manifest."""

    artifact: Path
    settings: dict[str, Any]
    inputs: list[Path]
    hashes: dict[str, str] = field(default_factory=dict)
    external: dict[str, str] = field(default_factory=dict)
    started: float = field(default_factory=time.time)
    locks: list[int] = field(default_factory=list)

    @property
    def name(self) -> str:
        """Returns the stage's name, as its settings say it."""
        return str(self.settings["stage"])

    @property
    def workspace(self) -> Path:
        """Returns the hidden folder that a killed stage leaves and its repeat goes on from."""
        return self.artifact.with_name(f".{self.artifact.name}.partial")

    @property
    def out(self) -> Path:
        """Returns the path in the workspace that becomes the artifact."""
        return self.workspace / self.artifact.name

    def finished(self) -> bool:
        """Verifies the inputs, then tells whether the artifact was made from exactly them and these settings.

        A finished artifact is touched, so that make sees it newer than its inputs. Otherwise the workspace is made
        ready; one left by other settings or inputs is deleted, saying what changed.
        """
        self.artifact.parent.mkdir(parents=True, exist_ok=True)
        self._lock(self.artifact.parent)
        self.hashes = {os.path.relpath(path, self.artifact.parent): verified(path) for path in self.inputs}
        manifest = manifest_path(self.artifact)
        if manifest.is_file() and self.artifact.exists():
            told = json.loads(manifest.read_text())
            if told["key"] == self._key() and told["sha256"] == sha256_of(self.artifact):
                for path in (self.artifact, manifest):
                    os.utime(path)
                sys.stderr.write(f"{self.name}: {self.artifact} is up to date\n")
                self.release()
                return True
        self._prepare_workspace()
        if os.environ.get(SHARE) != "1":
            return False
        locks = self._run().parent / ".shared"
        locks.mkdir(exist_ok=True)
        self._lock(locks / self._key())
        return self._shared()

    def publish(self, counts: dict[str, Any], **facts: Any) -> None:
        """Puts the finished `out` and its manifest in place; counts are {"in", "out", "dropped": {reason: n}}.

        Raises UserError when rows are lost: in must equal out plus the dropped ones.
        """
        lost = counts["in"] - counts["out"] - sum(counts.get("dropped", {}).values())
        if lost:
            raise UserError(f"{self.artifact}: {lost} of {counts['in']} rows are lost without a reason {counts}")
        manifest = {
            "stage": self.name, "recipe": self.settings.get("recipe"), "iteration": self.settings.get("iteration"),
            "sha256": sha256_of(self.out), "parts": part_hashes(self.out) if self.out.is_dir() else {},
            "key": self._key(), "inputs": self.hashes, "external": self.external,
            "settings": self.settings, "counts": counts, "seed": self.settings.get("seed"),
            "seconds": round(time.time() - self.started, 2), "code": code_state(), "hardware": hardware(),
            "packages": package_versions(), **facts,
        }  # fmt: skip
        path = manifest_path(self.artifact)
        if self.out.is_dir():
            _write_text(self.out / path.name, json.dumps(manifest, indent=2))
            _sync_folder(self.out)
            aside = self.workspace / "replaced"
            if self.artifact.exists():
                self.artifact.rename(aside)
            self.out.rename(self.artifact)
        else:
            _write_text(self.workspace / path.name, json.dumps(manifest, indent=2))
            self.out.replace(self.artifact)
            (self.workspace / path.name).replace(path)
        shutil.rmtree(self.workspace)
        self.release()
        sys.stderr.write(f"{self.name}: {self.artifact} is done ({manifest['seconds']:.0f} s)\n")

    def release(self) -> None:
        """Lets other processes work on this artifact, as the end of this process would."""
        while self.locks:
            os.close(self.locks.pop())

    def _lock(self, place: Path) -> None:
        """Waits until no other process works there: one that outlived its make, or a run that makes the same by content."""
        self.locks.append(os.open(place, os.O_RDONLY if place.is_dir() else os.O_RDONLY | os.O_CREAT))
        try:
            fcntl.flock(self.locks[-1], fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            sys.stderr.write(f"{self.name}: {self.artifact} waits for another process that is making the same\n")
            fcntl.flock(self.locks[-1], fcntl.LOCK_EX)

    def _run(self) -> Path:
        """Returns the folder of the run."""
        return next((parent for parent in self.artifact.parents if (parent / "run.mk").is_file()), self.artifact.parent)

    def _shared(self) -> bool:
        """Takes over a sibling run's artifact that was made from the same settings and inputs; tells whether there was one.

        The files of a folder are linked, not copied: methods that share an SFT policy keep its weights on disk once.
        """
        run = self._run()
        inside = self.artifact.relative_to(run)
        for manifest in sorted(run.parent.glob(f"*/{manifest_path(inside)}")):
            told, twin = json.loads(manifest.read_text()), run.parent / manifest.relative_to(run.parent).parts[0] / inside
            if told["key"] != self._key() or not twin.exists() or sha256_of(twin) != told["sha256"]:
                continue
            if twin.is_dir():
                shutil.rmtree(self.out, ignore_errors=True)  # Shards that a killed process had finished.
                shutil.copytree(twin, self.out, copy_function=os.link, ignore=shutil.ignore_patterns("manifest.json"))
            else:
                shutil.copyfile(twin, self.out)  # A new time, or make would take it for older than its inputs.
            self.publish(told["counts"], **{name: told[name] for name in told.keys() - OWN_FACTS}, shared_from=str(twin))
            return True
        return False

    def _key(self) -> str:
        """Returns the hash of everything that determines the artifact."""
        return hashlib.sha256(json.dumps(self._determinants(), sort_keys=True).encode()).hexdigest()

    def _determinants(self) -> dict[str, Any]:
        """Returns settings and input hashes; the name of the recipe does not matter, only what it says."""
        settings = {name: value for name, value in self.settings.items() if name != "recipe"}
        return {"settings": settings, "inputs": self.hashes, "external": self.external}

    def _prepare_workspace(self) -> None:
        """Makes the workspace, emptied first when it belongs to other settings or inputs."""
        told = self.workspace / "stage.json"
        if self.workspace.exists():
            changed = ["its record is missing"]
            if told.is_file():
                changed = _changed(json.loads(told.read_text()), json.loads(json.dumps(self._determinants())))
            if changed:
                sys.stderr.write(f"{self.name}: starting afresh, because of {', '.join(changed)}\n")
                shutil.rmtree(self.workspace)
        self.workspace.mkdir(parents=True, exist_ok=True)
        if not told.is_file():
            _write_text(told, json.dumps(self._determinants()))


def _changed(before: Any, after: Any, prefix: str = "") -> list[str]:
    """Returns the dotted names under which two nested mappings differ."""
    if not (isinstance(before, dict) and isinstance(after, dict)):
        return [] if before == after else [prefix]
    names = []
    for name in sorted({*before, *after}):
        names += _changed(before.get(name), after.get(name), f"{prefix}.{name}" if prefix else name)
    return names


def _write_text(path: Path, text: str) -> None:
    """Writes beside the file, flushes to disk, renames."""
    partial = path.with_name(path.name + ".partial")
    with partial.open("w", encoding="utf-8") as out:
        out.write(text + "\n")
        out.flush()
        os.fsync(out.fileno())
    partial.replace(path)


def _sync_folder(folder: Path) -> None:
    """Flushes every file of a folder to disk, so that a rename never outlives its content."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as stream:
                os.fsync(stream.fileno())
