"""The length-controlled win rate of an unpacked ledger, fitted again by alpaca_eval where the package and its data are here."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from handbook_ext.core.artifacts import finished_manifest
from handbook_ext.core.errors import UserError
from handbook_ext.core.jsonl import read_rows
from handbook_ext.core.set_records import SetAnswer, SetPrompt
from handbook_ext.evaluation.set_evaluation import MeasuredValue, SetEvaluation
from handbook_ext.recipes.settings_benchmarks import START_ANSWERS

CONTROLLED = "lc_win_rate"
VERDICTS = "win_rate"
"""The measure under which an evaluation keeps the preferences that both win rates are made of."""
CLOSE = 1e-3
"""Percentage points: a fit by iteration ends a little apart on another processor."""


def controlled_again(
    found: SetEvaluation, path: Path, prompts: Path, gamed: Path | None = None
) -> tuple[MeasuredValue | None, str]:
    """Returns the length-controlled win rate of an evaluation from its answers and preferences; None, and why, where it cannot.

    path: of the evaluation; prompts: the rows of its set; gamed: df_gamed.csv, None for the hub's. Needs the extra `eval`.
    """
    settings = (finished_manifest(path) or {}).get("settings", {})
    baseline, verdicts = str(settings.get("baseline")), [row.verdicts.get(VERDICTS) for row in found.rows]
    if any(verdict is None for verdict in verdicts):
        return None, "it has no preferences"
    theirs = _baseline(baseline, settings, path, prompts)
    rows = [
        {
            "instruction": prompt.prompt[-1]["content"], "output_1": other, "output_2": row.answers[0].text,
            "generator_1": baseline, "generator_2": f"{found.policy.name} of the ledger",
            "preference": None if verdict is None or verdict[0][0] is None else verdict[0][0] + 1,
        }
        for prompt, other, row, verdict in zip(read_rows(prompts, SetPrompt), theirs, found.rows, verdicts, strict=True)
    ]  # fmt: skip
    # Here, since the package takes seconds to import, and is an extra.
    from handbook_ext.evaluation import alpaca_eval  # noqa: PLC0415

    try:
        again = alpaca_eval.length_controlled(rows, gamed)
    except UserError as error:
        return None, str(error.args[0])
    if again.value is None:
        return None, str(again.not_run)
    fields: dict[str, Any] = {"standard_error": again.standard_error, "n": again.n, "missing": again.missing, "unit": again.unit}
    return MeasuredValue(value=again.value, **fields), ""


def controlled_fault(stated: MeasuredValue, again: MeasuredValue) -> str | None:
    """Returns in what a stated length-controlled win rate is another than the one that was fitted again."""
    numbers = [(stated.value, again.value), (stated.standard_error, again.standard_error)]
    alike = all(one is not None and other is not None and math.isclose(one, other, abs_tol=CLOSE) for one, other in numbers)
    if alike and (stated.n, stated.missing) == (again.n, again.missing):
        return None
    return f"{CONTROLLED} is {stated.value} ± {stated.standard_error}, fitted again {again.value} ± {again.standard_error}"


def _baseline(name: str, settings: dict[str, Any], path: Path, prompts: Path) -> list[str]:
    """Returns the texts that the answers were compared with."""
    if name != START_ANSWERS:
        return [prompt.outputs[name] for prompt in read_rows(prompts, SetPrompt)]
    answers = read_rows(path.parent / str(settings["inputs"]["start_answers"]), SetAnswer)
    return [row.answers[0].text for row in answers]
