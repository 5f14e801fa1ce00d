"""Evaluations on prompt sets as their stage leaves them, made for tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from handbook_ext.evaluation.set_evaluation import SetEvaluation

GPT4_TURBO = {"model": "gpt-4-1106-preview", "kind": "alpaca_eval", "temperature": 0.0}
PROMPTS = {"alpaca": 805, "mtbench": 80, "vicuna": 80, "evol": 218, "ultrafeedback": 2000, "harness": 1319}


def measure(value: float | None, error: float | None = 0.9, **more: Any) -> dict[str, Any]:
    """A measure of an evaluation: by default of AlpacaEval, by the paper's judge."""
    return {"value": value, "standard_error": error, "n": 805, "unit": "%", "judge": GPT4_TURBO} | more


def write_set(folder: Path, measures: dict[str, dict[str, Any]], name: str = "alpaca", **more: Any) -> Path:
    """Writes <folder>/<name>/eval.json of the policy in `folder`, whose hash is `p` unless `sha256` says otherwise."""
    count = PROMPTS[name]
    content = {
        "policy": {"name": folder.name, "sha256": more.pop("sha256", "p"), "checkpoint": more.pop("checkpoint", None)},
        "set": {"name": name, "prompts": more.pop("prompts", count), "of": count, "sha256": "s"}, "seed": 42,
        "decoding": {"temperature": 0.7, "top_p": 1.0, "max_new_tokens": 2048},
        "contaminated": {"overlap": more.pop("overlap", 0), "of": count, "prompt_ids": []}, "measures": measures, "rows": [],
    } | more  # fmt: skip
    path = folder / name / "eval.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(SetEvaluation.model_validate(content).model_dump_json())
    (path.parent / "eval.manifest.json").write_text("{}")
    return path


def row(prompt_id: str, name: str, *verdicts: float | None) -> dict[str, Any]:
    """A row whose one judge run gave a measure these verdicts, one per turn."""
    return {"prompt_id": prompt_id, "category": "", "answers": [], "verdicts": {name: [list(verdicts)]}}
