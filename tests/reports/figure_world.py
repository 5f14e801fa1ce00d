"""Runs made by hand for the papers' figures: evaluations and pairs of a few prompts, in folders called as tables' rows are."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from handbook_ext.evaluation.set_evaluation import Contamination, EvaluatedPolicy, EvaluatedSet, MeasuredValue, SetEvaluation
from handbook_ext.reports.figure_sources import Sources
from handbook_ext.reports.paper_figures import FIGURES

PROMPTS = "abcd"
HeldOut = Mapping[str, Sequence[tuple[float, float | None, int]]]


def evaluation(
    folder: Path, rewards: Sequence[float], *, greedy: Sequence[float] = (), held_out: HeldOut | None = None, judge: str = "",
) -> None:  # fmt: skip
    """An eval.json: rewards of sampled answers to prompts a, b, ...; `held_out`: log-ratio, reward and tokens by side."""
    decodings = {}
    for name, temperature, values in (("greedy", 0.0, greedy or rewards), ("sampled", 0.7, rewards)):
        rows = [{"prompt_id": prompt, "reward": one, "tokens": 4} for prompt, one in zip(PROMPTS, values, strict=False)]
        decodings[name] = {"temperature": temperature, "rows": rows}
    implicit = [
        {"prompt_id": prompt, "side": side, "log_ratio": ratio, "reward": reward, "tokens": count}
        for side, values in (held_out or {}).items()
        for prompt, (ratio, reward, count) in zip(PROMPTS, values, strict=False)
    ]
    content = {"seed": 1, "ranker": "oracle", "judge": judge, "decodings": decodings, "implicit": {"rows": implicit}}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "eval.json").write_text(json.dumps(content))


def set_evaluation(folder: Path, measures: Mapping[str, tuple[float, float]]) -> None:
    """The eval.json of a prompt set, in `folder`: value and standard error of each measure."""
    folder.mkdir(parents=True)
    found = {name: MeasuredValue(value=value, standard_error=error, unit="%") for name, (value, error) in measures.items()}
    content = SetEvaluation(
        policy=EvaluatedPolicy(name=folder.parent.name, sha256=""),
        set=EvaluatedSet(name=folder.name, prompts=1, of=1, sha256=""),
        seed=1, decoding=None, contaminated=Contamination(overlap=0, of=1, prompt_ids=[]), measures=found, rows=[],
    )  # fmt: skip
    (folder / "eval.json").write_text(content.model_dump_json())


def sources(runs: Path, *models: str, seeds: Sequence[int] = (1,)) -> Sources:
    """What finds the runs in a folder, by default those of the tiny models."""
    return Sources(runs, models or ("tiny",), seeds)


def numbers(name: str, found: Sources) -> dict[tuple[str, str, str], float]:
    """The measured numbers of a figure by panel, series and place."""
    picture = FIGURES[name].build(found)
    return {
        (panel.title, one.name, str(point.x)): point.y
        for panel in picture.panels
        for one in panel.series
        for point in one.points
        if point.y is not None
    }


def table_of(text: str) -> list[dict[str, Any]]:
    """The lines of a CSV."""
    return list(csv.DictReader(io.StringIO(text)))
