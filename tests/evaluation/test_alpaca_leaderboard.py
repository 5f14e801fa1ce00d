"""AlpacaEval's published numbers come out of our code, where a clone of its repository is at hand."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

pytest.importorskip("openai")
from tests.evaluation.alpaca_leaderboard import (
    Clone,
    Comparison,
    compare_length_controlled,
    compare_preferences,
    compare_win_rates,
)

CLONE, DIFFICULTY = "ALPACA_EVAL_REPOSITORY", "ALPACA_EVAL_DIFFICULTY"
needs_clone = pytest.mark.skipif(CLONE not in os.environ, reason=f"{CLONE} names no clone of github.com/tatsu-lab/alpaca_eval")


@needs_clone
@pytest.mark.slow
def test_win_rates_errors_and_lengths_are_those_of_the_leaderboard() -> None:
    for comparison in compare_win_rates(Clone(Path(os.environ[CLONE]))):
        assert comparison.deviations and not comparison.differing, comparison.line()


@needs_clone
@pytest.mark.slow
def test_published_replies_give_the_published_preferences() -> None:
    comparison = compare_preferences(Clone(Path(os.environ[CLONE])), 1)
    assert comparison.deviations and not comparison.differing, comparison.line()


@needs_clone
@pytest.mark.slow
@pytest.mark.skipif(DIFFICULTY not in os.environ, reason=f"{DIFFICULTY} names no instruction_difficulty.csv of the hub")
def test_published_weights_give_the_published_length_controlled_win_rates() -> None:
    values, errors = compare_length_controlled(Clone(Path(os.environ[CLONE])), Path(os.environ[DIFFICULTY]))
    assert len(values.deviations) > 150 and not values.unexplained, values.line()
    assert errors.deviations and not errors.differing, errors.line()


def test_a_comparison_tells_who_differs_and_what_is_known_of_it() -> None:
    comparison = Comparison("length_controlled_winrate", 1e-3)
    for model, ours in {"a": 10.0005, "dbrx-instruct": 11.0, "b": 10.01, "c": float("nan")}.items():
        comparison.add(model, ours, 10.0)
    assert comparison.differing == ["dbrx-instruct", "b", "c"]
    assert comparison.unexplained == ["b", "c"]
    assert comparison.line().startswith(
        "length_controlled_winrate: 1 of 4 within 0.001, the largest deviation among them 0.0005\n"
    )
