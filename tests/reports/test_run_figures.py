"""The pictures of reports and tables: intervals of histograms, the cap of lengths, curves of differences."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from handbook_ext.objectives.metrics import Interval
from handbook_ext.recipes.table_files import Table
from handbook_ext.reports.figure_judgements import judge_differences
from handbook_ext.reports.figure_parts import Point
from handbook_ext.reports.figure_style import on_card
from handbook_ext.reports.run_figures import BINS, answer_cap, draw_figures, draw_means, reward_histograms
from handbook_ext.reports.run_report import read_run, summarise
from handbook_ext.reports.table_figures import differences, differences_by_side, win_rates
from tests.reports.test_run_numbers import finished, scores
from tests.reports.written_run import make_run


def test_the_longest_that_an_answer_may_be_stands_where_lengths_do(tmp_path: Path) -> None:
    run = replace(read_run(make_run(tmp_path / "run", iterations=1)), history={})
    assert answer_cap(run) is None
    summary = summarise([[run]], title="t", resamples=20, confidence=0.9)
    (run.folder / "sft" / "evaluate.yaml").write_text("evaluate: {max_new_tokens: 48}\n")
    assert answer_cap(run) == 48
    files, captions = draw_figures([[run]], summary)
    assert "max_new_tokens 48." in captions["reward_and_length.png"]
    assert files.keys() == {name.replace(".png", card) for name in captions for card in (".png", "-dark.png")}
    with on_card("light"):
        reward, tokens = draw_means(summary, [48]).axes
    caps = [line for line in tokens.lines if list(line.get_ydata()) == [48, 48]]
    assert len(caps) == 1 and tokens.get_ylim()[1] > 48
    assert [text.get_text() for text in tokens.texts] == ["max_new_tokens 48"]
    assert reward.texts[:] == [] and reward.get_ylim()[1] < 1


def test_a_histogram_of_rewards_has_intervals_and_the_start_as_outline() -> None:
    policies = {name: {"sampled": scores(*values)} for name, values in (("sft", (0.0, 0.0, 3.0)), ("iter1", (0.0, 3.0, 3.0)))}
    run = replace(finished(), policies=policies)
    about = {"recipes": [{"policies": [{"policy": "sft"}, {"policy": "iter1"}]}], "primary": "sampled", "reward": "true reward"}
    start, last = reward_histograms([run], about | {"confidence": 0.9}).panels
    shares = [point.y for point in last.series[0].points]
    assert (len(shares), shares[0], shares[-1], sum(shares)) == (
        BINS,
        pytest.approx(100 / 3),
        pytest.approx(200 / 3),
        pytest.approx(100),
    )
    assert last.series[0].points[0].low < shares[0] < last.series[0].points[0].high
    assert [one.reference for one in last.series] == [False, True]
    assert last.series[1].points == start.series[0].points and len(start.series) == 1
    assert (start.level, last.level) == (1.0, 2.0)
    assert (start.x, last.x) == ("", "true reward of a prompt, sampled")


def test_win_rates_are_bars_by_method_and_points_over_a_sweeps_axis() -> None:
    rows = [
        {"name": name, "x": x, "decodings": {"sampled": {"win_rate": Interval(value, value - 0.1, value + 0.2)}}}
        for name, x, value in (("A", 0.3, 0.5), ("B", 0.7, 0.75))
    ]
    about = {"title": "t", "source": "s", "rows": [{"name": "A", "recipe": "r"}]}
    [bars] = win_rates(Table.model_validate(about), rows, "sampled").panels
    assert bars.kind == "bars"
    assert bars.series[0].points == (Point("A", 50, 40, 70), Point("B", 75, 65, pytest.approx(95)))
    [sweep] = win_rates(Table.model_validate(about | {"axis": "gamma"}), rows, "sampled").panels
    assert (sweep.kind, sweep.x, [point.x for point in sweep.series[0].points]) == ("lines", "gamma", [0.3, 0.7])


def test_differences_are_sorted_over_all_seeds_with_a_band(tmp_path: Path) -> None:
    def written(*ratios: float) -> Path:
        rows = [{"prompt_id": str(at), "side": "chosen", "log_ratio": each} for at, each in enumerate(ratios)]
        path = tmp_path / f"{len(list(tmp_path.iterdir()))}.json"
        path.write_text(json.dumps({"implicit": {"rows": rows}}))
        return path

    values = differences_by_side([(written(1.0, -2.0), written(0.0, 0.0)), (written(3.0), written(1.0))])
    assert values == {"chosen": [{"0": 1.0, "1": -2.0}, {"0": 2.0}], "rejected": [], "sample": []}
    picture = differences(values, "A", "B")
    assert [point.y for point in picture.panels[0].series[0].points] == pytest.approx([-2.0, 1.0, 2.0])
    assert all(point.low <= point.high for point in picture.panels[0].series[0].points)
    assert "A less B" in picture.caption and "chosen: mean 0.750 [" in picture.caption
    assert "; above 0, %: 75.0 [" in picture.caption and "]; mean: cannot tell from 0 (80 % power at " in picture.caption
    assert picture.panels[0].notes == judge_differences(values["chosen"]).notes
    assert [panel.empty for panel in picture.panels] == [False, True, True]
    assert np.isfinite([point.x for point in picture.panels[0].series[0].points]).all()
