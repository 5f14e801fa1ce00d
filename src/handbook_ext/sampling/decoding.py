"""Decoding with transformers: a prompt is computed once for all its samples, and a row leaves the batch once it has ended.

Legend: P distinct prompts, N requests, R rows still in the batch, L tokens of the longest prompt, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import (
    DynamicCache,
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    TemperatureLogitsWarper,
    TopPLogitsWarper,
)

from handbook_ext.core.bars import within

SEPARABLE = frozenset({"gpt_neox", "llama", "mistral", "olmo2", "phi3", "qwen2", "qwen3", "smollm3"})
"""Architectures whose rows may leave a batch: a test holds each to transformers' own loop, which decodes all others."""
BY_LONGEST = frozenset({"dynamic", "longrope"})
"""Rotary positions whose frequencies follow the longest row of a batch: when it leaves, those of the others would change."""
ENDED_SHARE = 1 / 8  # Of a batch's rows, before those that have ended leave: the others' cache is copied. bench/README.md.


class Law:
    """How the next token is chosen: the most probable one, or a draw by the request's own seed from what the warpers leave.

    So a completion does not depend on the rows that share its batch, beyond the last bits of the logits.
    """

    def __init__(
        self, seeds: Sequence[int], *, temperature: float, top_p: float, steps: int, device: torch.device
    ) -> None:  # fmt: skip
        """Draws `steps` uniform numbers per seed, (N, steps) fp64; temperature 0 is greedy and needs none."""
        self.greedy, self.warpers = temperature == 0, LogitsProcessorList()
        if self.greedy:
            return
        self.warpers.append(TemperatureLogitsWarper(temperature))
        if top_p < 1:
            self.warpers.append(TopPLogitsWarper(top_p))
        self.uniform = torch.stack(
            [torch.rand(steps, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) for seed in seeds]
        ).to(device)

    def tokens(self, scores: Tensor, step: int, requests: Tensor | slice = slice(None)) -> Tensor:
        """Returns the tokens (R,) that these requests take at a step, counted from 0, by their scores (R, V) in fp32."""
        if self.greedy:
            return scores.argmax(-1)
        scores = self.warpers(torch.empty(len(scores), 0), scores)  # The warpers do not read the tokens so far.
        # fp64: close to 1 an fp32 sum moves in steps of 6e-8, more than the probability of most tokens of a large vocabulary.
        cumulative = scores.double().softmax(-1).cumsum(-1)
        # Scaling by the total keeps a point close to 1 inside the distribution despite rounding. right=True skips tokens of
        # probability 0, which top-p removed: their cumulative value equals the one before.
        point = self.uniform[requests, step] * cumulative[:, -1]
        token = torch.searchsorted(cumulative, point[:, None], right=True)[:, 0]
        return token.clamp(max=scores.shape[-1] - 1)


@dataclass(frozen=True)
class Limits:
    """Where completions end: after so many tokens, or at an end token. `pad` stands where a row has no token."""

    max_new_tokens: int
    end_ids: Sequence[int]
    pad: int


def decoded(policy: PreTrainedModel, prompts: Sequence[Sequence[int]], law: Law, limits: Limits) -> list[list[int]]:
    """Returns the new tokens of each prompt; what follows its first end token is without meaning."""
    return (by_rows if separable(policy) else by_batch)(policy, prompts, law, limits)


def separable(policy: PreTrainedModel) -> bool:
    """Tells whether rows may leave a batch: no row's numbers depend on the others', and the code is transformers' own."""
    rope = getattr(policy.config, "rope_parameters", None) or {}
    known = policy.config.model_type in SEPARABLE and type(policy).__module__.startswith("transformers.")
    return known and rope.get("rope_type") not in BY_LONGEST


@torch.no_grad()
def by_rows(policy: PreTrainedModel, prompts: Sequence[Sequence[int]], law: Law, limits: Limits) -> list[list[int]]:
    """Returns what `by_batch` does, without computing a prompt twice, or what lies behind a row's end."""
    device, distinct = policy.device, list(dict.fromkeys(map(tuple, prompts)))
    ids, mask = (each.to(device) for each in padded(distinct, limits.pad))
    rows = Rows(policy, mask, limits.max_new_tokens)
    logits = rows.read(ids, (mask.cumsum(-1) - 1).clamp(min=0))  # (P, L) -> (P, V)
    if len(distinct) < len(prompts):
        places = {prompt: place for place, prompt in enumerate(distinct)}
        owners = torch.tensor([places[tuple(prompt)] for prompt in prompts], device=device)
        rows.select(owners)
        logits = logits[owners]  # (P, V) -> (N, V)
    ends = torch.tensor(limits.end_ids, dtype=torch.long, device=device)
    found = torch.full((len(prompts), limits.max_new_tokens), limits.pad, device=device)
    requests = torch.arange(len(prompts), device=device)  # (R,): which of the requests each row is
    ended = torch.zeros(len(prompts), dtype=torch.bool, device=device)  # (R,)
    for step in range(limits.max_new_tokens):
        tokens = law.tokens(logits.float(), step, requests)
        found[requests, step] = tokens
        ended |= torch.isin(tokens, ends)
        count = int(ended.sum())
        if count == len(ended) or step + 1 == limits.max_new_tokens:
            break
        if count >= ENDED_SHARE * len(ended) and count:
            left = (~ended).nonzero()[:, 0]
            rows.select(left)
            requests, tokens, ended = requests[left], tokens[left], ended[left]
        within(step + 1, limits.max_new_tokens)
        logits = rows.read(tokens[:, None], rows.lengths[:, None])  # (R, 1) -> (R, V)
    return found.tolist()  # type: ignore[no-any-return]


class Rows:
    """What a policy has computed of the rows of a batch; their tokens so far, `lengths` (R,)."""

    def __init__(self, policy: PreTrainedModel, mask: Tensor, room: int) -> None:
        """Begins with nothing computed; mask: of the padded prompts, (R, L); room: the most tokens to come."""
        self.policy, self.cache, self.lengths, self.seen = policy, DynamicCache(config=policy.config), mask.sum(-1), 0
        self.mask = torch.nn.functional.pad(mask, (0, room), value=1)  # (R, L) -> (R, L + room)
        self.unpadded = bool(mask.all())

    def read(self, ids: Tensor, positions: Tensor) -> Tensor:
        """Returns the logits (R, V) behind the next ids (R, l) of all rows, which have these positions."""
        self.lengths = self.lengths + (1 if self.seen else 0)  # The prompts are counted already.
        self.seen += ids.shape[1]
        return self.policy(  # type: ignore[no-any-return]
            input_ids=ids, position_ids=positions, attention_mask=None if self.unpadded else self.mask[:, : self.seen],
            past_key_values=self.cache, use_cache=True, logits_to_keep=1,
        ).logits[:, -1]  # fmt: skip

    def select(self, places: Tensor) -> None:
        """Keeps the rows at these places, in this order; one that is named several times is copied."""
        self.cache.batch_select_indices(places)
        self.mask, self.lengths = self.mask[places], self.lengths[places]
        self.unpadded = self.unpadded or bool(self.mask.all())


class LawOfBatch(LogitsProcessor):
    """A law for transformers' own loop: scores that leave one token, which its greedy search then takes."""

    def __init__(self, law: Law, prompt_length: int, steps: int) -> None:
        """Prompts are padded to `prompt_length` tokens, and at most `steps` follow."""
        self.law, self.prompt_length, self.steps = law, prompt_length, steps

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Returns scores (N, V) that are 0 at the chosen token and -inf elsewhere."""
        step = input_ids.shape[1] - self.prompt_length
        within(step, self.steps)
        token = self.law.tokens(scores, step)
        return torch.full_like(scores, -torch.inf).scatter(1, token[:, None], 0.0)


@torch.no_grad()
def by_batch(policy: PreTrainedModel, prompts: Sequence[Sequence[int]], law: Law, limits: Limits) -> list[list[int]]:
    """Returns what transformers' own loop decodes: each request has a row, and all go on until the longest has ended."""
    ids, mask = (each.to(policy.device) for each in padded(prompts, limits.pad))
    config = GenerationConfig(
        do_sample=False, max_new_tokens=limits.max_new_tokens, eos_token_id=list(limits.end_ids), pad_token_id=limits.pad,
        use_cache=True,
    )  # fmt: skip
    policy.generation_config = GenerationConfig()  # A checkpoint's own, such as a repetition penalty, would act too.
    output = policy.generate(
        input_ids=ids, attention_mask=mask, generation_config=config,
        logits_processor=LogitsProcessorList([LawOfBatch(law, ids.shape[1], limits.max_new_tokens)]),
    )  # fmt: skip
    return output[:, ids.shape[1] :].tolist()  # type: ignore[no-any-return]


def padded(prompts: Sequence[Sequence[int]], pad: int) -> tuple[Tensor, Tensor]:
    """Returns prompts and their mask, (P, L), padded on the left, so that every row's next token comes at the same index."""
    longest = max(map(len, prompts))
    ids = torch.tensor([[pad] * (longest - len(prompt)) + list(prompt) for prompt in prompts])
    mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    return ids, mask
