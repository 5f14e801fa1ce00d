"""A finished run written by hand: settings, evaluations, pairs, logs, and manifests that nothing verifies."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np


def write_settings(folder: Path, iterations: int = 3, start: str = "sft", **report: Any) -> None:
    """A report.yaml as the recipe resolves to."""
    names = [start, *(f"iter{number}" for number in range(iterations))]
    folder.mkdir(parents=True, exist_ok=True)
    recipe = report.pop("recipe", "tiny-selm")
    settings = {"stage": "report", "recipe": recipe, "policies": names, "title": report.pop("title", recipe), "report": report}
    (folder / "report.yaml").write_text(json.dumps(settings))


def write_evaluation(folder: Path, mean: float, seed: int = 1, ranker: str = "oracle", judge: str = "") -> None:
    """An eval.json of 40 prompts whose rewards lie around `mean`."""
    rng = np.random.default_rng([seed, int(1000 * mean)])
    decodings = {}
    for name, temperature in (("greedy", 0.0), ("sampled", 0.7)):
        rewards = mean + rng.normal(0, 0.1, 40)
        rows = [{"prompt_id": f"p{i}", "reward": float(one), "tokens": 5 + i % 7} for i, one in enumerate(rewards)]
        decodings[name] = {"temperature": temperature, "rows": rows}
    about = {"policy": {"name": folder.name, "sha256": "0" * 64}, "seed": seed, "ranker": ranker, "judge": judge}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "eval.json").write_text(json.dumps(about | {"decodings": decodings}))


def write_manifest(path: Path, stage: str, commit: str = "c" * 40) -> None:
    """A manifest of 10 rows in, 8 out."""
    path.parent.mkdir(parents=True, exist_ok=True)
    counts = {"in": 10, "out": 8, "dropped": {"identical|pair": 2}}
    manifest = {"stage": stage, "seconds": 1.5, "counts": counts, "code": {"commit": commit, "dirty": False}, "inputs": {}}
    manifest |= {"sha256": "0" * 64, "files": {}, "settings": {}, "key": "", "policy": None}
    path.write_text(json.dumps(manifest | {"hardware": {"cores": 2}, "packages": {"torch": "2.13.0"}, "seed": 1}))


def make_run(folder: Path, iterations: int = 3, *, start: str = "sft", gain: float = 0.1, **about: Any) -> Path:
    """A finished run whose mean reward grows by `gain` each iteration."""
    write_settings(folder, iterations, start, recipe=about.pop("recipe", "tiny-selm"))
    for index, name in enumerate([start, *(f"iter{number}" for number in range(iterations))]):
        one = folder / name
        write_evaluation(one, 0.3 + gain * index, **about)
        write_manifest(one / "policy" / "manifest.json", "train")
        if index == 0:
            continue
        write_manifest(one / "pairs.manifest.json", "select")
        sides = {side: [{"role": "assistant", "content": side}] for side in ("chosen", "rejected")}
        pair = sides | {"chosen_origin": "offline", "rejected_origin": "on_policy", "explore": None, "margin": None}
        pair |= {"prompt": [{"role": "user", "content": "Which?"}], "chosen_id": "c", "rejected_id": "r", "explore_id": None}
        lines = [json.dumps(pair | {"prompt_id": str(i), "swapped": bool(i)}) + "\n" for i in range(2)]
        (one / "pairs.jsonl").write_text("".join(lines))
        rows = [{"step": step, "loss": 0.7 / step, "rewards/margins": 0.1 * step} for step in (1, 2)]
        (one / "policy" / "trainer_state.json").write_text(json.dumps({"log_history": [*rows, {"train_loss": 1}]}))
    return folder
