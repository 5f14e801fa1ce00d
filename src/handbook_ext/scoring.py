"""Filling the score store: log-probs of completions under one policy, each computed once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from handbook_ext.batching import BatchPlan, Slot
from handbook_ext.collation import EncodedPair, pack
from handbook_ext.encoding import EncodedPairs
from handbook_ext.errors import UserError
from handbook_ext.policy_forward import uses_one_row
from handbook_ext.shards import batched

MICRO_BATCHES_PER_SHARD = 32


def score_batch(policy: PreTrainedModel, pairs: list[EncodedPair], *, pad_id: int, head_chunk: int) -> list[list[float]]:
    """Returns log-probs (nats, summed over the completion) of each pair's distinct completions."""
    rows = pack(pairs, pad_id=pad_id, one_row=uses_one_row(policy)).to(policy.device)
    with torch.no_grad():
        values = policy(rows=rows, head_chunk=head_chunk).tolist()
    ends = rows.chosen.tolist()
    return [values[start : start + len(pair.completions)] for start, pair in zip(ends, pairs, strict=True)]


def store_batches(plan: BatchPlan) -> list[list[list[Slot]]]:
    """Returns the micro-batches of the first training epoch, grouped into shards.

    Scoring in the very shapes of training gives training's first step log-probs that are equal to the bit.
    """
    return batched(plan.epoch(0), MICRO_BATCHES_PER_SHARD)


def score_shard(
    policy: PreTrainedModel, encoded: EncodedPairs, shard: list[list[Slot]], *,
    policy_name: str, pad_id: int, head_chunk: int,
) -> list[dict[str, Any]]:  # fmt: skip
    """Returns the store's rows of a shard: one for every distinct completion."""
    rows: dict[str, dict[str, Any]] = {}
    for batch in shard:
        rows |= _score_slots(policy, encoded, batch, pad_id=pad_id, head_chunk=head_chunk)
    return [{"policy": policy_name, **row} for row in rows.values()]


def _score_slots(
    policy: PreTrainedModel, encoded: EncodedPairs, batch: list[Slot], *, pad_id: int, head_chunk: int
) -> dict[str, dict[str, Any]]:
    """Returns the store's rows of one micro-batch; fillers are computed, for equal shapes, and left out."""
    scored = score_batch(policy, [encoded.pairs[s.index] for s in batch], pad_id=pad_id, head_chunk=head_chunk)
    rows = {}
    for slot, values in zip(batch, scored, strict=True):
        if slot.weight:
            lengths = map(len, encoded.pairs[slot.index].completions)
            for name, value, tokens in zip(encoded.ids[slot.index], values, lengths, strict=True):
                rows[name] = {"completion": name, "sum": value, "mean": value / tokens, "tokens": tokens}
    return rows


def read_store(folder: Path, policy_name: str) -> dict[str, float]:
    """Returns summed log-probs (nats) by completion id; refuses a store of another policy or with a repeated id."""
    store: dict[str, float] = {}
    for path in sorted(folder.glob("*.jsonl")):
        for line in path.read_text().splitlines():
            row = json.loads(line)
            if row["policy"] != policy_name:
                raise UserError(
                    f"{path}: scored by policy {row['policy'][:12]}, but training starts from {policy_name[:12]}; run make"
                )
            if row["completion"] in store:
                raise UserError(f"{path}: completion {row['completion']} is scored twice; delete {folder} and run make")
            store[row["completion"]] = row["sum"]
    return store
