"""Choices of a recipe as `make tune-<table>` writes them, for tests that run no trial."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from handbook_ext.recipes.names import read_name, varied
from handbook_ext.recipes.tuned import section_hashes

CHOSEN = {"train.learning_rate": 3e-4, "train.beta": 0.7}


def choose(run: str = "tiny-selm", chosen: dict[str, Any] | None = None, **more: Any) -> Path:
    """Writes the choices of a recipe as it now is; returns their file."""
    chosen = CHOSEN if chosen is None else chosen
    name = read_name(run)
    path = Path("recipes/tuning/tiny") / f"{'-'.join((name.file.stem, *name.variants))}.yaml"
    other = {key: value * 2 for key, value in chosen.items()}
    values = {
        "recipe": run, "chosen": chosen, "judged": "mean true reward, sampled", "seeds": [51, 52],
        "axes": {key: [value, value * 2] for key, value in chosen.items()},
        "trials": [
            {"set": chosen, "reward": 0.5, "seeds": [{"seed": 51, "reward": 0.4}, {"seed": 52, "reward": 0.6}]},
            {"set": other, "reward": None, "seeds": [{"seed": 51, "failed": "has diverged"}, {"seed": 52, "reward": 0.6}]},
        ],
        "sections": section_hashes(varied(name), chosen), "packages": {"torch": "2"}, "machines": ["m"],
        "date": "2025-01-01", "command": "make tune-selm1",
    } | more  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(values, sort_keys=False))
    return path
