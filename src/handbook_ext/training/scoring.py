"""Filling the score store: log-probs of completions under one policy, each computed once."""

from __future__ import annotations

from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import PreTrainedModel

from handbook_ext.core.records import Answer, Messages
from handbook_ext.core.shards import batched
from handbook_ext.objectives.batching import BatchPlan, Slot, within
from handbook_ext.policies.chat import ChatEncoder, Conversation
from handbook_ext.policies.encoding import EncodedPairs
from handbook_ext.policies.forward import pack_for, prefix_shared
from handbook_ext.policies.kernels import use_kernels
from handbook_ext.policies.launch import Launch
from handbook_ext.policies.packing import EncodedGroup, EncodedPair
from handbook_ext.policies.source import PolicySource
from handbook_ext.policies.truncation import Ids
from handbook_ext.selection.log_prob_store import store_row

MICRO_BATCHES_PER_SHARD = 32  # A process that was killed repeats at most these.


def open_as_trained(source: PolicySource, launch: Launch, *, torch_compile: bool, liger: bool) -> PreTrainedModel:
    """Returns a policy as training loads it: weights of training's numeric type, prefix-shared forward, training's kernels."""
    policy = prefix_shared(source.load(dtype=launch.training_dtype(source.model)))
    return use_kernels(policy, torch_compile=torch_compile, liger=liger)


def score_batch(
    policy: PreTrainedModel, pairs: Sequence[EncodedPair | EncodedGroup], *, pad_id: int, head_chunk: int
) -> list[list[float]]:
    """Returns log-probs (nats, summed over the completion) of each pair's distinct completions."""
    rows = pack_for(policy, pairs, pad_id=pad_id).to(policy.device)
    with torch.no_grad():
        values = policy(rows=rows, head_chunk=head_chunk).tolist()
    starts = rows.chosen.tolist()  # A pair's completions lie together, and chosen is the first of them.
    return [values[start : start + len(pair.completions)] for start, pair in zip(starts, pairs, strict=True)]


def store_batches(plan: BatchPlan) -> list[list[list[Slot]]]:
    """Returns the micro-batches of the first training epoch, grouped into shards.

    Scoring in the very shapes of training gives training's first step log-probs that are equal to the bit.
    """
    # Kernels choose their order of summation by shape: scored in other batches, the log-ratios of the untrained policy would be
    # rounding errors instead of 0, and the check of training's first step could not be strict.
    return batched(plan.epoch(0), MICRO_BATCHES_PER_SHARD)


def score_shard(
    policy: PreTrainedModel, encoded: EncodedPairs, shard: list[list[Slot]], *,
    policy_name: str, pad_id: int, head_chunk: int,
) -> list[dict[str, Any]]:  # fmt: skip
    """Returns the store's rows of a shard: one for every distinct completion."""
    rows: dict[str, dict[str, Any]] = {}
    for batch in shard:
        rows |= _score_slots(policy, encoded, batch, policy_name=policy_name, pad_id=pad_id, head_chunk=head_chunk)
    return list(rows.values())


def _score_slots(
    policy: PreTrainedModel, encoded: EncodedPairs, batch: list[Slot], *, policy_name: str, pad_id: int, head_chunk: int
) -> dict[str, dict[str, Any]]:
    """Returns the store's rows of one micro-batch; fillers are computed, for equal shapes, and left out."""
    scored = score_batch(policy, [encoded.pairs[s.index] for s in batch], pad_id=pad_id, head_chunk=head_chunk)
    rows = {}
    for slot, values in zip(batch, scored, strict=True):
        if slot.weight:  # A filler repeats a pair of this step, whose value comes from its own slot.
            lengths = map(len, encoded.pairs[slot.index].completions)
            for name, value, tokens in zip(encoded.ids[slot.index], values, lengths, strict=True):
                rows[name] = store_row(policy_name, name, value, tokens)
    return rows


@dataclass
class TextGroup:
    """A prompt, and completions to be scored by their ids in the store."""

    prompt_id: str
    prompt: Messages
    texts: dict[str, Messages] = field(default_factory=dict)

    def add(self, answer: Answer) -> None:
        """Adds a completion; the same text twice is one."""
        self.texts[answer.completion_id] = answer.messages

    def without(self, known: Container[str]) -> TextGroup:
        """Returns the group without the completions that are known already."""
        return TextGroup(self.prompt_id, self.prompt, {name: text for name, text in self.texts.items() if name not in known})


@dataclass
class EncodedGroups:
    """Groups as arrays of ids, and for each distinct completion the ids of the texts that have these tokens."""

    prompts: list[Ids] = field(default_factory=list)
    completions: list[list[Ids]] = field(default_factory=list)
    names: list[list[list[str]]] = field(default_factory=list)
    too_long: int = 0

    def __len__(self) -> int:
        """Returns how many groups there are."""
        return len(self.prompts)

    def group(self, index: int) -> EncodedGroup:
        """Returns a group as lists of ids."""
        return EncodedGroup(self.prompts[index].tolist(), [ids.tolist() for ids in self.completions[index]])

    def batches(self, size: int, tokens: int | None = None) -> list[list[int]]:
        """Returns the groups' indices in micro-batches, the longest first: of `size` groups, or of `tokens` positions."""
        lengths = [len(prompt) + sum(map(len, texts)) for prompt, texts in zip(self.prompts, self.completions, strict=True)]
        order = sorted(range(len(lengths)), key=lambda index: (-lengths[index], index))
        return batched(order, size) if tokens is None else within(order, lengths, tokens)


def encode_groups(groups: Iterable[TextGroup], encoder: ChatEncoder) -> EncodedGroups:
    """Returns groups of at least one completion as token ids; prompts that a recipe drops as too long are counted."""
    result = EncodedGroups()
    rows = [
        Conversation(group.prompt, list(group.texts.values()), list(group.texts), f"prompt {group.prompt_id}")
        for group in groups
        if group.texts
    ]
    for row, (prompt, completions) in zip(rows, encoder.encode(rows), strict=True):
        if prompt is None:
            result.too_long += 1
            continue
        # Texts may differ and their tokens not, after truncation: one forward pass, and a row of the store for each text.
        names: dict[bytes, list[str]] = {}
        for name, ids in zip(row.ids, completions, strict=True):
            names.setdefault(ids.tobytes(), []).append(name)
        distinct = {ids.tobytes(): ids for ids in completions}
        result.prompts.append(prompt)
        result.completions.append([distinct[each] for each in names])
        result.names.append(list(names.values()))
    return result


def score_groups(
    policy: PreTrainedModel, encoded: EncodedGroups, shard: list[list[int]], *, policy_name: str, pad_id: int, head_chunk: int
) -> list[dict[str, Any]]:
    """Returns the store's rows of a shard of micro-batches: one for every text."""
    rows = []
    for batch in shard:
        groups = [encoded.group(index) for index in batch]
        scored = score_batch(policy, groups, pad_id=pad_id, head_chunk=head_chunk)
        for index, group, values in zip(batch, groups, scored, strict=True):
            for names, ids, value in zip(encoded.names[index], group.completions, values, strict=True):
                rows += [store_row(policy_name, name, value, len(ids)) for name in names]
    return rows
