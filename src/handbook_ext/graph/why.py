"""Why stages of a run would run again: which setting or input changed, from what to what."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from handbook_ext.core.artifacts import current_hash, manifest_path, recorded_hash
from handbook_ext.core.stage_settings import NOT_IDENTITY, differences
from handbook_ext.graph.makefile import stamp_file
from handbook_ext.graph.rule import whole_of
from handbook_ext.graph.run_rules import StageRule, run_rules
from handbook_ext.recipes.run import Run

SHOWN = 60  # Characters of a value.
EDITED = "its files were changed by hand: the stages that read it will refuse; restore it, or delete it with its manifest"


def why_text(run: Run, folder: Path) -> str:
    """Returns a line for each stage of a run that would run, or whose artifact was changed by hand, and how many are neither."""
    found = reasons(run_rules(run), folder)
    lines = [f"{artifact}: {'; '.join(why)}" for artifact, why in found if why]
    finished = sum(not why for _, why in found)
    return "\n".join([*lines, f"{finished} of {len(found)} stages of {run.name} are up to date"]) + "\n"


def reasons(rules: Sequence[StageRule], folder: Path) -> list[tuple[str, list[str]]]:
    """Returns each artifact of a run with why its stage would run, in the order of the stages; no reason: it is up to date.

    An artifact that was changed by hand is not made again for that, and what reads it refuses: so nothing waits for either.
    """
    found: list[tuple[str, list[str]]] = []
    again: set[str] = set()
    edited: set[str] = set()
    for rule in rules:
        why = _own_reasons(rule, folder)
        why += [f"{name} will be made first" for name in _of(again, rule.inputs)]
        refused = _of(edited, rule.inputs)
        if why and refused:
            why += [f"but {name} was changed by hand, so it will refuse" for name in refused]
        elif why:
            again.add(rule.artifact)
        elif _changed_by_hand(folder / rule.artifact):
            edited.add(rule.artifact)
            why = [EDITED]
        found.append((rule.artifact, why))
    return found


def _of(artifacts: set[str], names: Sequence[str]) -> list[str]:
    """Returns the names that are one of the artifacts, or a part of one, each once."""
    return [name for name in dict.fromkeys(names) if whole_of(name) in artifacts]


def _changed_by_hand(artifact: Path) -> bool:
    """Tells whether a finished artifact is another one than its manifest says."""
    manifest = json.loads(manifest_path(artifact).read_text(encoding="utf-8"))
    return bool(current_hash(artifact, manifest["files"]) != manifest["sha256"])


def _own_reasons(rule: StageRule, folder: Path) -> list[str]:
    """Returns why a stage would run whatever happens to the stages before it."""
    artifact = folder / rule.artifact
    path = manifest_path(artifact)
    if not path.is_file():
        # The manifest of a folder goes with it.
        return ["its manifest is missing" if artifact.exists() else "it is not there: never made, or deleted"]
    if not artifact.exists():
        return ["it was deleted"]
    manifest: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    before = {name: value for name, value in manifest["settings"].items() if name not in NOT_IDENTITY}
    now = {name: value for name, value in rule.settings.model_dump(mode="json").items() if name not in NOT_IDENTITY}
    why = [f"{name}: {_short(old)} -> {_short(new)}" for name, old, new in differences(before, now)]
    for name in rule.inputs:
        relative = os.path.relpath(folder / name, artifact.parent)
        old, new = manifest["inputs"].get(relative), recorded_hash(folder / name)
        if old is not None and new is not None and old != new:
            why.append(f"{name} is another one: sha256 {old[:12]} -> {new[:12]}")
    # By the stamp, as make decides: a file that took another's place may be older than the artifact.
    stamp = folder / stamp_file(rule)
    if rule.external and stamp.is_file() and stamp.stat().st_mtime_ns > path.stat().st_mtime_ns:
        names = ", ".join(path.name for path in rule.external[:3]) + ", ..." * (len(rule.external) > 3)
        why.append(f"a file outside the run changed, of: {names}; its content decides")
    return why


def _short(value: Any) -> str:
    """Returns a value as JSON, shortened."""
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= SHOWN else text[: SHOWN - 3] + "..."
