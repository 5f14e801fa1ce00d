"""Paired tests over prompts: by hand, against scipy, and what correction does to them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from handbook_ext.objectives.paired_tests import holm, sign_test, win_rate_test

# Not st.floats: the tests flush denormals, which it minds.
shares = st.integers(0, 1000).map(lambda number: number / 1000)


@pytest.mark.parametrize(
    ("outcomes", "expected"),
    [
        ([1, 1, 1, 1, 1], 2 / 32),  # Five heads of five, in either direction.
        ([0, 0, 0, 0, 0.5, 0.5], 2 / 16),  # Ties say nothing.
        ([1, 0, 1, 0], 1.0),
        ([0.5, 0.5], 1.0),
        ([0.75, 0.6, 0.51, 0.2], 2 * 5 / 16),  # Means over seeds: three of four above a half.
    ],
)
def test_wins_are_held_against_losses(outcomes: list[float], expected: float) -> None:
    assert sign_test(outcomes) == pytest.approx(expected)
    assert sign_test([1 - one for one in outcomes]) == pytest.approx(expected)


@pytest.mark.parametrize("outcomes", [[], [[1.0, 0.0]], 1.0])
def test_what_holds_no_outcome_per_prompt_is_refused(outcomes: object) -> None:
    with pytest.raises(ValueError, match="one per prompt"):
        sign_test(outcomes)  # type: ignore[arg-type]


def test_one_seed_is_tested_over_its_prompts() -> None:
    outcomes = [1.0] * 14 + [0.0] * 4 + [0.5] * 2
    assert win_rate_test([outcomes], crossed=False) == sign_test(outcomes) == win_rate_test([outcomes], crossed=True)


def test_several_seeds_must_convince_as_prompts_and_as_seeds() -> None:
    """Three seeds that win 80, 60 and 40 %: their prompts say yes, their few means do not."""
    groups = [np.repeat([1.0, 0.0], [n, 100 - n]) for n in (80, 60, 40)]
    over_prompts, over_seeds = sign_test(np.concatenate(groups)), float(stats.ttest_1samp([0.8, 0.6, 0.4], 0.5).pvalue)
    assert over_prompts < 0.001 < over_seeds
    assert win_rate_test(groups, crossed=False) == pytest.approx(over_seeds)
    # Seeds that agree to the last prompt: now the prompts are what little there is.
    assert win_rate_test([[1.0] * 5, [1.0] * 5], crossed=True) == pytest.approx(2 / 32)
    assert win_rate_test([[1.0] * 5, [1.0] * 5], crossed=False) == pytest.approx(2 / 1024)
    assert win_rate_test([[1.0, 0.0], [0.0, 1.0]], crossed=True) == 1.0


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == pytest.approx([1.0, 1.0])
    assert (holm([0.02]), holm([])) == ([0.02], [])


@given(st.lists(shares, min_size=1, max_size=8))
def test_holm_keeps_the_order_and_lowers_nothing(values: list[float]) -> None:
    adjusted = holm(values)
    assert all(before <= after <= 1 for before, after in zip(values, adjusted, strict=True))
    order = sorted(range(len(values)), key=lambda index: values[index])
    assert [adjusted[index] for index in order] == sorted(adjusted)
    assert min(adjusted) == pytest.approx(min(1.0, len(values) * min(values)))
