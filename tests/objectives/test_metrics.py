"""Win rates and intervals: hand-computed values, known coverage, and every refusal."""

import numpy as np
import pytest

from handbook_ext.objectives.metrics import (
    Interval,
    Scores,
    comparable,
    compare_scores,
    correlation,
    hierarchical_interval,
    outcomes,
    rank_correlation,
    summarise_scores,
    word_verdict,
)


def scores(rewards: list[float], prompts: str = "abcdefgh") -> Scores:
    """Scores with one letter as each prompt id and two tokens each."""
    values = np.array(rewards, dtype=np.float64)
    return Scores(tuple(prompts[: len(rewards)]), values, np.full(len(rewards), 2.0))


def test_win_rate_counts_ties_half() -> None:
    """One win, one tie, two losses."""
    assert outcomes([1, 2, 3, 4], [0, 2, 4, 5]).tolist() == [1.0, 0.5, 0.0, 0.0]
    assert outcomes([1, 2], [1, 2]).tolist() == [0.5, 0.5]


def test_win_rates_of_both_sides_sum_to_one() -> None:
    """What one side wins the other loses, ties included."""
    rng = np.random.default_rng(0)
    ours, theirs = rng.integers(0, 4, 100), rng.integers(0, 4, 100)
    assert (outcomes(ours, theirs) + outcomes(theirs, ours)).tolist() == [1.0] * 100


def test_correlation_is_none_for_constants() -> None:
    """Pearson's is undefined there; elsewhere it is the usual one."""
    assert correlation([1, 1, 1], [1, 2, 3]) is None
    assert correlation([1, 2, 3], [2, 4, 6]) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("ours", "theirs", "words"),
    [([1], [1, 2], "cannot be compared"), ([], [], "cannot be compared"), ([np.nan], [1.0], "nan or inf")],
)
def test_unusable_rewards_are_refused(ours: list[float], theirs: list[float], words: str) -> None:
    """Different lengths, nothing at all, and nan."""
    with pytest.raises(ValueError, match=words):
        outcomes(ours, theirs)


def test_bootstrap_is_seeded_and_agrees_with_the_normal_interval() -> None:
    """1.96 standard errors to each side, the same at each call."""
    values = np.random.default_rng(1).normal(3.0, 1.0, 400)
    found = hierarchical_interval([values], resamples=4000)
    error = 1.96 * values.std() / 20
    assert found == hierarchical_interval([values], resamples=4000)
    assert found != hierarchical_interval([values], resamples=4000, seed=1)
    assert found.value == pytest.approx(values.mean())
    assert found.high - found.value == pytest.approx(error, rel=0.1)
    assert found.value - found.low == pytest.approx(error, rel=0.1)


def test_constant_values_have_no_width() -> None:
    """Nothing to resample."""
    assert hierarchical_interval([[2.0, 2.0]]) == Interval(2.0, 2.0, 2.0)


def test_interval_over_prompts_covers_the_truth() -> None:
    """About 95 of 100 intervals hold the mean that the data were drawn with."""
    rng = np.random.default_rng(2)
    found = [hierarchical_interval([rng.normal(0, 1, 60)], resamples=400) for _ in range(200)]
    assert 0.88 <= np.mean([one.side_here(0) == 0 for one in found]) <= 0.99


def test_a_side_is_taken_only_where_the_seeds_agree_as_well() -> None:
    """Means 0.6, 0.7, 0.8 by hand: Student's t for two degrees of freedom is 4.303, so 0.7 -+ 4.303 * 0.1 / sqrt(3)."""
    found = hierarchical_interval([[mean] * 50 for mean in (0.6, 0.7, 0.8)])
    assert found.seeds == pytest.approx(4.302653 * 0.1 / 3**0.5)
    assert found.low > 0.5
    assert found.side(0.5) == 0  # 0.7 - 0.248 is below a half
    assert hierarchical_interval([[mean] * 50 for mean in (0.69, 0.7, 0.71)]).side(0.5) == 1
    assert hierarchical_interval([[0.6, 0.8]]).seeds is None


def test_verdicts_over_three_seeds_are_seldom_wrong() -> None:
    """Seeds that scatter by 8 points around a half: a side is taken in about 5 of 100, by the bootstrap alone in 15."""
    rng = np.random.default_rng(4)
    wins = [[rng.random(100) < mean for mean in rng.normal(0.5, 0.08, 3)] for _ in range(300)]
    found = [hierarchical_interval(seeds, resamples=200) for seeds in wins]
    assert np.mean([one.side(0.5) != 0 for one in found]) < 0.08
    assert np.mean([not one.low <= 0.5 <= one.high for one in found]) > 0.08


def test_one_group_is_the_bootstrap_over_prompts() -> None:
    """The hierarchy of one seed has one level, crossed or not."""
    values = [1.0, 2.0, 5.0]
    assert hierarchical_interval([values]) == hierarchical_interval([values], crossed=True)


def test_differences_between_seeds_widen_the_interval() -> None:
    """Three seeds with means 0, 1, 2 say less than three with the same mean."""
    rng = np.random.default_rng(3)
    noise = [rng.normal(0, 0.1, 50) for _ in range(3)]
    apart = hierarchical_interval([one + mean for mean, one in enumerate(noise)])
    together = hierarchical_interval(noise)
    assert apart.value == pytest.approx(np.mean(noise) + 1)
    assert apart.high - apart.low > 10 * (together.high - together.low)


def test_shared_prompts_are_drawn_once_for_all_seeds() -> None:
    """Three copies of one seed know no more than that seed does, unless their prompts are wrongly drawn apart."""
    values = np.random.default_rng(4).normal(0, 1, 100)
    one = hierarchical_interval([values])
    crossed = hierarchical_interval([values] * 3, crossed=True)
    nested = hierarchical_interval([values] * 3)
    assert crossed.high - crossed.low == pytest.approx(one.high - one.low, rel=0.1)
    assert nested.high - nested.low < 0.7 * (one.high - one.low)


def test_bad_bootstraps_are_refused() -> None:
    """No group, no resample, no confidence, and seeds that cannot share prompts."""
    with pytest.raises(ValueError, match="one array per seed"):
        hierarchical_interval([])
    with pytest.raises(ValueError, match="out of range"):
        hierarchical_interval([[1.0]], resamples=0)
    with pytest.raises(ValueError, match="out of range"):
        hierarchical_interval([[1.0]], confidence=1.0)
    with pytest.raises(ValueError, match="do not share them"):
        hierarchical_interval([[1.0], [1.0, 2.0]], crossed=True)


def test_compare_scores_pairs_by_seed_and_prompt() -> None:
    """Two seeds that win 2 of 2 and 1 of 2 win three quarters."""
    found = compare_scores([scores([2, 2]), scores([2, 0])], [scores([1, 1]), scores([1, 1])])
    assert found["win_rate"].value == 0.75
    assert found["gain"].value == 0.5
    with pytest.raises(ValueError, match="seeds cannot be compared"):
        compare_scores([scores([1])], [])
    with pytest.raises(ValueError, match="different prompts"):
        compare_scores([scores([1])], [scores([1], prompts="z")])


def test_comparable_needs_decodings_temperatures_and_prompts() -> None:
    """Any of the three that differs forbids the comparison."""
    one = scores([1.0])
    warm = Scores(one.prompt_ids, one.rewards, one.tokens, temperature=0.7)
    assert comparable({"greedy": one}, {"greedy": scores([3.0])})
    assert not comparable({"greedy": one}, {"sampled": one})
    assert not comparable({"greedy": one}, {"greedy": warm})
    assert not comparable({"greedy": one}, {"greedy": scores([1.0], prompts="z")})


def test_summary_compares_with_the_first_and_the_previous_policy() -> None:
    """The first policy has nothing to compare with."""
    first, second, third = summarise_scores([[scores([0, 0])], [scores([2, 2])], [scores([1, 3])]], resamples=50)
    assert first["vs_start"] is None
    assert second["vs_start"] == second["vs_previous"]
    assert third["vs_start"]["win_rate"].value == 1.0
    assert third["vs_previous"]["win_rate"].value == 0.5
    assert third["reward_by_seed"] == [2.0]
    assert third["tokens"].value == 2.0
    assert third["reward_tokens_correlation"] is None


@pytest.mark.parametrize(
    ("low", "high", "words"),
    [
        (0.6, 0.8, "a beats b in 70.0 % [60.0, 80.0]"),
        (0.4, 0.6, "a cannot be told apart from b, winning 50.0 % [40.0, 60.0]"),
        (0.1, 0.3, "a falls behind b, winning only 20.0 % [10.0, 30.0]"),
    ],
)
def test_the_verdict_claims_no_more_than_the_interval(low: float, high: float, words: str) -> None:
    """Above, around and below one half."""
    assert word_verdict("a", "b", Interval((low + high) / 2, low, high, seeds=0.0)) == words


def test_the_ranks_correlate_where_the_values_do_not_lie_on_a_line() -> None:
    """Ranks 0, 1, 2, 3 against 0, 1, 3, 2: deviations -1.5, -.5, .5, 1.5 and -1.5, -.5, 1.5, .5 give 4 / 5."""
    assert rank_correlation([1, 2, 4, 8], [3, 5, 90, 7]) == pytest.approx(0.8)
    assert rank_correlation([1, 2, 4, 8], [-1, -1000, -1001, -1002]) == pytest.approx(-1.0)
    assert rank_correlation([1, 2, 3], [7, 7, 7]) is None


def test_equal_values_share_the_mean_of_their_ranks() -> None:
    """Ranks 0, 1.5, 1.5, 3 against 0, 1, 2, 3: deviations -1.5, 0, 0, 1.5, so 4.5 / sqrt(4.5 * 5)."""
    assert rank_correlation([1, 6, 6, 9], [1, 2, 3, 4]) == pytest.approx((4.5 / 5) ** 0.5)
    # Ranks 1, 1, 1, 3 against 0, 1, 2, 3: deviations -.5, -.5, -.5, 1.5, so 3 / sqrt(3 * 5).
    assert rank_correlation([6, 6, 6, 9], [1, 2, 3, 4]) == pytest.approx((3 / 5) ** 0.5)


def test_correlation_needs_one_value_per_prompt_on_either_side() -> None:
    assert correlation([1, 2, 3], [1, 1, 1]) is None
    assert correlation([0, 1, 2, 3], [0, 3, 1, 2]) == pytest.approx(0.4)
    for first, second in (([[1.0]], [[1.0]]), ([1.0], [np.nan]), ([1.0, 2.0], [np.inf, 1.0])):
        with pytest.raises(ValueError, match=r"cannot be compared|nan or inf"):
            correlation(first, second)


def test_a_summary_correlates_reward_with_length_where_it_can() -> None:
    """1 and -1 in two seeds, and undefined in a third whose rewards are all equal: a mean of 0."""
    tokens = np.array([1.0, 2.0])
    seeds = [Scores(("a", "b"), np.array(rewards), tokens) for rewards in ([1.0, 2.0], [2.0, 1.0], [1.0, 1.0])]
    [found] = summarise_scores([seeds], resamples=20)
    assert found["reward_tokens_correlation"] == pytest.approx(0.0)
    [found] = summarise_scores([seeds[:1]], resamples=20)
    assert found["reward_tokens_correlation"] == pytest.approx(1.0)
    assert (found["tokens"].value, found["reward"].value, found["vs_previous"]) == (1.5, 1.5, None)
