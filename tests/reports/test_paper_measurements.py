"""A printed table is filled from the evaluations in a folder of runs: value, interval, judge, seeds, or why there is none."""

from __future__ import annotations

import csv
import io
import json
import runpy
import shutil
from pathlib import Path
from typing import Any

import pytest
from scipy.stats import t

from handbook_ext.core.artifacts import manifest_path, sha256_of
from handbook_ext.core.errors import UserError
from handbook_ext.evaluation.set_evaluation import read_set_evaluation
from handbook_ext.objectives.metrics import hierarchical_interval
from handbook_ext.reports.ledger import Entry
from handbook_ext.reports.measurements import Key, Measurement, normal_quantile, pooled
from handbook_ext.reports.paper_measurements import read_filling
from handbook_ext.reports.paper_pages import render_paper_table
from handbook_ext.reports.paper_tables import read_paper_table
from handbook_ext.reports.run_sets import sets_of
from handbook_ext.reports.set_results import set_measures
from tests.manifests import BARE
from tests.reports.set_files import GPT4_TURBO, measure, row, write_set
from tests.reports.test_paper_pages import html_rows, latex_rows, markdown_rows
from tests.workspace import ROOT

SELM1, CARDS, DELTAS, SERA1 = (read_paper_table(name) for name in ("selm1", "selm-cards", "selm-deltas", "sera1"))
LC = "AlpacaEval 2 LC"
SELM3: Key = ("Zephyr-7B", "SELM Iter 3 (Zephyr)", LC)
Z = normal_quantile(0.95)


@pytest.fixture(autouse=True)
def _at_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    """Recipes are found from the repository's root."""
    monkeypatch.chdir(ROOT)


def test_a_cell_has_the_value_of_its_policy_with_a_normal_interval(tmp_path: Path) -> None:
    write_set(tmp_path / "zephyr-selm/iter3", {"lc_win_rate": measure(23.9, 0.8, n=800, missing=5, runs=2)}, overlap=3)
    write_set(tmp_path / "zephyr-selm/iter2", {"lc_win_rate": measure(1.0)})
    filling = read_filling(SELM1, tmp_path)
    found = filling.ours[SELM3]
    assert (found.value, found.low, found.high) == (23.9, pytest.approx(23.9 - Z * 0.8), pytest.approx(23.9 + Z * 0.8))
    assert (found.way, found.confidence, found.n, found.missing, found.prompts, found.of) == ("normal", 0.95, 800, 5, 805, 805)
    assert (found.judge.model if found.judge else "", found.judge_runs, found.seen, found.seeds) == (
        "gpt-4-1106-preview",
        2,
        3,
        1,
    )
    assert found.error == pytest.approx(0.8)
    # The same policy stands in the table of the cards; a gain needs the start as well.
    assert read_filling(CARDS, tmp_path).ours["Zephyr-7B", "SELM-Zephyr-7B-iter-3", LC] == found
    assert set(filling.ours) == {SELM3, (*SELM3[:1], "SELM Iter 2 (Zephyr)", LC)}
    assert set(filling.ours) | set(filling.lacks) == set(filling.stands)


def test_what_is_not_there_says_what_to_make(tmp_path: Path) -> None:
    lacks = read_filling(SELM1, tmp_path).lacks
    assert lacks[SELM3].reason == (
        f"{tmp_path}/zephyr-selm/iter3/alpaca/eval.json is not there: make zephyr-selm-iter3-eval SETS=alpaca"
    )
    assert (lacks[SELM3].recipe, lacks[SELM3].policy, lacks[SELM3].set) == ("zephyr-selm", "iter3", "alpaca")
    # A row without a policy of its own is its recipe's last; the SFT policy lies where the run has it.
    sera = read_filling(SERA1, tmp_path).lacks
    assert "tinyllama-sera/iter3/vicuna" in sera["TinyLlama-1.1B", "SeRA-DPO", "Vicuna single"].reason
    assert "tinyllama-dpo/sft/evol" in sera["TinyLlama-1.1B", "SFT", "Evol single"].reason
    assert "mistral-dpo/start/evol" in sera["Mistral-7B", "SFT", "Evol single"].reason
    harness = read_filling(read_paper_table("selm2"), tmp_path).lacks
    assert harness["Zephyr-7B", "Zephyr-7B-DPO", "average"].reason.endswith("make zephyr-selm-iter0-eval SETS=harness")


@pytest.mark.parametrize(("measures", "words"), [
    ({"lc_win_rate": measure(None, None, not_run="no judge: name one in benchmarks.judge")}, "no judge: name one"),
    ({"win_rate": measure(3.0)}, "alpaca/eval.json has no measure lc_win_rate; it has: win_rate"),
    ({}, "it has: none"),
])  # fmt: skip
def test_an_evaluation_without_the_value_says_why(tmp_path: Path, measures: dict[str, Any], words: str) -> None:
    write_set(tmp_path / "zephyr-selm/iter3", measures)
    lack = read_filling(SELM1, tmp_path).lacks[SELM3]
    assert words in lack.reason
    # Nothing is to be made anew, so it is no missing evaluation.
    assert lack.set == ""


def test_a_judge_that_stopped_and_a_policy_that_was_trained_again_are_told(tmp_path: Path) -> None:
    stopped = tmp_path / "zephyr-selm/iter3/alpaca/.eval.json.partial/stopped.json"
    stopped.parent.mkdir(parents=True)
    stopped.write_text('{"replies": 312}')
    assert "the judge stopped after 312 replies" in read_filling(SELM1, tmp_path).lacks[SELM3].reason
    write_set(tmp_path / "zephyr-selm/iter3", {"lc_win_rate": measure(23.9)}, sha256="evaluated")
    assert SELM3 in read_filling(SELM1, tmp_path).ours
    policy = tmp_path / "zephyr-selm/iter3/policy"
    policy.mkdir()
    for sha, there in (("evaluated", True), ("trained again", False)):
        (policy / "manifest.json").write_text(json.dumps(BARE | {"policy": sha}))
        assert (SELM3 in read_filling(SELM1, tmp_path).ours) == there
    assert "is of another policy than" in read_filling(SELM1, tmp_path).lacks[SELM3].reason
    # Another seed, which is as it was measured, still fills the cell alone.
    write_set(tmp_path / "zephyr-selm-seed2/iter3", {"lc_win_rate": measure(20.0)})
    filling = read_filling(SELM1, tmp_path)
    assert (filling.ours[SELM3].value, filling.ours[SELM3].seeds) == (20.0, 1)
    assert any(note.startswith("left out: ") and "is of another policy than" in note for note in filling.notes)


def test_a_damaged_evaluation_is_an_error_and_no_reason(tmp_path: Path) -> None:
    path = write_set(tmp_path / "zephyr-selm/iter3", {"lc_win_rate": measure(23.9)})
    path.write_text(path.read_text().replace('"format":6', '"format":5'))
    with pytest.raises(UserError, match="is an evaluation of format 5, and this version reads 6"):
        read_filling(SELM1, tmp_path)


def test_an_evaluation_that_was_edited_is_an_error(tmp_path: Path) -> None:
    path = write_set(tmp_path / "zephyr-selm/iter3", {"lc_win_rate": measure(23.9)})
    manifest: dict[str, Any] = {"stage": "grade", "key": "", "inputs": {}, "settings": {}, "counts": {}, "files": {}}
    manifest_path(path).write_text(json.dumps(manifest | {"sha256": sha256_of(path)}))
    assert SELM3 in read_filling(SELM1, tmp_path).ours
    path.write_text(path.read_text().replace("23.9", "93.9"))
    with pytest.raises(UserError, match="was changed after stage 'grade' made it"):
        read_filling(SELM1, tmp_path)


def test_a_report_leaves_out_what_was_measured_on_a_policy_that_was_trained_again(tmp_path: Path) -> None:
    run = tmp_path / "zephyr-selm"
    write_set(run / "iter2", {"lc_win_rate": measure(20.0)})
    write_set(run / "iter3", {"lc_win_rate": measure(23.9)}, sha256="before")
    (run / "iter3/policy").mkdir()
    for sha, policies in (("before", ["iter2", "iter3"]), ("trained again", ["iter2"])):
        (run / "iter3/policy/manifest.json").write_text(json.dumps(BARE | {"policy": sha}))
        found = sets_of(run, ["sft", "iter2", "iter3"])
        assert found is not None and found["policies"] == policies
        assert {each.policy for each in set_measures(run, ["iter2", "iter3"])} == {*policies}
        told = [each for each in found["remarks"] if "is of another policy" in each and "SETS=alpaca" in each]
        assert len(told) == 2 - len(policies)


def test_without_a_standard_error_the_interval_is_a_bootstrap_over_prompts(tmp_path: Path) -> None:
    wins = [1.0, 0.5, 0.0, 1.0, 1.0, None, 0.0, 1.0]
    rows = [row(str(place), "vs_start", win) for place, win in enumerate(wins)]
    write_set(tmp_path / "tinyllama-sera/iter3", {"vs_start": measure(100 * 4.5 / 7, None, judge=None)}, rows=rows)
    key = ("TinyLlama-1.1B", "SeRA-DPO", "AlpacaEval vs SFT")
    found = read_filling(SERA1, tmp_path).ours[key]
    expected = hierarchical_interval([[100 * win for win in wins if win is not None]])
    assert (found.value, found.low, found.high) == pytest.approx((expected.value, expected.low, expected.high))
    assert found.way == "bootstrap"
    # Turns and judge runs of a prompt are one value of it; a single prompt has no interval.
    marks = [{**row("a", "single", 7.0, 9.0)}, {**row("b", "single", 4.0, None)}]
    write_set(tmp_path / "tinyllama-sera/iter3", {"single": measure(6.0, None, unit="1-10", judge=None)}, "vicuna", rows=marks)
    write_set(tmp_path / "tinyllama-sera/iter3", {"single": measure(8.0, None, unit="1-10", judge=None)}, "evol", rows=marks[:1])
    filled = read_filling(SERA1, tmp_path).ours
    assert (filled[*key[:2], "Vicuna single"].low, filled[*key[:2], "Vicuna single"].high) == (4.0, 8.0)
    alone = filled[*key[:2], "Evol single"]
    assert (alone.way, alone.error, alone.low) == ("none", None, 8.0)


def test_the_length_of_answers_has_its_interval_from_the_answers(tmp_path: Path) -> None:
    rows = [
        {**row(str(size), "x"), "answers": [{"text": "a" * size, "tokens": 1, "finish_reason": "stop"}]}
        for size in (100, 200, 600)
    ]
    length = measure(300.0, None, unit="characters", judge=None)
    write_set(tmp_path / "zephyr-selm/iter3", {"length": length}, rows=rows)
    found = read_filling(SELM1, tmp_path).ours[(*SELM3[:2], "AlpacaEval 2 length")]
    assert (found.way, found.value, found.low, found.high) == ("bootstrap", 300.0, 100.0, 600.0)


def test_seeds_are_pooled_with_an_interval_over_seeds(tmp_path: Path) -> None:
    for name, value in (
        ("zephyr-selm", 23.0),
        ("zephyr-selm-seed2", 25.0),
        ("zephyr-selm-seed10", 27.0),
        ("zephyr-selm-seedling", 0.0),
    ):
        write_set(tmp_path / name / "iter3", {"lc_win_rate": measure(value, 0.5)})
    found = read_filling(SELM1, tmp_path).ours[SELM3]
    half = t.ppf(0.975, 2) * 2.0 / 3**0.5
    assert (found.value, found.low, found.high) == pytest.approx((25.0, 25.0 - half, 25.0 + half))
    assert (found.way, found.seeds, found.n) == ("seeds", 3, 3 * 805)
    # Seeds that agree better than one of them knows its own prompts: the prompts are the same, so that error stays.
    for name, value in (("zephyr-selm", 25.0), ("zephyr-selm-seed2", 25.1), ("zephyr-selm-seed10", 24.9)):
        write_set(tmp_path / name / "iter3", {"lc_win_rate": measure(value, 0.9)})
    found = read_filling(SELM1, tmp_path).ours[SELM3]
    assert found.error == pytest.approx(0.9)
    # The recipe's own seed need not be among them.
    shutil.rmtree(tmp_path / "zephyr-selm")
    assert read_filling(SELM1, tmp_path).ours[SELM3].seeds == 2


def test_a_seed_under_another_judge_is_left_out_and_told(tmp_path: Path) -> None:
    write_set(tmp_path / "zephyr-selm/iter3", {"lc_win_rate": measure(23.0)})
    write_set(tmp_path / "zephyr-selm-seed2/iter3", {"lc_win_rate": measure(99.0, judge={**GPT4_TURBO, "model": "other"})})
    filling = read_filling(SELM1, tmp_path)
    assert (filling.ours[SELM3].value, filling.ours[SELM3].seeds) == (23.0, 1)
    [note] = filling.notes
    assert "zephyr-selm-seed2/iter3/alpaca/eval.json is left out: another judge, decoding or set of prompts than" in note


def test_pooling_nothing_is_no_value() -> None:
    one = Measurement(1.0, 0.0, 2.0)
    assert pooled([one]) is one
    with pytest.raises(ValueError, match="no seed to pool"):
        pooled([])


def test_a_gain_takes_the_start_off(tmp_path: Path) -> None:
    for policy, value in (("start", 8.0), ("iter3", 24.0)):
        write_set(tmp_path / "zephyr-selm" / policy, {"lc_win_rate": measure(value, 0.6)})
    found = read_filling(DELTAS, tmp_path)
    key = ("Zephyr-7B", "SELM Iter 3 (Zephyr)", LC)
    assert (found.ours[key].value, found.ours[key].error) == (16.0, pytest.approx(0.6 * 2**0.5))
    # Iterative DPO starts from the same checkpoint, but its run has not evaluated it.
    write_set(tmp_path / "zephyr-dpo/iter3", {"lc_win_rate": measure(22.0)})
    assert "zephyr-dpo/start/alpaca" in read_filling(DELTAS, tmp_path).lacks["Zephyr-7B", "DPO Iter 3 (Zephyr)", LC].reason


def test_released_checkpoints_have_a_column_of_their_own(tmp_path: Path) -> None:
    runs = tmp_path / "zephyr-selm"
    write_set(runs / "iter3", {"lc_win_rate": measure(20.0, 0.3)})
    write_set(runs / "released-iter3", {"lc_win_rate": measure(20.2, 0.3)}, checkpoint="ZhangShenao/SELM-Zephyr-7B-iter-3")
    write_set(runs / "start", {"lc_win_rate": measure(8.0, 0.3)})
    filling = read_filling(SELM1, tmp_path, released=True)
    assert filling.released is not None
    assert filling.released[SELM3].value == 20.2
    assert filling.released[SELM3].checkpoint == "ZhangShenao/SELM-Zephyr-7B-iter-3"
    # What the loop starts from is released itself.
    assert filling.released["Zephyr-7B", "Zephyr-7B-SFT", LC] == filling.ours["Zephyr-7B", "Zephyr-7B-SFT", LC]
    assert filling.released_lacks["Zephyr-7B", "SELM Iter 2 (Zephyr)", LC].reason.endswith(
        "make zephyr-selm-iter2-eval SETS=alpaca CHECKPOINTS=released"
    )
    # The authors released no policies of iterative DPO: its row has none, whatever SELM's has.
    assert not any(key[1].startswith("DPO Iter") for key in {**filling.released, **filling.released_lacks})
    page = render_paper_table(SELM1, "md", filling)
    [line] = [cells for cells in markdown_rows(page) if cells[0] == SELM3[1]]
    assert line[2] == "24.25 (20.00 [19.41, 20.59], -4.25, not reproduced; training -0.20, reproduced)"
    assert line[3] == "20.20 [19.61, 20.79], -4.05, not reproduced"
    [line] = [cells for cells in markdown_rows(page) if cells[0] == "DPO Iter 3 (Zephyr)"]
    assert line[3] == "-"
    lines = {
        (each["row"], each["column"]): each for each in csv.DictReader(io.StringIO(render_paper_table(SELM1, "csv", filling)))
    }
    fields = lines[SELM3[1], LC]
    assert (fields["released"], fields["verdict"], fields["evaluation"], fields["training"]) == (
        "20.2", "not reproduced", "not reproduced", "reproduced"
    )  # fmt: skip
    for form, rows in (("html", html_rows), ("latex", latex_rows)):
        widths = {len(cells) for cells in rows(render_paper_table(SELM1, form, filling))} - {1}
        assert widths == {2 + 2 * 6}, form


def test_a_verified_ledger_fills_a_cell_that_we_have_not_run_and_names_its_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluation = read_set_evaluation(write_set(tmp_path / "theirs/iter3", {"lc_win_rate": measure(23.0, 0.7)}))
    value = evaluation.measures["lc_win_rate"]
    entry = Entry(23.0, 0.7, value.n, value.judge, "8 x A100", "other.ledger.zip", value, evaluation)
    submitted = {("zephyr-selm", "iter3", "alpaca", "lc_win_rate"): entry}
    monkeypatch.setattr("handbook_ext.reports.paper_measurements.ledger_measurements", lambda folder: submitted)
    filling = read_filling(SELM1, tmp_path / "runs")
    assert filling.ours[SELM3].value == 23.0 and any("other.ledger.zip" in note and "8 x A100" in note for note in filling.notes)
    # What we have run ourselves speaks first.
    write_set(tmp_path / "runs/zephyr-selm/iter3", {"lc_win_rate": measure(20.0, 0.5)})
    filling = read_filling(SELM1, tmp_path / "runs")
    assert filling.ours[SELM3].value == 20.0 and not any("ledger" in note for note in filling.notes)


def test_a_released_checkpoints_gain_is_over_the_start(tmp_path: Path) -> None:
    for policy, value in (("start", 8.0), ("iter3", 24.0), ("released-iter3", 21.0)):
        write_set(tmp_path / "zephyr-selm" / policy, {"lc_win_rate": measure(value, 0.6)})
    filling = read_filling(DELTAS, tmp_path, released=True)
    assert filling.released is not None
    assert filling.released["Zephyr-7B", "SELM Iter 3 (Zephyr)", LC].value == 13.0


def test_a_seed_of_another_decoding_or_of_a_part_of_the_prompts_is_left_out(tmp_path: Path) -> None:
    write_set(tmp_path / "zephyr-selm/iter3", {"lc_win_rate": measure(23.0)})
    greedy = {"temperature": 0.0, "top_p": 1.0, "max_new_tokens": 2048}
    write_set(tmp_path / "zephyr-selm-seed2/iter3", {"lc_win_rate": measure(99.0)}, decoding=greedy)
    write_set(tmp_path / "zephyr-selm-seed3/iter3", {"lc_win_rate": measure(99.0)}, prompts=100)
    filling = read_filling(SELM1, tmp_path)
    assert (filling.ours[SELM3].value, filling.ours[SELM3].seeds, len(filling.notes)) == (23.0, 1, 2)


def test_the_script_fills_the_column_of_released_checkpoints_where_it_is_asked_to(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_set(tmp_path / "zephyr-selm/released-iter3", {"lc_win_rate": measure(20.2, 0.3)})
    main = runpy.run_path(str(ROOT / "scripts" / "paper_table.py"))["main"]
    for asked in ([], ["--checkpoints", "released"]):
        main(["selm1", "--runs", str(tmp_path), *asked])
        assert ("20.20 [19.61, 20.79]" in capsys.readouterr().out) == bool(asked)
