"""What seeds could have told: against simulated tests of the very rule, by hand, and what is said of it."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from handbook_ext.objectives.metrics import Interval, hierarchical_interval
from handbook_ext.objectives.power import detectable, detectable_by_error, p_value, standard_errors, told_in_words

CONFIDENCE = 0.95


def interval(error: float, seeds: int, drawn: float = 0.0, value: float = 0.5) -> Interval:
    """An interval whose seeds have this standard error of their mean, and the bootstrap that one."""
    half, spread = 1.959964 * drawn, float(stats.t.ppf(0.975, seeds - 1)) * error
    return Interval(value, value - half, value + half, spread)


@pytest.mark.parametrize("tests", [1, 3])
@pytest.mark.parametrize("seeds", [2, 3, 5, 20])
def test_the_detectable_difference_is_told_in_80_of_100_simulated_tests(seeds: int, tests: int) -> None:
    """Seeds that scatter by 5 points around it, held against none by scipy's test at the corrected level."""
    smallest = detectable(interval(0.05 / seeds**0.5, seeds), seeds, CONFIDENCE, tests=tests)
    assert smallest is not None
    means = np.random.default_rng(1).normal(smallest, 0.05, (20000, seeds))
    told = stats.ttest_1samp(means, 0.0, axis=1).pvalue < 0.05 / tests
    assert told.mean() == pytest.approx(0.8, abs=0.01)


@pytest.mark.parametrize(("seeds", "scatter"), [(3, 0.04), (10, 0.0)])
def test_the_measured_spread_tells_what_the_whole_verdict_finds(seeds: int, scatter: float) -> None:
    """100 prompts a seed: with 3 seeds that differ Student's t decides, with 10 that do not the bootstrap; both are in it."""
    rng = np.random.default_rng(2)

    def tables(mean: float, count: int) -> list[Interval]:
        wins = [[rng.random(100) < each for each in rng.normal(mean, scatter, seeds)] for _ in range(count)]
        return [hierarchical_interval(one, resamples=100) for one in wins]

    smallest = np.mean([detectable(one, seeds, CONFIDENCE) for one in tables(0.5, 40)])
    assert np.mean([one.side(0.5) > 0 for one in tables(0.5 + smallest, 120)]) == pytest.approx(0.8, abs=0.1)


def test_the_p_value_is_that_of_the_test_whose_interval_is_printed() -> None:
    means = [0.6, 0.66, 0.7, 0.64]
    found = hierarchical_interval([[mean] * 50 for mean in means])
    assert p_value(found, 0.5, 4, CONFIDENCE) == pytest.approx(stats.ttest_1samp(means, 0.5).pvalue)
    at_the_end = found.value - float(found.seeds or 0)
    assert p_value(found, at_the_end, 4, CONFIDENCE) == pytest.approx(0.05)
    assert standard_errors(found, 4, CONFIDENCE)[0] == pytest.approx(stats.sem(means))


def test_prompts_that_all_seeds_share_enter_the_p_value_by_the_bootstrap() -> None:
    """Seeds that agree on 12 of 20 won prompts: Student's t over them is certain, the prompts are not."""
    found = hierarchical_interval([[1.0] * 12 + [0.0] * 8] * 3, crossed=True)
    assert found.seeds == 0.0
    assert 0.2 < p_value(found, 0.5, 3, CONFIDENCE) < 0.6
    assert detectable(found, 3, CONFIDENCE) == pytest.approx(2.8 * (0.24 / 20) ** 0.5, rel=0.1)


def test_seeds_without_any_spread_are_certain_and_have_no_smallest_difference() -> None:
    same = Interval(0.7, 0.7, 0.7, 0.0)
    assert (p_value(same, 0.7, 3, CONFIDENCE), p_value(same, 0.5, 3, CONFIDENCE)) == (1.0, 0.0)
    assert detectable(same, 3, CONFIDENCE) is None


def test_one_seed_has_no_power_and_no_p_value() -> None:
    one = hierarchical_interval([[1.0, 0.0, 1.0]])
    assert detectable(one, 1, CONFIDENCE) is None
    with pytest.raises(ValueError, match="1 seed has no standard error between seeds"):
        p_value(one, 0.5, 1, CONFIDENCE)


def test_more_tests_and_more_power_ask_for_a_larger_difference() -> None:
    found = interval(0.02, 5, drawn=0.015)
    alone = detectable(found, 5, CONFIDENCE)
    of_three, surer = detectable(found, 5, CONFIDENCE, tests=3), detectable(found, 5, CONFIDENCE, power=0.9)
    assert alone is not None and of_three is not None and surer is not None
    assert alone == pytest.approx(3.7610602 * 0.02, rel=1e-4)
    assert alone < min(of_three, surer)
    assert detectable_by_error(1.0, CONFIDENCE) == pytest.approx(1.959964 + 0.841621, rel=1e-5)


def test_the_smallest_difference_is_told_in_points() -> None:
    assert told_in_words(0.0612) == "a difference of 6.1 points would have been told in 80 of 100 such tables"
    assert told_in_words(0.5, "reports").startswith(
        "seeds differ so much that no difference, however large, would have been told"
    )
    assert told_in_words(0.7, limit=1.0).startswith("a difference of 70.0 points")
    assert told_in_words(None) == ""
