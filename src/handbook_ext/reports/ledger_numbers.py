"""The numbers of an unpacked ledger, worked out again from its rows: rewards, means, implicit rewards, the report's summary."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean
from typing import Any

from pydantic import ValidationError

from handbook_ext.core.errors import UserError
from handbook_ext.core.records import LABELLER
from handbook_ext.core.stage_settings import read_settings_as
from handbook_ext.data.tiny_world import true_reward
from handbook_ext.evaluation.implicit_summary import summarised
from handbook_ext.graph.stages import ReportStage
from handbook_ext.reports.evaluations import read_json
from handbook_ext.reports.pages import concluded, to_json
from handbook_ext.reports.run_report import read_run, summarise

Json = dict[str, Any]

TOLERANCE = 1e-9
"""Relative: sums of floats differ in their last bits between processors."""
MOST_RESAMPLES = 20_000  # Of a bootstrap that a stranger asks for.
LISTED = 5  # Deviations that are told of one file.
ABSENT = object()


def deviations(stated: Any, found: Any, where: str = "") -> Iterator[str]:
    """Yields a clause for each value of a nested one that is another than worked out; numbers may differ by TOLERANCE."""
    if isinstance(stated, dict) and isinstance(found, dict):
        for name in [*stated, *(name for name in found if name not in stated)]:
            yield from deviations(stated.get(name, ABSENT), found.get(name, ABSENT), f"{where}.{name}" if where else str(name))
    elif isinstance(stated, list) and isinstance(found, list) and len(stated) == len(found):
        for place, (one, other) in enumerate(zip(stated, found, strict=True)):
            yield from deviations(one, other, f"{where}[{place}]")
    elif not _equal(stated, found):
        yield f"{where} is {_shown(stated)}, worked out {_shown(found)}"


def _equal(stated: Any, found: Any) -> bool:
    """Tells whether two single values are the same; true is not 1."""
    numbers = [isinstance(each, int | float) and not isinstance(each, bool) for each in (stated, found)]
    if all(numbers):
        return bool(stated == found or math.isclose(stated, found, rel_tol=TOLERANCE, abs_tol=1e-12))
    return type(stated) is type(found) and bool(stated == found)


def _shown(value: Any) -> str:
    """Returns a value in at most 60 letters."""
    text = "missing" if value is ABSENT else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "..."


def first_of(faults: Iterator[str]) -> Iterator[str]:
    """Yields the first few faults, and how many more there are."""
    found = list(faults)
    yield from found[:LISTED]
    if len(found) > LISTED:
        yield f"and {len(found) - LISTED} more"


def evaluation_faults(path: Path, name: str) -> Iterator[str]:
    """Yields in what an evaluation of the loop differs from its own rows: means, unjudged answers, implicit rewards.

    Of the tiny world the reward of each answer is worked out as well: there the true reward is known, and nobody judges.
    """
    content = read_json(path)
    try:
        for decoding, stated in content["decodings"].items():
            rows = stated["rows"]
            measured = ("reward", "tokens", *([LABELLER] if content.get("labeller") else []))
            found = {f"mean_{each}": _mean([row[each] for row in rows]) for each in measured}
            found |= {"unjudged": sum(row["reward"] is None for row in rows), "temperature": stated["temperature"]}
            own = {key: value for key, value in stated.items() if key != "rows"}
            yield from first_of(deviations(own, found, f"{name}: {decoding}"))
            if content["ranker"] == "oracle":
                rewards = [true_reward(row["prompt"], row["text"]) for row in rows]
                yield from first_of(deviations([row["reward"] for row in rows], rewards, f"{name}: {decoding}: reward of row"))
        if content.get("implicit"):
            implicit = {key: value for key, value in content["implicit"].items() if key != "initial_policy"}
            # Rows would be compared with themselves.
            again = summarised(implicit["rows"]) | {"rows": implicit["rows"]}
            yield from first_of(deviations(implicit, again, f"{name}: implicit"))
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        yield f"{name}: is not a usable evaluation ({error!r})"


def _mean(values: list[float | None]) -> float | None:
    """Returns the mean of the values that are there, None without one."""
    known = [value for value in values if value is not None]
    return fmean(known) if known else None


def summary_of(run: Path, folder: str) -> Json:
    """Returns what the report of a run in this folder says in summary.json, from evaluations, pairs, logs and manifests.

    folder: how the report called the run's folder. Raises UserError where something of that is missing, or asks for too much.
    """
    settings, _ = read_settings_as(ReportStage, run / ReportStage.file)
    report = settings.report
    if report.bootstrap_resamples > MOST_RESAMPLES:
        raise UserError(
            f"report.yaml: asks for {report.bootstrap_resamples} resamples, and {MOST_RESAMPLES} are the most checked"
        )
    finished = read_run(run, settings.policies[1:])
    title = settings.title
    summary = summarise([[finished]], title=title, resamples=report.bootstrap_resamples, confidence=report.confidence)
    summary["recipes"][0]["folders"] = [folder]
    return dict(json.loads(to_json(concluded([[finished]], summary))))


def summary_faults(run: Path) -> Iterator[str]:
    """Yields in what a report's summary differs from the one that its run gives."""
    name = "report/summary.json"
    stated = read_json(run / name)
    try:
        (folder,) = stated["recipes"][0]["folders"]
        if Path(folder).name != run.name:
            yield f"{name}: is of the folder {folder}, and the ledger of {run.name}"
        found = summary_of(run, str(folder))
    except UserError as error:
        yield from map(str, error.args)
    except (KeyError, TypeError, AttributeError, ValueError, IndexError, ValidationError) as error:
        yield f"{name}: cannot be worked out again ({error!r})"
    else:
        # Texts that it shows are no numbers: those the manifest's hash holds.
        yield from first_of(deviations({key: stated.get(key, ABSENT) for key in found}, found, name))
