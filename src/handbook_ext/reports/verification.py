"""Whether all artifacts of a run are what their stages made: every file is read, and settings, inputs and chain are compared."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from handbook_ext.core.artifacts import files_of, hash_of_files, sha256_of, weights_hash
from handbook_ext.core.integrity import Damage, changed_inputs
from handbook_ext.core.manifests import POLICY, finished_manifest, manifest_path
from handbook_ext.core.stage_settings import determinants, differences, identity, key_of, shortened
from handbook_ext.graph.rule import StageRule, whole_of
from handbook_ext.reports.ledger_pack import artifacts_of

OK, CHANGED, MISSING, STALE, NOT_MADE = "ok", "changed", "missing", "stale", "not made"


@dataclass(frozen=True)
class Finding:
    """What was found of an artifact: one of the words above, and the reason or the size."""

    artifact: str
    word: str
    about: str = ""

    @property
    def wrong(self) -> bool:
        """Tells whether it is not as it should be; what was never made is."""
        return self.word not in (OK, NOT_MADE)


def verify_run(rules: Sequence[StageRule], folder: Path) -> Iterator[Finding]:
    """Yields a finding for each artifact of a run, in the order of the stages, then for those that no stage of the recipe makes.

    One that is not there is missing where a finished stage has read it, otherwise it was not made. A stage that was made from an
    artifact which is not as it should be is stale.
    """
    finished = {rule.artifact for rule in rules if finished_manifest(folder / rule.artifact) is not None}
    read = {whole_of(name) for rule in rules if rule.artifact in finished for name in rule.inputs}
    wrong: set[str] = set()
    for rule in rules:
        found = _of_files(folder, rule.artifact, read=rule.artifact in read)
        if found.word == OK:
            found = _of_chain(rule, folder, wrong) or found
        wrong |= {rule.artifact} if found.wrong else set()
        yield found
    made = {rule.artifact for rule in rules}
    for artifact in (str(path.relative_to(folder)) for path in artifacts_of(folder)):
        if artifact not in made:
            found = _of_files(folder, artifact, read=False)
            yield Finding(artifact, found.word, f"{found.about}; no stage of the recipe makes it")


def _of_files(folder: Path, artifact: str, *, read: bool) -> Finding:
    """Returns what is found of an artifact by its manifest and its files alone; `read`: a finished stage was made from it."""
    path = folder / artifact
    manifest = finished_manifest(path)
    if manifest is None:
        if manifest_path(path).is_file():
            return Finding(artifact, CHANGED, "its manifest is damaged")
        return Finding(artifact, MISSING if read else NOT_MADE, "what was made from it is here" if read else "")
    if not path.exists():
        return Finding(artifact, MISSING, "its manifest is here")
    here, files = files_of(path), manifest["files"]
    changed = [name for name, each in here.items() if name in files and not _is(each, files[name])]
    beside = manifest.get("beside", {})  # Older manifests have none.
    lost = [name for name in beside if not (path / name).is_file()]
    changed += [name for name, record in beside.items() if name not in lost and not _is(path / name, record)]
    missing = [*(name for name in files if name not in here), *lost]
    damage = Damage(tuple(missing), tuple(changed), tuple(each for each in here if each not in files))
    if damage:
        return Finding(artifact, MISSING if damage.only_missing else CHANGED, str(damage))
    if not _consistent(path, manifest):
        return Finding(artifact, CHANGED, "its manifest is not that of its stage: a hash in it does not fit the rest")
    size = sum(record["size"] for record in files.values())
    return Finding(artifact, OK, f"{len(files)} {'file' if len(files) == 1 else 'files'}, {size / 1e6:.1f} MB")


def _is(path: Path, record: Mapping[str, Any]) -> bool:
    """Tells whether a file is the recorded one, whatever its time."""
    return bool(path.stat().st_size == record["size"] and sha256_of(path) == record["sha256"])


def _consistent(artifact: Path, manifest: Mapping[str, Any]) -> bool:
    """Tells whether the hashes of a manifest are those of what it lists."""
    files = manifest["files"]
    hashes = {name: record["sha256"] for name, record in files.items()}
    key = key_of(determinants(manifest["settings"], manifest["inputs"], manifest.get("external", {})))
    policy = artifact.name != POLICY or manifest[POLICY] == weights_hash(hashes)
    return bool(policy and key == manifest["key"] and hash_of_files(artifact, files) == manifest["sha256"])


def _of_chain(rule: StageRule, folder: Path, wrong: set[str]) -> Finding | None:
    """Returns what is wrong with an artifact whose files are right: its settings or its inputs; None where nothing is."""
    artifact = folder / rule.artifact
    manifest = finished_manifest(artifact) or {}
    changes = differences(identity(manifest["settings"]), identity(rule.settings.model_dump(mode="json")))
    reasons = [f"made with {name} {shortened(old)}, now {shortened(new)}" for name, old, new in changes[:1]]
    reasons += [f"{len(changes) - 1} more settings differ"] if len(changes) > 1 else []
    reasons += [f"made from another {os.path.relpath(source, folder)}" for source, _, _ in changed_inputs(artifact, manifest)]
    bad = [name for name in dict.fromkeys(map(whole_of, rule.inputs)) if name in wrong]
    more = f" and {len(bad) - 1} more" if len(bad) > 1 else ""
    reasons += [f"made from {bad[0]}{more}, not as it was made"] if bad else []
    return Finding(rule.artifact, STALE, "; ".join(reasons)) if reasons else None
