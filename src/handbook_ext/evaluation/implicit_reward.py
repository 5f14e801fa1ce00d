"""Implicit rewards of given texts: how much more likely a policy has become than the first one makes them."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import fmean
from typing import Any

from transformers import PreTrainedModel

from handbook_ext.core.records import Answer, Messages
from handbook_ext.objectives.metrics import correlation, rank_correlation
from handbook_ext.policies.chat import ChatEncoder
from handbook_ext.policies.forward import PrefixShared, prefix_shared
from handbook_ext.training.scoring import TextGroup, encode_groups, score_groups

MICRO_BATCH = 8
HEAD_CHUNK = 4096


@dataclass(frozen=True)
class ScoredCompletion:
    """An answer to a prompt with the ranker's reward; `side` is chosen, rejected or sample."""

    prompt_id: str
    prompt: Messages
    side: str
    answer: Answer
    reward: float


def implicit_rewards(
    policy: PreTrainedModel, initial_policy: PreTrainedModel, completions: list[ScoredCompletion], encoder: ChatEncoder
) -> list[dict[str, Any]]:
    """Returns for each completion log pi - log pi_initial in nats, summed over its tokens, beside its reward and tokens.

    Completions whose prompt is too long are left out.
    """
    groups: dict[str, TextGroup] = {}
    for each in completions:
        groups.setdefault(each.prompt_id, TextGroup(each.prompt_id, each.prompt)).add(each.answer)
    ours, theirs = (_sums(model, list(groups.values()), encoder) for model in (policy, initial_policy))
    rows = []
    for each in completions:
        name = each.answer.completion_id
        if name in ours:
            (total, tokens), (before, _) = ours[name], theirs[name]
            rows.append(
                {
                    "prompt_id": each.prompt_id, "side": each.side, "log_ratio": total - before, "tokens": tokens,
                    "reward": each.reward,
                }
            )  # fmt: skip
    return rows


def summarised(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Returns the rows, the correlation of implicit reward with the ranker's reward and with length, and an estimate of the KL.

    Correlations are over the held-out chosen and rejected answers (SeRA, figure 3); `kl` is the mean log-ratio of the
    policy's own samples, in nats per answer: an estimate of the KL divergence from the first policy, exact in expectation
    for samples at temperature 1.
    """
    offline, own = ([row for row in rows if (row["side"] == "sample") == sample] for sample in (False, True))
    found: dict[str, Any] = {}
    for other in ("reward", "tokens"):
        columns = [row["log_ratio"] for row in offline], [float(row[other]) for row in offline]
        found[f"correlation_{other}"] = correlation(*columns) if offline else None
        found[f"rank_correlation_{other}"] = rank_correlation(*columns) if offline else None
    sides = {side: [row["log_ratio"] for row in offline if row["side"] == side] for side in ("chosen", "rejected")}
    right = [float(a > b) + 0.5 * (a == b) for a, b in zip(*sides.values(), strict=True)]
    accuracy = fmean(right) if right else None
    return {**found, "accuracy": accuracy, "kl": fmean(row["log_ratio"] for row in own) if own else None, "rows": rows}


def _sums(model: PreTrainedModel, groups: list[TextGroup], encoder: ChatEncoder) -> dict[str, tuple[float, int]]:
    """Returns log-prob and tokens of every text under a policy, by completion id."""
    scorer = model if isinstance(model, PrefixShared) else prefix_shared(model)
    encoded = encode_groups(groups, encoder)
    rows = score_groups(
        scorer, encoded, encoded.batches(MICRO_BATCH), policy_name="", pad_id=encoder.tokenizer.pad_token_id,
        head_chunk=HEAD_CHUNK,
    )  # fmt: skip
    return {row["completion"]: (row["sum"], row["tokens"]) for row in rows}
