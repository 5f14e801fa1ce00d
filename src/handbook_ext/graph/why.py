"""Why stages of a run would run again: which setting or input changed, from what to what."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from handbook_ext.core.artifacts import HASHES, recorded_hash, remembered_hashes
from handbook_ext.core.integrity import Damage, damage_of
from handbook_ext.core.manifests import finished_manifest, manifest_path
from handbook_ext.core.stage_settings import differences, identity, shortened
from handbook_ext.graph.makefile import stamp_file
from handbook_ext.graph.rule import whole_of
from handbook_ext.graph.run_rules import StageRule, run_rules
from handbook_ext.recipes.run import Run

EDITED = "is not what its stage made"


@dataclass(frozen=True)
class State:
    """An artifact of a run: why its stage would run, or what of a finished one is not as it was made, or neither."""

    artifact: str
    why: tuple[str, ...] = ()
    edited: str | None = None

    @property
    def told(self) -> list[str]:
        """Returns what there is to be told of it."""
        return [*self.why] if self.edited is None else [self.edited]


def why_text(run: Run, folder: Path) -> str:
    """Returns a line for each stage of a run that would run, or whose artifact was changed by hand, and how many are neither."""
    found = states(run_rules(run), folder)
    lines = [f"{each.artifact}: {'; '.join(each.told)}" for each in found if each.told]
    finished = sum(not each.told for each in found)
    return "\n".join([*lines, f"{finished} of {len(found)} stages of {run.name} are up to date"]) + "\n"


def states(rules: Sequence[StageRule], folder: Path) -> list[State]:
    """Returns the state of each artifact of a run, in the order of the stages.

    An artifact that was changed by hand is not made again for that, and what reads it refuses: so nothing waits for either.
    """
    found: list[State] = []
    again: set[str] = set()
    edited: set[str] = set()
    # A file that only has another time, as in a run that was copied, is read once.
    hash_of = remembered_hashes(folder / HASHES)
    for rule in rules:
        artifact = folder / rule.artifact
        manifest = finished_manifest(artifact)
        damage = None if manifest is None or not artifact.exists() else damage_of(artifact, manifest["files"], hash_of)
        why = _own_reasons(rule, folder, manifest)
        if damage and made_again(rule, damage):
            why.append(str(damage))
        why += [f"{name} will be made first" for name in _of(again, rule.inputs)]
        by_hand = None
        if why:
            refused = _of(edited, rule.inputs)
            why += [f"but {name} was changed by hand, so it will refuse" for name in refused]
            again |= set() if refused else {rule.artifact}
        elif damage:
            edited.add(rule.artifact)
            by_hand = f"{EDITED}: {damage}; {remedy(artifact, damage)}"
        found.append(State(rule.artifact, tuple(why), by_hand))
    return found


def made_again(rule: StageRule, damage: Damage) -> bool:
    """Tells whether a damaged artifact is made again without a question: nothing of anybody's is lost, and no device computes."""
    return damage.only_missing and not rule.on_device


def remedy(artifact: Path, damage: Damage) -> str:
    """Returns what to do about an artifact that is not what its stage made."""
    if damage.added and not (damage.changed or damage.missing):
        return "move that elsewhere"
    return f"what reads it refuses: restore it, or delete {manifest_path(artifact)}, and make makes it again"


def _of(artifacts: set[str], names: Sequence[str]) -> list[str]:
    """Returns the names that are one of the artifacts, or a part of one, each once."""
    return [name for name in dict.fromkeys(names) if whole_of(name) in artifacts]


def _own_reasons(rule: StageRule, folder: Path, manifest: dict[str, Any] | None) -> list[str]:
    """Returns why a stage would run whatever happens to the stages before it, and whatever files of its artifact are left."""
    artifact = folder / rule.artifact
    path = manifest_path(artifact)
    if not path.is_file():
        # The manifest of a folder goes with it.
        return ["its manifest is missing" if artifact.exists() else "it is not there: never made, or deleted"]
    if manifest is None:
        return ["its manifest is damaged"]
    if not artifact.exists():
        return ["it was deleted"]
    changes = differences(identity(manifest["settings"]), identity(rule.settings.model_dump(mode="json")))
    why = [f"{name}: {shortened(old)} -> {shortened(new)}" for name, old, new in changes]
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
