"""Runs beside each other on prompt sets: values as they are, tests where verdicts of the same prompts compare, and why not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from handbook_ext.core.artifacts import manifest_path, sha256_of
from handbook_ext.evaluation.set_evaluation import MeasuredValue, SetEvaluation
from handbook_ext.reports.compare import read_compared, summarise_compared
from handbook_ext.reports.compare_sets import by_prompt, in_words, matched_verdicts, summarise_sets
from handbook_ext.reports.pages import render_comparison
from handbook_ext.reports.pairing import Compared
from tests.reports.written_run import make_run, write_manifest

FEW = {"resamples": 50, "confidence": 0.9}
JUDGE = {"model": "judge-1", "kind": "single", "local": True, "temperature": 0.0}


def evaluation(*verdicts: Any, measure: str = "average", **changes: Any) -> SetEvaluation:
    """An evaluation whose prompts p0, p1, ... have these verdicts: turns of judge runs."""
    value = {"value": 5.0, "standard_error": 0.25, "n": 3, "unit": "1-10", "judge": JUDGE} | changes.pop("value", {})
    rows = [
        {"prompt_id": f"p{number}", "category": "c", "answers": [], "verdicts": {measure: one}}
        for number, one in enumerate(verdicts)
    ]
    content = {
        "policy": {"name": "iter2", "sha256": "0"}, "set": {"name": "mtbench", "prompts": 3, "of": 3, "sha256": "s"}, "seed": 1,
        "decoding": None, "contaminated": {"overlap": 0, "of": 3, "prompt_ids": []}, "measures": {measure: value}, "rows": rows,
    }  # fmt: skip
    return SetEvaluation.model_validate(content | changes)


def write(run: Path, one: SetEvaluation, name: str = "mtbench", policy: str = "iter2") -> None:
    folder = run / policy / name
    folder.mkdir(parents=True)
    path = folder / "eval.json"
    path.write_text(one.model_dump_json())
    write_manifest(manifest_path(path), "grade")
    manifest = json.loads(manifest_path(path).read_text())
    manifest_path(path).write_text(json.dumps(manifest | {"sha256": sha256_of(path)}))


def runs_of(tmp_path: Path, *, seeds: int = 1, **evaluations: SetEvaluation | None) -> list[Compared]:
    folders = []
    for name, one in evaluations.items():
        for seed in range(1, seeds + 1):
            folders.append(make_run(tmp_path / (name if seed == 1 else f"{name}-seed{seed}"), recipe=name, seed=seed))
            if one is not None:
                write(folders[-1], one)
    return read_compared(folders)


def test_a_prompt_counts_by_the_mean_of_its_readable_verdicts() -> None:
    found = by_prompt(evaluation([[1.0, 3.0], [5.0, None]], [[None, None]], [[2.0]]), "average")
    assert found == {"p0": 3.0, "p2": 2.0}
    assert by_prompt(evaluation([[1.0]]), "single") == {}


def test_a_value_says_how_sure_it_is_or_why_there_is_none() -> None:
    one = MeasuredValue(value=8.125, standard_error=0.5, unit="%")
    assert in_words([one]) == "8.12 ± 0.50"
    assert in_words([one.model_copy(update={"standard_error": None})]) == "8.12"
    assert in_words([one, one.model_copy(update={"value": 6.125})]) == "7.12 (2 seeds)"
    assert in_words([MeasuredValue(value=None, unit="%", not_run="no judge")]) == "not run: no judge"
    assert in_words([]) == "-"


def test_measures_of_two_runs_are_tested_prompt_by_prompt(tmp_path: Path) -> None:
    high, low = evaluation(*[[[9.0, 8.0]]] * 12), evaluation(*[[[4.0, 8.0]]] * 12)
    found = summarise_sets(runs_of(tmp_path, a=high, b=low, c=None), **FEW)
    assert found["rows"] == [
        {"set": "mtbench", "measure": "average", "unit": "1-10", "values": ["5.00 ± 0.25", "5.00 ± 0.25", "-"]}
    ]
    (test,) = found["tests"]
    assert (test["ours"], test["theirs"], test["prompts"], test["side"]) == ("a iter2", "b iter2", [12], 0)
    assert test["words"].startswith("a iter2 against b iter2, one seed each and so no verdict: wins 100.0 %")
    (test,) = summarise_sets(runs_of(tmp_path / "more", seeds=2, a=high, b=low), **FEW)["tests"]
    assert (test["prompts"], test["side"]) == ([12, 12], 1)
    assert test["gain"].value == pytest.approx(2.5) and test["p"] == pytest.approx(2 / 2**12)
    assert test["words"].startswith("a iter2 is higher on mtbench average than b iter2: wins 100.0 %")
    assert found["left_out"] == []


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"set": {"name": "mtbench", "prompts": 3, "of": 3, "sha256": "t"}}, "their sets have other prompts"),
        ({"value": {"judge": JUDGE | {"model": "judge-2"}}}, "one is judged by judge-1 (single), the other by judge-2 (single)"),
        ({"value": {"judge": JUDGE | {"temperature": 1.0}}}, "one is judged by the same model under other settings"),
        ({"value": {"value": None, "not_run": "no judge"}}, ""),
        ({"rows": []}, ""),
    ],
)
def test_what_does_not_compare_is_not_tested(tmp_path: Path, changes: dict[str, Any], reason: str) -> None:
    ours, theirs = evaluation([[1.0]], [[2.0]]), evaluation([[1.0]], [[2.0]], **changes)
    assert matched_verdicts(ours, theirs, "average") == (reason, None)
    found = summarise_sets(runs_of(tmp_path, a=ours, b=theirs), **FEW)
    assert (len(found["rows"]), found["tests"]) == (1, [])
    wanted = [f"mtbench average: a and b are not tested against each other: {reason}"] if reason else []
    assert found["left_out"] == wanted


def test_win_rates_over_two_starts_do_not_compare(tmp_path: Path) -> None:
    compared = runs_of(tmp_path, **{name: evaluation([[1.0]], [[0.0]], measure="vs_start") for name in ("a", "b")})
    assert len(summarise_sets(compared, **FEW)["tests"]) == 1
    path = tmp_path / "b" / "sft" / "eval.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | {"policy": {"name": "sft", "sha256": "1" * 64}}))
    found = summarise_sets(compared, **FEW)
    assert found["tests"] == [] and found["left_out"][0].endswith("each is held against its own start")


def test_prompts_that_training_has_seen_are_told_and_a_set_of_one_run_is_left_out(tmp_path: Path) -> None:
    seen = evaluation([[1.0]], contaminated={"overlap": 2, "of": 3, "prompt_ids": ["p0", "p1"]})
    found = summarise_sets(runs_of(tmp_path, a=seen, b=evaluation([[1.0]])), **FEW)
    assert found["left_out"] == ["mtbench: 2 of its 3 prompts are in the training data of a"]
    assert summarise_sets(runs_of(tmp_path / "other", a=seen, b=None), **FEW) == {"rows": [], "tests": [], "left_out": []}


def test_the_page_shows_values_tests_and_notes(tmp_path: Path) -> None:
    seen = evaluation([[9.0]], [[8.0]], contaminated={"overlap": 2, "of": 3, "prompt_ids": ["p0", "p1"]})
    compared = runs_of(tmp_path, a=seen, b=evaluation([[1.0]], [[2.0]]))
    summary = summarise_compared(compared, **FEW) | {"sets": summarise_sets(compared, **FEW)}
    files = render_comparison(compared, summary)
    text, page = files["compare.md"].decode(), files["compare.html"].decode()
    assert "| mtbench | average | 1-10 | 5.00 ± 0.25 | 5.00 ± 0.25 |" in text
    assert "| a iter2 | b iter2 | mtbench average | 2 | 1 | 100.0 [100.0, 100.0] | 7.000 " in text
    assert "> **Note.** mtbench: 2 of its 3 prompts are in the training data of a." in text
    assert "5.00 ± 0.25" in page and "2 of its 3 prompts are in the training data of a." in page
