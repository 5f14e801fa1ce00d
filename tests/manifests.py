"""The least that a manifest has: one without any of it, or with another type, counts as damaged."""

from typing import Any

BARE: dict[str, Any] = {
    "stage": "x", "counts": {}, "sha256": "0" * 64, "files": {}, "settings": {}, "inputs": {}, "key": "", "policy": None,
}  # fmt: skip
