"""What a table reads of a run: from its folder, or from the row that was kept of it."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from math import isnan
from pathlib import Path

import numpy as np

from handbook_ext.core.jsonl import read_rows
from handbook_ext.core.kept import place_of
from handbook_ext.core.manifests import finished_manifest
from handbook_ext.core.provenance import hardware_words
from handbook_ext.core.records import PreferencePair
from handbook_ext.objectives.metrics import Scores
from handbook_ext.recipes.measured_rows import Made, MeasuredPairs, MeasuredRow, unpacked
from handbook_ext.reports.evaluations import Evaluator, read_evaluation

Source = Path | MeasuredRow
"""The folder of a run, or what was kept of it."""
IMPLICIT = ("correlation_reward", "rank_correlation_reward", "correlation_tokens", "rank_correlation_tokens", "kl")


def name_of(source: Source) -> str:
    """Returns what a line calls a source."""
    return str(source) if isinstance(source, Path) else f"the kept row of {source.run}, {source.policy}"


def evaluation_of(source: Source, policy: str) -> tuple[dict[str, Scores], Evaluator]:
    """Returns a policy's scores by decoding, and what evaluated them; raises UserError where there are none."""
    if isinstance(source, Path):
        return read_evaluation(source / policy / "eval.json")
    scores = {
        name: Scores(
            tuple(source.prompts),
            np.array([np.nan if each is None else each for each in decoding.rewards], dtype=float),
            np.array(decoding.tokens, dtype=float),
            decoding.temperature,
        )
        for name, decoding in source.policies[policy].decodings.items()
    }
    return scores, Evaluator(source.seed, source.ranker, source.judge)


def implicit_of(source: Source, policy: str) -> dict[str, float]:
    """Returns the correlations of a policy's implicit reward and its KL estimate (nats), those that there are."""
    if isinstance(source, MeasuredRow):
        return source.policies[policy].implicit
    implicit = json.loads((source / policy / "eval.json").read_text()).get("implicit") or {}
    return {name: implicit[name] for name in IMPLICIT if implicit.get(name) is not None}


def pairs_of(source: Source, iteration: str) -> MeasuredPairs | None:
    """Returns what a table reads of the pairs that an iteration trained on; None where it has none."""
    if isinstance(source, MeasuredRow):
        return source.pairs.get(iteration)
    path = source / iteration / "pairs.jsonl"
    return MeasuredPairs.of(read_rows(path, PreferencePair)) if path.is_file() else None


def log_ratios(evaluation: Path | MeasuredRow, side: str) -> dict[str, float]:
    """Returns a policy's log-ratios to the initial policy by prompt id, in nats, on one side; nothing where there are none.

    evaluation: the policy's eval.json, or its kept row.
    """
    if isinstance(evaluation, MeasuredRow):
        text = (evaluation.policies[evaluation.policy].log_ratios or {}).get(side)
        values = [] if text is None else unpacked(text, len(evaluation.prompts))
        return {name: value for name, value in zip(evaluation.prompts, values, strict=bool(values)) if not isnan(value)}
    rows = (json.loads(evaluation.read_text()).get("implicit") or {"rows": []})["rows"]
    # In the order of prompt ids, as evaluations are read.
    return dict(sorted((row["prompt_id"], row["log_ratio"]) for row in rows if row["side"] == side))


def made_of(source: Source, start: str, policy: str) -> Made | None:
    """Returns where and when a policy and its start were made and evaluated; None where no manifest says so."""
    if isinstance(source, MeasuredRow):
        return source.made
    artifacts = [source / place for name in (start, policy) for place in (place_of(name), f"{name}/eval.json")]
    found = [manifest for path in dict.fromkeys(artifacts) if (manifest := finished_manifest(path)) and manifest["hardware"]]
    evaluation = finished_manifest(source / policy / "eval.json")
    if evaluation is None or not evaluation["files"] or not found:
        return None
    latest = max(record["mtime_ns"] for record in evaluation["files"].values())
    return Made(
        machines=list(dict.fromkeys(map(hardware_words, found))),
        date=datetime.fromtimestamp(latest / 1e9, UTC).date().isoformat(),
        code=evaluation.get("code", {}), packages=evaluation.get("packages", {}),
    )  # fmt: skip
