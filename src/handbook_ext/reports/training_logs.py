"""The log of a training, as it lies in a policy's folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from handbook_ext.core.errors import UserError
from handbook_ext.core.manifests import json_object

FILE = "trainer_state.json"


def training_log(policy: Path) -> list[dict[str, Any]]:
    """Returns the rows that a training logged, none where there is no log; a UserError for a log that was damaged."""
    path = policy / FILE
    if not path.is_file():
        return []
    rows = (json_object(path) or {}).get("log_history")
    if not isinstance(rows, list) or not all(map(_readable, rows)):
        raise UserError(f"{path}: is no log of a training, as it was damaged; restore it, or delete it, and the curves stay away")
    return rows


def _readable(row: object) -> bool:
    """Tells whether a row maps names to numbers."""
    return isinstance(row, dict) and all(isinstance(value, int | float) for value in row.values())
