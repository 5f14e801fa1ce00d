"""What implicit rewards are summarised to: correlations and accuracy over offline answers, the KL estimate over own samples."""

from __future__ import annotations

from typing import Any

import pytest

from handbook_ext.evaluation.implicit_summary import summarised

Row = dict[str, Any]


def row(side: str, log_ratio: float, reward: float = 0.0, tokens: int = 3, prompt: str = "p") -> Row:
    return {"prompt_id": prompt, "side": side, "log_ratio": log_ratio, "tokens": tokens, "reward": reward}


# Log-ratios 3, 1, 0, 2 with rewards 9, 1, 0, 2: deviations 1.5, -.5, -1.5, .5 and 6, -2, -3, -1, so Pearson's correlation is
# 14 / sqrt(5 * 50), and the ranks are equal. Tokens 10, 30, 20, 80: deviations -25, -5, -15, 45, so 10 / sqrt(5 * 2900); their
# ranks 0, 2, 1, 3 against 3, 1, 0, 2 give -1 / 5. The samples are so far off that they would turn each of these numbers.
OFFLINE = [row("chosen", 3, 9, 10), row("rejected", 1, 1, 30), row("chosen", 0, 0, 20), row("rejected", 2, 2, 80)]
SAMPLES = [row("sample", 100, -50, 1), row("sample", -90, 70, 500)]


def test_correlations_are_those_of_the_offline_answers_alone() -> None:
    for rows in (OFFLINE, OFFLINE + SAMPLES, SAMPLES + OFFLINE):
        found = summarised(rows)
        assert found["correlation_reward"] == pytest.approx(14 / 250**0.5)
        assert found["rank_correlation_reward"] == pytest.approx(1.0)
        assert found["correlation_tokens"] == pytest.approx(10 / 14500**0.5)
        assert found["rank_correlation_tokens"] == pytest.approx(-0.2)


def test_a_policy_that_likes_what_the_ranker_dislikes_has_negative_correlations() -> None:
    turned = summarised([each | {"log_ratio": -each["log_ratio"]} for each in OFFLINE])
    assert turned["correlation_reward"] == pytest.approx(-14 / 250**0.5)
    assert turned["rank_correlation_tokens"] == pytest.approx(0.2)


def test_kl_is_the_mean_log_ratio_of_the_own_samples_alone() -> None:
    """In nats per answer: (100 - 90) / 2. The offline answers, whose mean is 1.5, do not count."""
    assert summarised(OFFLINE + SAMPLES)["kl"] == pytest.approx(5.0)
    assert summarised([*OFFLINE, row("sample", 0.25)])["kl"] == pytest.approx(0.25)
    assert summarised(OFFLINE)["kl"] is None


def test_surprisal_is_the_mean_negated_log_prob_of_the_own_samples() -> None:
    """In nats per answer: (8 + 3) / 2. Rows of earlier versions have no log-probs, and so no surprisal."""
    known = [each | {"log_prob": value} for each, value in zip(SAMPLES, (-8.0, -3.0), strict=True)]
    assert summarised(OFFLINE + known)["surprisal"] == pytest.approx(5.5)
    for rows in (OFFLINE, SAMPLES, [*SAMPLES[:1], *known[1:]]):
        assert "surprisal" not in summarised(rows)


def test_accuracy_is_the_share_of_pairs_whose_chosen_answer_became_more_likely() -> None:
    """Two pairs are right, one is a tie and counts half, one is wrong; a sample of another value is no part of any pair."""
    pairs = [(2.0, 1.0), (1.0, 1.0), (3.0, -4.0), (0.5, 2.0)]
    rows = [row(side, value) for pair in pairs for side, value in zip(("chosen", "rejected"), pair, strict=True)]
    assert summarised([*rows, row("sample", -7.0)])["accuracy"] == pytest.approx((1 + 0.5 + 1 + 0) / 4)
    assert summarised(rows[:2])["accuracy"] == 1.0
    assert summarised([row("chosen", 1.0), row("rejected", 2.0)])["accuracy"] == 0.0


def test_without_offline_answers_only_the_kl_is_known() -> None:
    """An evaluation on prompts alone; and equal rewards, with which nothing can correlate."""
    found = summarised(SAMPLES)
    assert found.pop("rows") == SAMPLES
    assert found.pop("kl") == pytest.approx(5.0)
    assert set(found.values()) == {None}
    names = {f"{kind}_{of}" for kind in ("correlation", "rank_correlation") for of in ("reward", "tokens")}
    assert found.keys() == {"accuracy"} | names
    assert summarised([row("chosen", 1.0, 2.0), row("rejected", 0.0, 2.0)])["correlation_reward"] is None
