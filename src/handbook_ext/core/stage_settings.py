"""The settings file of a stage: its common keys, reading it, and the differences between two of them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from handbook_ext.core.errors import UserError

# The recipe's name is not part of a stage's identity: recipes with equal settings share artifacts.
NOT_IDENTITY = {"recipe", "overrides"}
SHOWN = 60  # Characters of a value in a line.


class StageSettings(BaseModel):
    """The keys of every settings file. `inputs` are artifacts by role, as paths from the file's own folder."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())
    file: ClassVar[str]
    artifact: ClassVar[str]

    stage: str
    recipe: str = ""
    overrides: list[str] = []
    seed: int = 0
    inputs: dict[str, str | list[str]] = {}


S = TypeVar("S", bound=StageSettings)


def read_settings(path: Path) -> dict[str, Any]:
    """Returns the mapping in a stage's settings file; raises UserError where it is missing or damaged."""
    if not path.is_file():
        raise UserError(f"{path}: the settings of this stage are missing; run make, or scripts/resolve_recipe.py first")
    try:
        # The plain loader, as the plain dumper wrote it: text that looks like a number stays text.
        raw = yaml.load(path.read_text(encoding="utf-8"), Loader=yaml.CSafeLoader)
    except (yaml.YAMLError, UnicodeDecodeError):
        raw = None
    if not isinstance(raw, dict):
        raise UserError(f"{path}: is damaged; run make, which writes it anew")
    return raw


def read_settings_as(kind: type[S], path: Path) -> tuple[S, dict[str, Any]]:
    """Returns a stage's settings, typed, and the mapping in its file; raises UserError where it is missing or does not fit."""
    raw = read_settings(path)
    try:
        return kind.model_validate(raw), raw
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise UserError(
            f"{path}: {where}: {first['msg']}; run make, which writes this file for the stage that reads it"
        ) from None


def identity(values: dict[str, Any]) -> dict[str, Any]:
    """Returns what of a stage's settings determines its artifact: all but the names of the recipe and of its overrides."""
    return {name: value for name, value in values.items() if name not in NOT_IDENTITY}


def determinants(settings: dict[str, Any], inputs: Mapping[str, str], external: Mapping[str, str]) -> dict[str, Any]:
    """Returns what identifies an artifact: its stage's settings, and the hashes of what it was made from."""
    return {"settings": identity(settings), "inputs": dict(inputs), "external": dict(external)}


def key_of(determined_by: dict[str, Any]) -> str:
    """Returns the hash of everything that determines an artifact, the `key` of its manifest."""
    return hashlib.sha256(json.dumps(determined_by, sort_keys=True).encode()).hexdigest()


def differences(before: Any, after: Any, prefix: str = "") -> list[tuple[str, Any, Any]]:
    """Returns the dotted names under which two nested mappings differ, each with its value before and after."""
    if not (isinstance(before, dict) and isinstance(after, dict)):
        return [] if before == after else [(prefix, before, after)]
    found = []
    for name in sorted({*before, *after}):
        found += differences(before.get(name), after.get(name), f"{prefix}.{name}" if prefix else name)
    return found


def shortened(value: Any) -> str:
    """Returns a value of a setting as JSON, cut to what a line has room for."""
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= SHOWN else text[: SHOWN - 3] + "..."
