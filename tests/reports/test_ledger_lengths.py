"""A length-controlled win rate is fitted again from the answers and preferences of its evaluation, by the package itself."""

from __future__ import annotations

import json
import random
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from handbook_ext.core.machine import has_package
from handbook_ext.evaluation.set_evaluation import parsed_set_evaluation
from handbook_ext.reports.ledger_lengths import controlled_again, controlled_fault
from handbook_ext.reports.ledger_sets import not_recomputed, set_faults

pytest.importorskip("openai")
from handbook_ext.evaluation import alpaca_eval
from tests.evaluation.test_length_controlled import COUNT, gamed  # noqa: F401 - a fixture

pytestmark = pytest.mark.skipif(not has_package("alpaca_eval"), reason="alpaca-eval is not installed (extra eval)")


@pytest.fixture
def evaluated(made: Path, tmp_path: Path) -> Path:
    """A run's folder whose quiz has as many prompts as the made difficulty, with a preference for each."""
    run = tmp_path / "run"
    shutil.copytree(made, run)
    draw = random.Random(3)
    content = json.loads((run / "iter1/quiz/eval.json").read_text())
    prompt = json.loads((run / "prompts/quiz/prompts.jsonl").read_text().splitlines()[1])
    row: dict[str, Any] = content["rows"][0]
    content["rows"], prompts = [], []
    content["measures"] = {"lc_win_rate": content["measures"]["lc_win_rate"]}
    for number in range(COUNT):
        name, length = f"p{number}", draw.randint(1, 200)
        turn = row["answers"][0] | {"text": "y" * length}
        chance = min(0.99, max(0.01, 0.5 + (length - 100) / 400 + draw.gauss(0, 0.1)))
        content["rows"].append(row | {"prompt_id": name, "answers": [turn], "verdicts": {"win_rate": [[chance]]}})
        prompts.append(prompt | {"prompt_id": name, "outputs": {"other": "x" * draw.randint(50, 150)}})
    (run / "iter1/quiz/eval.json").write_text(json.dumps(content))
    (run / "prompts/quiz/prompts.jsonl").write_text("".join(json.dumps(each) + "\n" for each in prompts))
    return run


def test_the_fit_is_the_one_that_graded_and_another_value_is_a_fault(
    evaluated: Path,
    gamed: Path,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fit = partial(alpaca_eval.length_controlled, places=range(COUNT))  # The instructions are none of AlpacaEval's.
    monkeypatch.setattr(alpaca_eval, "length_controlled", fit)
    path, prompts = evaluated / "iter1/quiz/eval.json", evaluated / "prompts/quiz/prompts.jsonl"
    found = parsed_set_evaluation(path)
    again, _ = controlled_again(found, path, prompts, gamed)
    texts = [json.loads(line)["outputs"]["other"] for line in prompts.read_text().splitlines()]
    rows = [
        {"instruction": "i", "output_1": other, "output_2": row.answers[0].text, "generator_1": "other", "generator_2": "ours",
         "preference": 1 + float(row.verdicts["win_rate"][0][0] or 0)}
        for other, row in zip(texts, found.rows, strict=True)
    ]  # fmt: skip
    wanted = fit(rows, gamed)
    assert again is not None and (again.value, again.standard_error, again.n) == (wanted.value, wanted.standard_error, COUNT)
    assert controlled_fault(again, again) is None
    assert "fitted again" in str(controlled_fault(again.model_copy(update={"value": again.value + 0.01}), again))
    content = json.loads(path.read_text())
    content["measures"]["lc_win_rate"] |= {
        "value": again.value + 1,
        "standard_error": again.standard_error,
        "n": COUNT,
        "not_run": None,
    }
    path.write_text(json.dumps(content))
    assert any("lc_win_rate is" in fault and "fitted again" in fault for fault in set_faults(path, evaluated, gamed))
    assert not_recomputed(path, evaluated, gamed) == []


def test_without_the_packages_data_the_value_is_told_as_not_worked_out(evaluated: Path) -> None:
    path = evaluated / "iter1/quiz/eval.json"
    content = json.loads(path.read_text())
    content["measures"]["lc_win_rate"] |= {"value": 20.0, "standard_error": 1.0, "n": COUNT, "not_run": None}
    path.write_text(json.dumps(content))
    (told,) = not_recomputed(path, evaluated)
    assert told.startswith("lc_win_rate (length control knows the difficulty of AlpacaEval's own 805 instructions alone")
    assert not any("lc_win_rate" in fault for fault in set_faults(path, evaluated))
