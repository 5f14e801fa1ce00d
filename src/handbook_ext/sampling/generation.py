"""Sampling from a policy with transformers: every request has a seed of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from handbook_ext.core.records import Completion, Messages, OfflinePair, derived_seed
from handbook_ext.policies.chat import ChatEncoder
from handbook_ext.policies.source import PolicySource
from handbook_ext.sampling.decoding import Law, Limits, decoded


@dataclass(frozen=True)
class Request:
    """One sample to draw: the prompt's token ids and the seed that alone decides its randomness."""

    prompt_ids: list[int]
    seed: int


@dataclass(frozen=True)
class Sample:
    """A completion: its text, tokens (the end token included) and whether it ended by itself."""

    text: str
    tokens: int
    finish_reason: Literal["stop", "length"]


def sample_batch(
    policy: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, requests: list[Request], *,
    temperature: float, top_p: float, max_new_tokens: int, end_ids: list[int],
) -> list[Sample]:  # fmt: skip
    """Returns one completion per request; temperature 0 is greedy. Requests of one prompt share its computation."""
    law = Law(
        [request.seed for request in requests], temperature=temperature, top_p=top_p, steps=max_new_tokens, device=policy.device
    )
    limits = Limits(max_new_tokens, end_ids, tokenizer.pad_token_id)
    found = decoded(policy, [request.prompt_ids for request in requests], law, limits)
    return [sample_of(ids, tokenizer, end_ids) for ids in found]


def sample_of(ids: list[int], tokenizer: PreTrainedTokenizerBase, end_ids: list[int]) -> Sample:
    """Returns the sample that token ids are, up to their first end token; every engine's ids become text here."""
    end = next((index for index, token in enumerate(ids) if token in end_ids), None)
    kept = ids if end is None else ids[: end + 1]
    text = tokenizer.decode(kept if end is None else kept[:-1], skip_special_tokens=True).strip()
    return Sample(text, len(kept), "length" if end is None else "stop")


@dataclass(frozen=True)
class Job:
    """A request with the columns of its row in completions.jsonl that are known before sampling."""

    prompt_id: str
    sample: int
    prompt: Messages
    prompt_ids: list[int]
    seed: int

    def completed(self, sample: Sample) -> Completion:
        """Returns the row of completions.jsonl."""
        return Completion.of(
            self.prompt_id, self.prompt, sample.text, sample=self.sample, seed=self.seed, finish_reason=sample.finish_reason,
            prompt_tokens=len(self.prompt_ids), completion_tokens=sample.tokens,
        )  # fmt: skip


def jobs_of(
    rows: Sequence[OfflinePair], encoder: ChatEncoder, *, samples: int, seed: int, iteration: str
) -> tuple[list[Job], int]:
    """Returns the requests for every prompt, by prompt length, and how many prompts are dropped as too long.

    The seed of a request depends on the run's seed, the iteration, the prompt and the sample, never on batch or clock.
    """
    jobs, long_prompts = [], 0
    for row, ids in zip(rows, encoder.prompts([(row.prompt, row.source) for row in rows]), strict=True):
        long_prompts += ids is None
        for sample in range(samples if ids else 0):
            jobs.append(Job(row.prompt_id, sample, row.prompt, ids or [], derived_seed(seed, iteration, row.prompt_id, sample)))
    # By length, so that a batch pads little; then by id and number, so that the order does not depend on that of the rows.
    return sorted(jobs, key=lambda job: (len(job.prompt_ids), job.prompt_id, job.sample)), long_prompts


def request_batches(jobs: Sequence[Job], *, size: int, max_new_tokens: int, tokens: int | None = None) -> list[list[Job]]:
    """Returns the requests in batches of like length, the longest first: what does not fit in memory fails at once.

    A batch has at most `size` requests, and at most `tokens` positions of the cache of keys and values: each request takes those
    of the longest prompt and of max_new_tokens. A request that alone takes more is a batch of its own.
    """
    batches: list[list[Job]] = []
    for job in sorted(jobs, key=lambda job: len(job.prompt_ids)):
        positions = (len(batches[-1]) + 1 if batches else 1) * (len(job.prompt_ids) + max_new_tokens)
        if not batches or len(batches[-1]) == size or (tokens is not None and positions > tokens):
            batches.append([])
        batches[-1].append(job)
    return batches[::-1]


def open_policy(source: PolicySource, limits: Mapping[str, Any], *, device: torch.device) -> tuple[PreTrainedModel, ChatEncoder]:
    """Returns the policy, ready to sample on a device, and the encoder of its prompts under the limits of a stage."""
    return source.load(attn_implementation="sdpa").to(device), source.encoder(limits)
