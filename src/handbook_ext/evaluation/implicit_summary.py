"""The numbers of implicit rewards: correlations, accuracy and log-ratios from rows, without the models that made them."""

from __future__ import annotations

from statistics import fmean
from typing import Any

from handbook_ext.objectives.metrics import correlation, rank_correlation

UNBIASED_AT = "an unbiased estimate of the KL divergence only at temperature 1 and top_p 1, where no answer is cut"
"""What the mean log-ratio of own answers is, and is not, beside the number called kl."""


def summarised(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Returns the rows, the correlation of implicit reward with the ranker's reward and with length, and `kl`.

    Correlations are over the held-out chosen and rejected completions (SeRA, figure 3); `kl` is the mean log-ratio of the
    policy's own samples to the initial policy, in nats per completion: an estimate of the KL divergence that is unbiased for
    samples at temperature 1 and top-p 1 which max_new_tokens did not cut; below temperature 1 it is that of likelier answers.
    Where rows of samples have their log-probs, `surprisal` is the mean of these, negated: under the same conditions an unbiased
    estimate of the policy's entropy, of colder samples usually less.
    """
    offline, own = ([row for row in rows if (row["side"] == "sample") == sample] for sample in (False, True))
    found: dict[str, Any] = {}
    for other in ("reward", "tokens"):
        # Rewards are without beta: a positive constant changes no correlation.
        known = [row for row in offline if row[other] is not None]
        columns = [row["log_ratio"] for row in known], [float(row[other]) for row in known]
        found[f"correlation_{other}"] = correlation(*columns) if known else None
        found[f"rank_correlation_{other}"] = rank_correlation(*columns) if known else None
    sides = {side: [row["log_ratio"] for row in offline if row["side"] == side] for side in ("chosen", "rejected")}
    # Both sides of a prompt are scored or left out together, so the two lists are aligned.
    right = [float(a > b) + 0.5 * (a == b) for a, b in zip(*sides.values(), strict=True)]
    accuracy = fmean(right) if right else None
    found |= {"accuracy": accuracy, "kl": fmean(row["log_ratio"] for row in own) if own else None}
    # Evaluations of earlier versions have none.
    if own and all("log_prob" in row for row in own):
        found["surprisal"] = -fmean(row["log_prob"] for row in own)
    return {**found, "rows": rows}
