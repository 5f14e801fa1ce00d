"""What an attacker does with a ledger: alters a value, and makes anew whatever would tell."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from handbook_ext.reports.ledger_archive import Ledger

Way = tuple[str | int, ...]
"""The keys and places that lead to a value."""


def leaves(value: Any, path: Way = ()) -> Iterator[tuple[Way, Any]]:
    """Every single value with the way to it."""
    if isinstance(value, dict | list) and value:
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from leaves(inner, (*path, key))
    else:
        yield path, value


def opened(name: str, content: bytes) -> Any:
    if name.endswith(".jsonl"):
        return [json.loads(line) for line in content.decode().splitlines()]
    return yaml.safe_load(content) if name.endswith(".yaml") else json.loads(content)


def closed(name: str, value: Any) -> bytes:
    if name.endswith(".jsonl"):
        return "".join(json.dumps(row) + "\n" for row in value).encode()
    return yaml.safe_dump(value, sort_keys=False).encode() if name.endswith(".yaml") else json.dumps(value, indent=1).encode()


def altered(ledger: Ledger, name: str, path: Way, change: Any) -> Ledger:
    """The ledger with one value of one file altered; archive_bytes makes its index anew, as an attacker would."""
    value = opened(name, ledger.files[name])
    at = value
    for key in path[:-1]:
        at = at[key]
    at[path[-1]] = change(at[path[-1]]) if callable(change) else change
    return Ledger(ledger.run, {**ledger.files, name: closed(name, value)})


def another(value: Any) -> Any:
    """Another value of the same kind."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value + 1
    return f"{value}x" if isinstance(value, str) else "x" if value is None else [*value, "x"]


def rehashed(ledger: Ledger, name: str) -> Ledger:
    """The ledger with the manifest of an artifact made for its content, and that of the report, which reads it."""
    files = dict(ledger.files)
    content = files[name]
    record = {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content)}
    whole = name.startswith("report/")
    place = "report/manifest.json" if whole else name.replace(".json", ".manifest.json")
    manifest = json.loads(files[place])
    manifest["files"][Path(name).name] |= record
    lines = [f"{each} {about['sha256']}" for each, about in manifest["files"].items()]
    manifest["sha256"] = hashlib.sha256("\n".join(lines).encode()).hexdigest() if whole else record["sha256"]
    files[place] = json.dumps(manifest).encode()
    for other in [each for each in files if each.endswith("manifest.json")]:
        reader = json.loads(files[other])
        for each in reader["inputs"]:
            if str(Path(other).parent.parent / each if other.endswith("/manifest.json") else Path(other).parent / each) == name:
                reader["inputs"][each] = manifest["sha256"]
                determined = {"inputs": reader["inputs"], "external": reader["external"]}
                kept = {key: value for key, value in reader["settings"].items() if key not in ("recipe", "overrides")}
                reader["key"] = hashlib.sha256(json.dumps({**determined, "settings": kept}, sort_keys=True).encode()).hexdigest()
                files[other] = json.dumps(reader).encode()
    return Ledger(ledger.run, files)
