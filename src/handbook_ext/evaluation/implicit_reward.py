"""Implicit rewards of given texts: how much more likely a policy has become than the first one makes them."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import fmean
from typing import Any

from transformers import PreTrainedModel

from handbook_ext.core.records import Messages, completion_id
from handbook_ext.objectives.metrics import correlation, rank_correlation
from handbook_ext.policies.chat import ChatEncoder
from handbook_ext.policies.forward import PrefixShared, prefix_shared
from handbook_ext.training.scoring import TextGroup, encode_groups, score_groups

MICRO_BATCH = 8
HEAD_CHUNK = 4096


@dataclass(frozen=True)
class Text:
    """A completion with the ranker's reward; `side` is chosen, rejected or sample."""

    prompt_id: str
    side: str
    prompt: Messages
    completion: Messages
    reward: float


def implicit_rewards(
    policy: PreTrainedModel, first: PreTrainedModel, texts: list[Text], encoder: ChatEncoder
) -> list[dict[str, Any]]:
    """Returns for each text log pi - log pi_first in nats, summed over its tokens, beside its reward and tokens.

    Texts whose prompt is too long are left out.
    """
    groups: dict[str, TextGroup] = {}
    for text in texts:
        groups.setdefault(text.prompt_id, TextGroup(text.prompt_id, text.prompt)).add(text.completion)
    ours, theirs = (_sums(model, list(groups.values()), encoder) for model in (policy, first))
    rows = []
    for text in texts:
        name = completion_id(text.prompt_id, text.prompt, text.completion)
        if name in ours:
            (total, tokens), (before, _) = ours[name], theirs[name]
            rows.append(
                {
                    "prompt_id": text.prompt_id, "side": text.side, "log_ratio": total - before, "tokens": tokens,
                    "reward": text.reward,
                }
            )  # fmt: skip
    return rows


def summarised(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Returns the rows with what they tell: how implicit rewards go with true ones and with length, and how far the policy is.

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
