"""What must hold between the manifests, settings and artifacts of an unpacked ledger: hashes, counts, and the chain of inputs."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from handbook_ext.core.artifacts import finished_manifest, hash_of_files, json_object, recorded_hash, sha256_of, weights_hash
from handbook_ext.core.errors import UserError
from handbook_ext.core.jsonl import iter_jsonl
from handbook_ext.core.kept import KEPT, iteration_of, kept_identity, place_of
from handbook_ext.core.stage_settings import determinants, differences, key_of, read_settings
from handbook_ext.reports.ledger_pack import artifacts_of
from handbook_ext.reports.privacy import has_gaps

Json = dict[str, Any]


def manifest_faults(run: Path) -> Iterator[str]:
    """Yields what is wrong in single manifests: hashes, key, settings, counts, and what the artifact beside it holds."""
    for artifact in artifacts_of(run):
        manifest = finished_manifest(artifact)
        faults = [_hash_faults, _settings_faults, _count_faults] if manifest is not None else []
        name = str(artifact.relative_to(run))
        if manifest is None:
            yield f"{name}: its manifest is damaged"
        else:
            yield from (f"{name}: {fault}" for look in faults for fault in look(artifact, manifest))


def gaps(run: Path) -> list[str]:
    """Returns the files from which paths or hosts were taken out: neither a hash nor a key holds these."""
    found = []
    for path in sorted(run.rglob("*")):
        if (path.suffix == ".json" and has_gaps(json_object(path))) or (path.suffix == ".yaml" and has_gaps(read_settings(path))):
            found.append(str(path.relative_to(run)))
    return found


def _hash_faults(artifact: Path, manifest: Json) -> Iterator[str]:
    """Yields which hashes of a manifest are not those of its files, its settings and its weights."""
    files = manifest["files"]
    if not files or hash_of_files(artifact, files) != manifest["sha256"]:
        yield "the sha256 of its manifest is not that of the files that the manifest lists"
    for name, record in files.items():
        path = artifact / name if artifact.is_dir() else artifact
        if not path.is_file():
            continue
        found = {"sha256": sha256_of(path), "size": path.stat().st_size}
        if found != {each: record[each] for each in found} and not has_gaps(json_object(path)):
            yield f"{name} is not what its manifest says (sha256 {found['sha256'][:12]}, recorded {str(record['sha256'])[:12]})"
    determined = determinants(manifest["settings"], manifest["inputs"], manifest["external"])
    if manifest["key"] != key_of(determined) and not has_gaps(determined):
        yield "the key of its manifest is not that of its settings and inputs"
    weights = weights_hash({name: record["sha256"] for name, record in files.items()})
    if artifact.name == "policy" and manifest.get("policy") != weights:
        yield "the policy's hash is not that of its weights and configuration"


def _count_faults(artifact: Path, manifest: Json) -> Iterator[str]:
    """Yields which counts of a manifest do not add up, or are not those of the rows."""
    counts = manifest["counts"]
    if counts["in"] != counts["out"] + sum(counts.get("dropped", {}).values()):
        yield f"{counts['in']} rows in are not {counts['out']} out and those dropped, {counts.get('dropped', {})}"
    if artifact.suffix != ".jsonl":
        return
    rows = [row for _, row in iter_jsonl(artifact)]
    if len(rows) != counts["out"]:
        yield f"has {len(rows)} rows, and its manifest counts {counts['out']}"
    if manifest["stage"] == "select":
        origins = Counter(f"{row['chosen_origin']} over {row['rejected_origin']}" for row in rows)
        found = {"origins": dict(origins), "swapped": sum(row["swapped"] for row in rows)}
        stated = {name: manifest[name] for name in found if name in manifest}
        if stated != {name: found[name] for name in stated}:
            yield f"its manifest counts the pairs as {stated}, and they are {found}"


def _settings_faults(artifact: Path, manifest: Json) -> Iterator[str]:
    """Yields in what a manifest differs from the settings of its stage, which it repeats."""
    settings = manifest["settings"]
    path = artifact.parent / f"{manifest['stage']}.yaml"
    try:
        stated = read_settings(path)
    except UserError as error:
        yield str(error)
        return
    yield from (
        f"{name} is {_short(before)} in its manifest and {_short(after)} in {path.name}"
        for name, before, after in differences(settings, stated)
    )
    for name in ("stage", "recipe", "overrides", "seed", "iteration"):
        if manifest[name] != settings.get(name):
            yield f"its manifest says {name} {_short(manifest[name])}, its settings {_short(settings.get(name))}"


def chain_faults(run: Path) -> Iterator[str]:
    """Yields where a stage's recorded inputs are not those that it states, or not the artifacts that are inside."""
    recipes = set()
    for artifact in artifacts_of(run):
        manifest = finished_manifest(artifact)
        if manifest is None:
            continue  # Told already.
        name = str(artifact.relative_to(run))
        recipes.add((str(manifest["recipe"]), tuple(map(str, manifest["overrides"]))))
        yield from (f"{name}: {fault}" for fault in _input_faults(run, artifact, manifest))
        if manifest["stage"] == "train":
            before = finished_manifest(run / str(manifest["settings"]["policy"]) / "policy")
            if before is not None and manifest.get("start") != before.get("policy"):
                yield f"{name}: was trained from another policy than {manifest['settings']['policy']} inside"
        if artifact.name == "eval.json":
            yield from (f"{name}: {fault}" for fault in _policy_faults(run, artifact))
    if len(recipes) > 1:
        yield f"its stages are of several recipes: {', '.join(sorted(str(recipe) for recipe, _ in recipes))}"


def _input_faults(run: Path, artifact: Path, manifest: Json) -> Iterator[str]:
    """Yields which recorded inputs of a stage are not those of its settings, or not those inside."""
    stated = manifest["settings"].get("inputs", {}).values()
    names = {os.path.normpath(each) for role in stated for each in ([role] if isinstance(role, str) else role)}
    if names != set(manifest["inputs"]):
        yield f"its settings name the inputs {sorted(names)}, its manifest {sorted(manifest['inputs'])}"
    for each, before in manifest["inputs"].items():
        source = Path(os.path.normpath(artifact.parent / each))
        if not source.is_relative_to(run) or (now := recorded_hash(source)) is None:
            yield f"was made from {each}, of which the ledger has no manifest"
        elif now != before:
            yield f"was made from another {each} (sha256 {str(before)[:12]}, inside is {now[:12]})"


def _policy_faults(run: Path, artifact: Path) -> Iterator[str]:
    """Yields where an evaluation names another policy than the one whose folder it lies in."""
    content = json_object(artifact) or {}
    folder = artifact.relative_to(run).parts[0]
    stated = content.get("policy") or {}
    if stated.get("name") != folder:
        yield f"is of policy {stated.get('name')!r}, and lies in the folder of {folder}"
    place = run / place_of(folder)
    manifest = finished_manifest(run / place_of(iteration_of(folder)))
    if manifest is None:
        return
    identity = kept_identity(manifest["files"], place.name) if place.name.startswith(KEPT) else manifest.get("policy")
    if stated.get("sha256") != identity:
        was, inside = (str(each)[:12] for each in (stated.get("sha256"), identity))
        yield f"was made of another policy (sha256 {was}, inside is {inside})"


def _short(value: Any) -> str:
    """Returns a value as JSON, shortened."""
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "..."
