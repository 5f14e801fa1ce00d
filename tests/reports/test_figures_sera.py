"""The figures of SeRA from runs made by hand: each number against one worked out here."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy.stats import pearsonr, spearmanr

from handbook_ext.core.errors import UserError
from handbook_ext.reports.paper_figures import FIGURES
from handbook_ext.reports.paper_tables import read_paper_table
from tests.recipe_folder import ROOT
from tests.reports.figure_world import evaluation, numbers, set_evaluation, sources
from tests.reports.test_table_numbers import write_pairs

# Log-ratio, reward, tokens of the held-out answers to three prompts; one has no readable verdict.
HELD_OUT = {
    "chosen": [(2.0, 1.0, 9), (1.0, 0.5, 3), (0.5, 0.75, 4)], "rejected": [(-1.0, 0.25, 5), (0.5, 0.5, 8), (-2.0, None, 2)]
}  # fmt: skip


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    """Recipes and tables are found from the repository's root."""
    monkeypatch.chdir(ROOT)


def trained(folder: Path, last: list[float], kept: str = "ab", policy: str = "iter3") -> None:
    """A run whose start has the reward 2 everywhere, and its last policy with the pairs that it trained on."""
    evaluation(folder / "sft", [2] * 4)
    evaluation(folder / policy, last)
    write_pairs(folder / policy, dict.fromkeys(kept, False), on_policy="z")


def test_figure_2_has_win_rates_by_selector_for_each_objective(tmp_path: Path) -> None:
    trained(tmp_path / "tiny-select-margin", [3, 3, 3, 1])
    trained(tmp_path / "tiny-iterative-ipo", [3, 3, 2, 1])
    trained(tmp_path / "tiny-sera-ipo+select.bootstrap-0.0+select.gamma-0.0+select.keep_by-score_gap", [3, 3, 3, 3])
    assert numbers("sera2", sources(tmp_path)) == {
        ("tiny, DPO", "ours", "implicit reward margin"): 75.0, ("tiny, IPO", "ours", "no selection"): 62.5,
        ("tiny, IPO", "ours", "score gap"): 100.0,
    }  # fmt: skip


def test_figure_2_takes_the_judges_win_rate_where_it_is(tmp_path: Path) -> None:
    trained(tmp_path / "tiny-select-margin", [3, 3, 3, 1])
    set_evaluation(tmp_path / "tiny-select-margin/iter3/alpaca", {"vs_start": (61.0, 1.5)})
    picture = FIGURES["sera2"].build(sources(tmp_path))
    point = next(point for point in picture.panels[0].series[0].points if point.y is not None)
    assert (point.y, picture.panels[0].y, picture.panels[0].level) == (61.0, "AlpacaEval, win rate against SFT (%)", 50.0)
    assert point.high == pytest.approx(61 + 1.96 * 1.5, abs=1e-3)


def test_figure_3_correlates_implicit_rewards_with_rewards_and_lengths(tmp_path: Path) -> None:
    evaluation(tmp_path / "tiny-select-margin/iter3", [1] * 3, held_out=HELD_OUT)
    rows = np.array([row for side in HELD_OUT.values() for row in side], dtype=float)
    judged = rows[np.isfinite(rows[:, 1])]
    row, panels = "implicit reward margin", ("implicit reward and reward", "implicit reward and length (tokens)")
    assert numbers("sera3", sources(tmp_path)) == {
        (panels[0], "Pearson", row): pytest.approx(pearsonr(judged[:, 0], judged[:, 1]).statistic),
        (panels[0], "Spearman", row): pytest.approx(spearmanr(judged[:, 0], judged[:, 1]).statistic),
        (panels[1], "Pearson", row): pytest.approx(pearsonr(rows[:, 0], rows[:, 2]).statistic),
        (panels[1], "Spearman", row): pytest.approx(spearmanr(rows[:, 0], rows[:, 2]).statistic),
    }


def test_figure_4_has_the_papers_bars_with_ours_beside(tmp_path: Path) -> None:
    trained(tmp_path / "tiny-sera-noise20", [3, 3, 3, 1])
    set_evaluation(tmp_path / "tiny-sera-noise20/iter3/vicuna", {"vs_start": (58.0, 2.0)})
    picture = FIGURES["sera4"].build(sources(tmp_path))
    found = numbers("sera4", sources(tmp_path))
    for printed, words in (("sera7", "20 % flipped"), ("sera8", "40 % flipped")):
        table = read_paper_table(printed)
        for name in ("AlpacaEval", "Vicuna", "Evol", "UltraFeedback"):
            for row in ("DPO", "Iterative DPO", "cDPO", "rDPO", "IPO", "SeRA-DPO"):
                number = table.number("TinyLlama-1.1B", row, f"{name} vs SFT")
                assert found.pop((f"{name}, {words}", "paper", row)) == number
    assert found == {("Vicuna, 20 % flipped", "ours", "SeRA-DPO"): 58.0, ("tiny, 20 % flipped", "ours", "SeRA-DPO"): 75.0}
    assert [panel.notes for panel in picture.columns[0]] == [("ours: not run",)] * 2
    assert [panel.notes for panel in picture.columns[1]] == [(), ("ours: not run",)]


def test_figure_5a_has_a_line_for_each_iteration_with_and_without_own_pairs(tmp_path: Path) -> None:
    trained(tmp_path / "tiny-sera", [3, 3, 3, 1])
    evaluation(tmp_path / "tiny-sera/iter2", [3, 3, 1, 1])
    trained(tmp_path / "tiny-sera+select.bootstrap-1.0+select.keep-0.0", [1] * 4)
    trained(tmp_path / "tiny-sera-selection+select.keep-0.3", [3] * 4)
    assert {key[1:]: value for key, value in numbers("sera5a", sources(tmp_path)).items()} == {
        ("iter2, K + K~ = N", "0.7"): 50.0, ("iter3, K + K~ = N", "0.7"): 75.0, ("iter3, K + K~ = N", "0.0"): 0.0,
        ("iter3, selection only", "0.3"): 100.0,
    }  # fmt: skip
    lines = [one.line for one in FIGURES["sera5a"].build(sources(tmp_path)).panels[0].series]
    assert lines == ["-", "-", ":", ":"]


def test_figures_5b_and_6a_sweep_own_pairs_and_gamma(tmp_path: Path) -> None:
    trained(tmp_path / "tiny-sera", [3, 3, 3, 1])
    trained(tmp_path / "tiny-sera+select.bootstrap-0.5", [3, 3, 1, 1])
    trained(tmp_path / "tiny-sera+select.gamma-0.9", [3, 1, 1, 1])
    found = [{key[2]: value for key, value in numbers(name, sources(tmp_path)).items()} for name in ("sera5b", "sera6a")]
    assert found == [{"0.3": 75.0, "0.5": 50.0}, {"0.3": 75.0, "0.9": 25.0}]


def test_figures_6_have_the_jaccard_similarities_of_offline_pairs(tmp_path: Path) -> None:
    for name, kept in (("tiny-sera", "abc"), ("tiny-sera+select.gamma-0.9", "bcd"), ("tiny-sera-ipo", "abcd")):
        trained(tmp_path / name, [3] * 4, kept)
        write_pairs(tmp_path / name / "iter2", {"a": False, "b": False})
    gammas = {key[1:]: value for key, value in numbers("sera6b", sources(tmp_path)).items() if key[1] != key[2]}
    assert gammas == {("gamma 0.3", "gamma 0.9"): 0.5, ("gamma 0.9", "gamma 0.3"): 0.5}
    losses = {key[1:]: value for key, value in numbers("sera6d", sources(tmp_path)).items()}
    # Of a, b and a, b, c; of a, b, c and a, b, c, d.
    assert losses["DPO, iter2", "DPO, iter3"] == pytest.approx(2 / 3)
    assert (losses["DPO, iter3", "IPO, iter3"], losses["DPO, iter2", "IPO, iter2"]) == (0.75, 1.0)
    assert not any("SimPO" in name for key in losses for name in key)


def test_figure_6c_compares_depths_of_one_model_or_several_models(tmp_path: Path) -> None:
    for name, kept in (("tiny-sera", "abc"), ("tiny-sera+model.architecture.num_hidden_layers-1", "cd")):
        trained(tmp_path / name, [3] * 4, kept)
    found = {key[1:]: value for key, value in numbers("sera6c", sources(tmp_path)).items()}
    assert found["1 layer, iter3", "2 layers, iter3"] == 0.25
    with pytest.raises(UserError, match=r"compares models, and zephyr is one alone; MODEL=tinyllama has the paper's three"):
        FIGURES["sera6c"].build(sources(tmp_path, "zephyr"))


def test_figure_11_has_margins_against_gaps_of_rewards(tmp_path: Path) -> None:
    evaluation(tmp_path / "tiny-select-margin/iter3", [1] * 3, held_out=HELD_OUT)
    panel = next(panel for panel in FIGURES["sera11"].build(sources(tmp_path)).panels if panel.series)
    assert panel.title == "implicit reward margin"
    # The third prompt has no reward of one side.
    assert [(point.x, point.y) for point in panel.series[0].points] == [(0.75, 3.0), (0.0, 0.5)]
    assert [(fact.name, fact.value) for fact in panel.facts] == [("Pearson", pytest.approx(1)), ("Spearman", pytest.approx(1))]
