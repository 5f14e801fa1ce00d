"""A stage of a run: its inputs and its artifact, hashed, published whole, made again when its inputs have changed.

`Stage.open(folder, Settings)` reads the settings file that the graph wrote for the stage, with the paths of its inputs: make
waits for the very same ones. A stage works in a hidden folder beside its artifact and renames the result into place. The
manifest comes last, so a stage is done exactly when its manifest exists and names the settings and inputs that hold now.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import time
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any, Generic, Self, TypeVar

from handbook_ext.core import console
from handbook_ext.core.artifacts import (
    HASHES,
    Files,
    current_hash,
    file_records,
    finished_manifest,
    flush_folder,
    hash_of_files,
    json_object,
    manifest_path,
    records_beside,
    remembered_hashes,
    weights_hash,
)  # fmt: skip
from handbook_ext.core.errors import UserError
from handbook_ext.core.integrity import check_place, verified
from handbook_ext.core.jsonl import write_json
from handbook_ext.core.provenance import code_state, hardware, launch_facts, package_versions, peak_memory
from handbook_ext.core.sharing import share_file, sibling_of
from handbook_ext.core.stage_settings import StageSettings, determinants, differences, key_of, read_settings_as

# Set to 1, a stage reuses the artifact of a sibling run with identical settings and inputs.
SHARE = "HANDBOOK_SHARE"
# What every manifest records of how it was made; the other entries are specific to a stage.
OWN_FACTS = {
    "stage", "recipe", "overrides", "iteration", "sha256", "files", "key", "inputs", "external", "settings", "counts", "seed",
    "seconds", "code", "hardware", "packages", "shared_from", "launch", "beside", "peak_memory",
}  # fmt: skip


S = TypeVar("S", bound=StageSettings)


class Stage(Generic[S]):
    """One stage's work on one artifact: its settings, its verified inputs, its workspace and its manifest."""

    def __init__(self, artifact: Path, settings: S, raw: dict[str, Any] | None = None) -> None:
        """Takes the artifact to make and what determines it; `raw` is the mapping as the settings file has it."""
        self.artifact, self.settings = artifact, settings
        self.raw = settings.model_dump(mode="json") if raw is None else raw
        self.external: dict[str, str] = {}
        self.hashes: dict[str, str] = {}
        self._started = time.time()
        self._locks: list[int] = []

    @classmethod
    def open(cls, folder: Path, kind: type[S]) -> Self:
        """Returns the stage whose settings file lies in a run's or an iteration's folder; a UserError where there is none."""
        path = folder / kind.file
        settings, raw = read_settings_as(kind, path)
        console.log_to(path.with_suffix(".log"))
        return cls(path.parent / kind.artifact, settings, raw)

    def input(self, role: str) -> Path:
        """Returns the path of the one input of a role."""
        (path,) = self.inputs(role)
        return path

    def inputs(self, role: str | None = None) -> list[Path]:
        """Returns the paths of the inputs of a role, none where the stage has none; of all roles without one."""
        roles = self.settings.inputs
        stated = list(roles.values()) if role is None else [roles[role]] if role in roles else []
        names = [name for each in stated for name in ([each] if isinstance(each, str) else each)]
        return [Path(os.path.normpath(self.artifact.parent / name)) for name in names]

    @property
    def name(self) -> str:
        """Returns the stage's name."""
        return self.settings.stage

    @cached_property
    def run(self) -> Path:
        """Returns the folder of the run."""
        return next((parent for parent in self.artifact.parents if (parent / "run.mk").is_file()), self.artifact.parent)

    @cached_property
    def hash_of(self) -> Callable[[Path], str]:
        """Returns the function that hashes files outside the run, such as a checkpoint's, each read once per run."""
        return remembered_hashes(self.run / HASHES)

    @property
    def workspace(self) -> Path:
        """Returns the hidden folder that a killed stage leaves and from which its repeat resumes."""
        return self.artifact.with_name(f".{self.artifact.name}.partial")

    @property
    def out(self) -> Path:
        """Returns the path in the workspace that becomes the artifact."""
        return self.workspace / self.artifact.name

    def finished(self, *, share: bool = False) -> bool:
        """Verifies the inputs, then returns whether the artifact was made from exactly these inputs and settings.

        With `share`, as under HANDBOOK_SHARE=1, a sibling's equal artifact is taken over. A finished one is touched, so that make
        sees it newer than its inputs. Otherwise the workspace is made ready; one left by other settings or inputs is deleted.
        """
        self.artifact.parent.mkdir(parents=True, exist_ok=True)
        console.begin(self.name, self.artifact)
        self._lock(self.artifact.parent)
        check_place(self.artifact)
        # Relative names, so that a run folder may be moved.
        # What another run expects of its own stages is its own matter: a comparison takes their artifacts as they are.
        self.hashes = {
            os.path.relpath(path, self.artifact.parent): verified(path, settings=path.is_relative_to(self.run))
            for path in self.inputs()
        }
        if self._up_to_date():
            # Make compares times alone: an input that was written anew with equal content would start this stage each time.
            for each in (self.artifact, manifest_path(self.artifact)):
                os.utime(each)
            self._remove_workspace()  # A kill while publishing can leave it, with the artifact that was replaced.
            console.end(self.artifact, "up to date")
            self.release()
            return True
        self._prepare_workspace()
        if not share and os.environ.get(SHARE) != "1":
            return False
        (locks := self.run.parent / ".shared").mkdir(exist_ok=True)
        self._lock(locks / self._key())
        return self._reuse_sibling()

    def publish(self, counts: dict[str, Any], *, files: Files | None = None, **facts: Any) -> None:
        """Publishes `out`: renames it and its manifest to the artifact's path; counts are {"in", "out", "dropped": {reason: n}}.

        The manifest of a policy has its identity, `weights_hash`. `files` are records of unchanged files.
        Raises UserError when rows are lost: in must equal out plus the dropped ones.
        """
        lost = counts["in"] - counts["out"] - sum(counts.get("dropped", {}).values())
        if lost:
            raise UserError(f"{self.artifact}: {lost} of {counts['in']} rows are lost without a reason {counts}")
        files = file_records(self.out) if files is None else files
        if self.artifact.name == "policy":
            facts["policy"] = weights_hash({name: record["sha256"] for name, record in files.items()})
        manifest = {
            "stage": self.name, "recipe": self.settings.recipe, "overrides": self.settings.overrides,
            "iteration": getattr(self.settings, "iteration", None), "sha256": hash_of_files(self.out, files), "files": files,
            "key": self._key(), "inputs": self.hashes, "external": self.external,
            "settings": self.raw, "counts": counts, "seed": self.settings.seed, "launch": launch_facts(),
            "seconds": round(time.time() - self._started, 2), "code": code_state(), "hardware": hardware(),
            "packages": package_versions(), "peak_memory": peak_memory(), "beside": records_beside(self.out), **facts,
        }  # fmt: skip
        path = manifest_path(self.artifact)
        if self.out.is_dir():
            write_json(self.out / path.name, manifest, indent=2)
            flush_folder(self.out)
            # A folder cannot be renamed over another one that is not empty.
            aside = self.workspace / "replaced"
            shutil.rmtree(aside, ignore_errors=True)  # Of a process that was killed before it had removed it.
            if self.artifact.exists():
                self.artifact.rename(aside)
            self.out.rename(self.artifact)
        else:
            write_json(self.workspace / path.name, manifest, indent=2)
            # The manifest last: if the process dies in between, the old one does not match the file, and the stage runs again.
            self.out.replace(self.artifact)
            (self.workspace / path.name).replace(path)
        shutil.rmtree(self.workspace)
        self.release()
        console.end(self.artifact, "done", manifest["seconds"])

    def release(self) -> None:
        """Releases the locks of this artifact."""
        while self._locks:
            os.close(self._locks.pop())

    def _lock(self, path: Path) -> None:
        """Waits until no other process holds the lock: left over from an interrupted make, or a run with an identical stage."""
        # flock, which the kernel releases with the process: a lock file would outlive a killed one.
        self._locks.append(os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDONLY | os.O_CREAT))
        try:
            fcntl.flock(self._locks[-1], fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            console.say(f"{self.name}: waiting for another process that works in {path}")
            fcntl.flock(self._locks[-1], fcntl.LOCK_EX)

    def _reuse_sibling(self) -> bool:
        """Returns whether a sibling run has an artifact of identical settings and inputs, which is then published here as well.

        Methods that share an SFT policy keep its weights on disk once.
        """
        found = sibling_of(self.run, self.artifact, self._key())
        if found is None:
            return False
        sibling, manifest = found
        if sibling.is_dir():
            shutil.rmtree(self.out, ignore_errors=True)  # Shards that a killed process had finished.
            shutil.copytree(sibling, self.out, copy_function=share_file, ignore=shutil.ignore_patterns("manifest.json"))
        else:
            shutil.copyfile(sibling, self.out)  # Not linked: a new modification time, or make would start the stage again.
        findings = {name: manifest[name] for name in manifest.keys() - OWN_FACTS}
        linked = manifest["files"] if sibling.is_dir() else None
        self.publish(manifest["counts"], files=linked, **findings, shared_from=str(sibling))
        return True

    def _up_to_date(self) -> bool:
        """Returns whether the artifact is there as its manifest describes it, made from these settings and inputs."""
        manifest = finished_manifest(self.artifact)
        if manifest is None or not self.artifact.exists() or manifest["key"] != self._key():
            return False
        return bool(manifest["sha256"] == current_hash(self.artifact, manifest["files"]))

    def _key(self) -> str:
        """Returns the hash of everything that determines the artifact."""
        return key_of(self._determinants())

    def _determinants(self) -> dict[str, Any]:
        """Returns the settings and input hashes that identify the artifact; the recipe's name is not among them."""
        return determinants(self.raw, self.hashes, self.external)

    def _remove_workspace(self) -> None:
        """Removes the workspace, if there is one, whatever it is."""
        if self.workspace.is_dir() and not self.workspace.is_symlink():
            shutil.rmtree(self.workspace)
        else:
            self.workspace.unlink(missing_ok=True)

    def _prepare_workspace(self) -> None:
        """Makes the workspace, emptied first when it belongs to other settings or inputs."""
        record = self.workspace / "stage.json"
        if os.path.lexists(self.workspace):
            before = None if self.workspace.is_symlink() else json_object(record)  # A link leads to what is none.
            # Through JSON, as the record went: a tuple would differ from the list that it became.
            changes = differences(before, json.loads(json.dumps(self._determinants()))) if before is not None else []
            changed = ["its record, which is missing or damaged"] if before is None else [name for name, _, _ in changes]
            if changed:
                console.say(f"{self.name}: starting afresh, because of {', '.join(changed)}")
                self._remove_workspace()
        self.workspace.mkdir(parents=True, exist_ok=True)
        if not record.is_file():
            write_json(record, self._determinants())
