"""Implicit rewards of given completions: their log-ratios between a policy and the initial policy of the run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from handbook_ext.core.records import Answer, Messages
from handbook_ext.core.shards import batched
from handbook_ext.evaluation.shares import in_shares
from handbook_ext.policies.chat import ChatEncoder
from handbook_ext.policies.forward import prefix_shared
from handbook_ext.policies.launch import Launch
from handbook_ext.policies.source import PolicySource
from handbook_ext.training.scoring import MICRO_BATCHES_PER_SHARD, TextGroup, encode_groups, score_groups

# Not settings: they change speed and, in the last bits, rounding.
MICRO_BATCH = 8  # prompts, each with its completions
HEAD_CHUNK = 4096

Sums = Mapping[str, tuple[float, int]]
"""Log-prob (nats, summed) and tokens of completions, by completion id."""


@dataclass(frozen=True)
class ScoredCompletion:
    """A completion of a prompt; `side` is chosen, rejected or sample, `reward` the ranker's, None without a readable verdict."""

    prompt_id: str
    prompt: Messages
    side: str
    answer: Answer
    reward: float | None


def held_out_sums(
    source: PolicySource, completions: Sequence[ScoredCompletion], encoder: ChatEncoder, launch: Launch, folder: Path, name: str
) -> Sums:
    """Returns log-prob (nats) and tokens of every completion under a policy, by completion id, in every process.

    Each process works out its share, and finished ones are kept in the folder. Completions whose prompt is too long are left out.
    """
    policy = prefix_shared(source.load(attn_implementation="sdpa").to(launch.device))
    encoded = encode_groups(_groups(completions, encoder), encoder)

    def scored(shard: list[list[int]]) -> list[dict[str, Any]]:
        """Returns the rows of a shard of micro-batches."""
        return score_groups(
            policy, encoded, shard, policy_name=source.sha256, pad_id=encoder.tokenizer.pad_token_id, head_chunk=HEAD_CHUNK
        )

    shards = batched(encoded.batches(MICRO_BATCH), MICRO_BATCHES_PER_SHARD)
    rows = in_shares(folder / f"under-{name}", shards, scored, launch, f"log-probs under {name}")
    return {row["completion"]: (row["sum"], row["tokens"]) for row in rows}


def implicit_rewards(completions: Sequence[ScoredCompletion], ours: Sums, theirs: Sums) -> list[dict[str, Any]]:
    """Returns for each completion log pi - log pi_initial in nats, summed over its tokens, beside its reward and tokens.

    ours, theirs: the sums under the policy and under the initial policy, which both leave out the same completions. A sample of
    the policy has its log-prob under it as well.
    """
    rows = []
    for each in completions:
        name = each.answer.completion_id
        if name in ours:
            (total, tokens), (before, _) = ours[name], theirs[name]
            # Of its own samples, whose mean says how much the policy spreads its answers; of others it says nothing of that.
            own = {"log_prob": total} if each.side == "sample" else {}
            rows.append(
                {
                    "prompt_id": each.prompt_id, "side": each.side, "log_ratio": total - before, "tokens": tokens,
                    "reward": each.reward, **own,
                }
            )  # fmt: skip
    return rows


def _groups(completions: Sequence[ScoredCompletion], encoder: ChatEncoder) -> list[TextGroup]:
    """Returns the completions by prompt, since those of one share a pass of it."""
    # Where the longest decides what is cut, the policy's own sample, which is another one for each policy, must not decide it for
    # the held-out pair.
    apart = encoder.limits.way == "as_needed"
    groups: dict[tuple[str, bool], TextGroup] = {}
    for each in completions:
        key = (each.prompt_id, apart and each.side == "sample")
        groups.setdefault(key, TextGroup(each.prompt_id, each.prompt)).add(each.answer)
    return list(groups.values())
