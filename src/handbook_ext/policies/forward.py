"""From prefix-shared rows to log-probs of completions: the one forward pass of scoring and of training.

Legend: R rows, L tokens per row, B pairs, S completions, N completion tokens, D hidden size, V vocabulary.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from handbook_ext.core.errors import UserError
from handbook_ext.objectives.logprobs import sum_by_segment, token_logprobs
from handbook_ext.policies.packing import EncodedGroup, EncodedPair, PackedRows, may_attend, pack
from handbook_ext.policies.segments import SEGMENTED, segment_mask, use_segments

# Where `row_chunks` splits: a row would be padded by more than MAX_PADDING of the chunk's longest row, and the chunk has
# MIN_POSITIONS already, enough to keep a processor busy.
MAX_PADDING = 0.05
MIN_POSITIONS = 512
# Settings of models that change logits behind the LM head, which `PrefixShared` calls alone.
CHANGED_LOGITS = ("final_logit_softcapping", "logit_scale", "logits_scaling")
BLOCK = 128  # Tokens of a block of FlexAttention's mask.
PROGRAMS = 256  # Lengths in blocks that may be compiled: a row of 32,768 tokens has so many.


class PrefixShared:
    """Mixed into a causal language model's class: `model(rows=..., head_chunk=...)` returns completion log-probs.

    Everything else about the model is unchanged, so wrappers (DDP, ZeRO-3, FSDP, PEFT) that call `forward` and save with
    `save_pretrained` work as before.
    """

    def forward(
        self, *args: Any, rows: PackedRows | None = None, head_chunk: int = 4096, most: int = 0, **kwargs: Any
    ) -> Any:  # fmt: skip
        """Returns log-probs in nats summed over each completion, (S,) fp32; without `rows` the model's usual output.

        head_chunk: positions that have logits at a time. most: the largest number of completion tokens that a process has in
        this forward pass.
        """
        model: Any = self
        if hasattr(self, "last_mlp"):  # Left as it is until the next call: a backward pass may compute the layer again.
            # A row of pairs may read a position twice, which `index_copy` does not sum up.
            self.last_mlp.positions = None if rows is None or len(rows.chosen) else rows.predictors
        if rows is None:
            return super().forward(*args, **kwargs)  # type: ignore[misc]
        # Only states that predict a completion's token reach the LM head: prompts and padding never cost V logits each.
        states = _hidden_states(model, rows)[rows.predictors]  # (R * L, D) -> (N, D)
        logprobs = token_logprobs(states, rows.targets, model.get_output_embeddings(), chunk=head_chunk, most=most)  # (N,)
        return sum_by_segment(logprobs, rows.owner, len(rows.completion_tokens))  # (N,) -> (S,)


def _hidden_states(model: Any, rows: PackedRows) -> Tensor:
    """Returns the last hidden states of all positions, (R * L, D); rows go through the model in chunks of similar length."""
    chunks = row_chunks(rows)
    states = []
    for part in [rows] if len(chunks) == 1 else [rows.cut(chunk) for chunk in chunks]:
        hidden = model.base_model(
            input_ids=part.input_ids, position_ids=part.positions, attention_mask=attention_mask(model, part), use_cache=False
        ).last_hidden_state  # (r, l, D): the chunk's rows, cut to the longest of them
        # `predictors` index rows of L positions, so each chunk is padded back to L before it is flattened.
        left_out = rows.input_ids.shape[1] - hidden.shape[1]
        states.append(torch.nn.functional.pad(hidden, (0, 0, 0, left_out)).flatten(0, 1))  # (r, l, D) -> (r * L, D)
    return torch.cat(states)


def row_chunks(rows: PackedRows) -> list[slice]:
    """Returns which consecutive rows go through the model together, so that little padding is computed.

    A chunk ends where its next row would be padded by more than MAX_PADDING of the longest, once it has MIN_POSITIONS. All
    rows are one chunk on a GPU, which is efficient on large batches, and with several processes: where weights are sharded,
    each process must call the model equally often.
    """
    count = len(rows.input_ids)
    several = torch.distributed.is_available() and torch.distributed.is_initialized()
    if rows.input_ids.device.type != "cpu" or several:
        return [slice(0, count)]
    lengths = (rows.pair >= 0).sum(1).tolist()  # (R, L) -> (R,)
    chunks = []
    start, longest = 0, lengths[0]
    for row in range(1, count):
        longest = max(longest, lengths[row])
        if longest - lengths[row] > MAX_PADDING * longest and longest * (row - start) >= MIN_POSITIONS:
            chunks.append(slice(start, row))
            start, longest = row, lengths[row]
    return [*chunks, slice(start, count)]


def prefix_shared(model: PreTrainedModel) -> PreTrainedModel:
    """Returns the same model, whose `forward` now takes prefix-shared rows as well.

    Raises UserError for a model that transforms its logits after the LM head: `PrefixShared` calls the head alone.
    """
    for name in CHANGED_LOGITS:
        if getattr(model.config, name, None) not in (None, 1, 1.0):
            raise UserError(f"{model.config.model_type}: models with {name} are not supported; use another architecture")
    # A subclass made here, not a wrapper: trainers and sharding see the model's own modules under their own names.
    kind = type(model)
    model.__class__ = type(kind.__name__, (PrefixShared, kind), {"__module__": kind.__module__})
    use_segments(model)
    return model


def attention_mask(model: PreTrainedModel, rows: PackedRows) -> Any:
    """Returns the mask in the form that the model's attention takes; for SDPA the cheapest one."""
    if model.config._attn_implementation == "flex_attention":
        return _block_mask(rows)
    if model.config._attn_implementation == SEGMENTED:
        segments = segment_mask(rows)
        if segments is not None:
            return segments
        if rows.pair.device.type == "cpu":
            return may_attend(rows)  # One byte per entry; on a GPU, SDPA would make an additive mask of it in every layer.
    allowed = may_attend(rows)
    # Added to the attention scores, as transformers' own masks are: 0 where a query may see a key, else the type's minimum.
    dtype = model.get_input_embeddings().weight.dtype
    return torch.zeros(allowed.shape, dtype=dtype, device=allowed.device).masked_fill(~allowed, torch.finfo(dtype).min)


def pack_for(model: PreTrainedModel, pairs: Sequence[EncodedPair | EncodedGroup], *, pad_id: int) -> PackedRows:
    """Returns a micro-batch in the layout of a model's attention.

    For flex_attention that is one row, since a block mask skips what a dense mask computes, in lengths of whole blocks.
    """
    if model.config._attn_implementation == "flex_attention":
        return pack(pairs, pad_id=pad_id, one_row=True, multiple_of=BLOCK)
    return pack(pairs, pad_id=pad_id)


def pair_logprobs(values: Tensor, rows: PackedRows) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the entries of `values` (S,) for chosen, rejected and explore, (B,) each; 0 where a pair has no explored sample."""
    # NO_COMPLETION is negative and would index from the end, hence the clamp; `where` then drops what it picked.
    explored = torch.where(rows.explore >= 0, values[rows.explore.clamp(min=0)], 0.0)
    return values[rows.chosen], values[rows.rejected], explored


def _block_mask(rows: PackedRows) -> Any:
    """Returns FlexAttention's block mask of the rule in `packing.may_attend`, (R, 1, L, L)."""
    pair, part = rows.pair, rows.part

    def rule(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        """Returns whether a query position may see a key position."""
        same = (pair[row, query] == pair[row, key]) & (pair[row, query] >= 0)
        visible = (part[row, key] == 0) | (part[row, query] == part[row, key])
        return ((query >= key) & same & visible) | (query == key)

    count, length = pair.shape
    return _block_mask_maker(compiled=pair.device.type == "cuda")(rule, count, None, length, length, device=str(pair.device))


@functools.cache
def _block_mask_maker(*, compiled: bool) -> Callable[..., Any]:
    """Returns the function that makes block masks; on a GPU compiled: else it holds the dense (L, L) rule."""
    from torch.nn.attention.flex_attention import create_block_mask  # noqa: PLC0415 - loads the compiler

    if not compiled:
        return create_block_mask
    # One program for each length, of which there are few; from PROGRAMS on torch would silently stop compiling.
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, PROGRAMS)
    return torch.compile(create_block_mask, dynamic=False)
