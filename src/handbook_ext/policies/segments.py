"""Attention of prefix-shared rows without a mask: each completion against its prompt, and against itself.

A dense mask has L^2 entries, and a kernel that is given one computes all of them. Here a row is cut into segments (prompt,
completions), and PyTorch's attention kernel for CPUs runs once for each couple of segments that see each other; results of a
query that sees two segments are joined by the logarithm of their softmax sums, as ring attention (arXiv 2310.01889) joins
blocks. The result is exact, and what one completion would compute of another is not computed at all.

Legend: R rows, H heads, L tokens per row, E dimensions per head.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from handbook_ext.policies.packing import PackedRows, may_attend

SEGMENTED = "sdpa_segments"
"""The name of this attention among those of transformers."""
MIN_LENGTH = 256  # Below, one kernel call with a dense mask is faster than several without: measured in bench/README.md.
PARTS = 1 << 20  # More than the parts of any pair; with it pair and part of a token are one number.

FORWARD = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
BACKWARD = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


@dataclass(frozen=True, slots=True)
class Block:
    """Queries of one row, and the keys that they see: all of `before`, and those of their own segment up to themselves."""

    row: slice
    own: slice
    before: slice | None

    @property
    def seen(self) -> list[tuple[slice, bool]]:
        """Returns the spans of keys, each with whether a query sees it only up to its own place."""
        return [(self.own, True)] if self.before is None else [(self.before, False), (self.own, True)]


def use_segments(model: PreTrainedModel) -> None:
    """Lets a model that attends by SDPA take the masks of this module as well; its other inputs are treated as before."""
    # A model whose attention is its own code would not meet this function; it keeps the dense mask.
    if model.config._attn_implementation == "sdpa" and model._can_set_attn_implementation():
        model.set_attn_implementation(SEGMENTED)


def segment_mask(rows: PackedRows) -> Tensor | None:
    """Returns what stands for the mask of `may_attend`, int64, or None where a dense mask is the faster one.

    One entry, (1, 1, 1, 1), says that the rows are plainly causal: one completion each. (1, 1, B, l) is of one row without
    padding, in which B plainly causal sequences of up to l tokens follow each other: the places of their tokens in it, -1 behind
    the end of each. Else (R, 1, 1, L), on a CPU alone, has for each token the number of its pair and part.
    """
    if bool((rows.part <= 1).all()):
        # Right padding, which every row may have, is seen by no token before it.
        if not bool(((rows.pair != rows.pair[:, :1]) & (rows.pair >= 0)).any()):
            return torch.zeros(1, 1, 1, 1, dtype=torch.int64, device=rows.pair.device)
        if len(rows.pair) == 1 and bool((rows.pair >= 0).all()):
            return _places(torch.unique_consecutive(rows.pair[0], return_counts=True)[1])[None, None]
    if rows.pair.device.type != "cpu" or rows.pair.shape[1] < MIN_LENGTH:
        return None
    return torch.where(rows.pair < 0, -1, rows.pair * PARTS + rows.part)[:, None, None]  # (R, L) -> (R, 1, 1, L)


def attend(
    module: torch.nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, *,
    dropout: float = 0.0, scaling: float | None = None, is_causal: bool | None = None, **kwargs: Any,
) -> tuple[Tensor, None]:  # fmt: skip
    """Returns the attention's output (R, L, H, E) and None, as transformers' attention functions do.

    query (R, H, L, E); key and value have as many heads or a divisor of them. A mask of int64 is one of `segment_mask`; any
    other goes to SDPA.
    """
    other = {"dropout": dropout, "scaling": scaling, **kwargs}
    if attention_mask is None or attention_mask.dtype != torch.int64:
        return sdpa_attention_forward(module, query, key, value, attention_mask, is_causal=is_causal, **other)
    if attention_mask.shape[-2] > 1:
        places = attention_mask[0, 0]  # (B, l)
        apart = [_apart(tensor, places) for tensor in (query, key, value)]  # (1, H, L, E) -> (B, H, l, E)
        out, _ = sdpa_attention_forward(module, *apart, None, is_causal=True, **other)
        return _Together.apply(out, places), None
    if attention_mask.shape[-1] == 1:
        return sdpa_attention_forward(module, query, key, value, None, is_causal=True, **other)
    if dropout or query.shape[-1] != value.shape[-1] or kwargs.get("position_bias") is not None:  # The kernel has none of these.
        return sdpa_attention_forward(module, query, key, value, _dense(attention_mask), is_causal=False, **other)
    groups = query.shape[1] // key.shape[1]
    whole = [query, repeat_kv(key, groups), repeat_kv(value, groups)]
    if torch.is_autocast_enabled("cpu"):  # As autocast does to SDPA, of which the kernel is a part.
        whole = [tensor.to(torch.get_autocast_dtype("cpu")) for tensor in whole]
    out = _attend_in_blocks(*whole, _blocks(attention_mask), query.shape[-1] ** -0.5 if scaling is None else scaling)
    return out.transpose(1, 2).contiguous(), None


def _places(lengths: Tensor) -> Tensor:
    """Returns where the tokens of sequences of these lengths (B,) lie in a row that strings them together, (B, l); -1: none."""
    order = torch.arange(int(lengths.max()), device=lengths.device)
    first = lengths.cumsum(0) - lengths
    return torch.where(order < lengths[:, None], first[:, None] + order, -1)


def _apart(states: Tensor, places: Tensor) -> Tensor:
    """Returns the states of one row, (1, H, L, E), as sequences of their own, (B, H, l, E), 0 behind the end of each."""
    _, heads, _, size = states.shape
    apart = states.new_zeros(places.numel(), heads, size)
    # A copy and not a choice by index: its gradient is a copy as well, where that of a choice is a sum.
    apart = apart.index_copy(0, (places >= 0).flatten().nonzero()[:, 0], states[0].transpose(0, 1))
    return apart.view(*places.shape, heads, size).transpose(1, 2)


class _Together(torch.autograd.Function):
    """Sequences of their own, (B, l, H, E), strung together as the row (1, L, H, E) that they were: what `_apart` undoes."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, places: Tensor) -> Tensor:
        """Returns the row."""
        kept = (places >= 0).flatten().nonzero()[:, 0]
        ctx.save_for_backward(kept)
        ctx.shape = states.shape
        return states.reshape(-1, *states.shape[2:]).index_select(0, kept)[None]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        """Returns the gradient of the sequences, 0 behind the end of each."""
        (kept,) = ctx.saved_tensors
        apart = gradient.new_zeros(ctx.shape)
        apart.view(-1, *ctx.shape[2:]).index_copy_(0, kept, gradient[0])
        return apart, None


def _blocks(codes: Tensor) -> list[Block]:
    """Returns the blocks of rows whose tokens have these codes, (R, 1, 1, L): a prompt with its first completion is one."""
    blocks = []
    for number, row in enumerate(codes[:, 0, 0]):
        values, counts = torch.unique_consecutive(row, return_counts=True)
        end, prompt, first = 0, slice(0, 0), False
        for code, count in zip(values.tolist(), counts.tolist(), strict=True):
            start, end = end, end + count
            if code < 0:
                continue
            if code % PARTS == 0:
                prompt, first = slice(start, end), True
                continue
            # The first completion follows its prompt in the row: together they are plainly causal.
            own = slice(prompt.start if first else start, end)
            blocks.append(Block(slice(number, number + 1), own, None if first else prompt))
            first = False
    return blocks


def _dense(codes: Tensor) -> Tensor:
    """Returns the boolean mask (R, 1, L, L) of the same codes."""
    pair = torch.where(codes < 0, -1, codes // PARTS)[:, 0, 0]
    empty = torch.empty(0)
    return may_attend(PackedRows(empty, empty, pair, codes[:, 0, 0] % PARTS, *[empty] * 7))


def _wide(tensor: Tensor) -> torch.dtype:
    """Returns the type that sums over a tensor's entries are kept in: its own, fp32 at least."""
    return torch.promote_types(tensor.dtype, torch.float32)


class _InBlocks(torch.autograd.Function):
    """Attention over blocks: the kernel's own forward and backward on each couple of segments."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, blocks: list[Block], scale: float) -> Tensor:
        """Returns (R, H, L, E); 0 at padding."""
        out = torch.zeros_like(query.transpose(1, 2), memory_format=torch.contiguous_format).transpose(1, 2)
        sums = torch.zeros(query.shape[:3], dtype=_wide(query))  # (R, H, L): of each softmax the logarithm of its sum.
        for block in blocks:
            here = (block.row, slice(None), block.own)
            parts = [
                FORWARD(query[here], key[block.row, :, keys], value[block.row, :, keys], 0.0, causal, scale=scale)
                for keys, causal in block.seen
            ]
            if len(parts) == 1:
                out[here], sums[here] = parts[0]
            else:
                (one, first), (two, second) = parts
                both = torch.logaddexp(first, second)
                # The shares of the two softmax sums in the whole; fp32, as the sums are.
                out[here] = one * (first - both).exp()[..., None] + two * (second - both).exp()[..., None]
                sums[here] = both
        ctx.save_for_backward(query, key, value, out, sums)
        ctx.blocks, ctx.scale = blocks, scale
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Returns the gradients of query, key and value; a part's needs only the output and the softmax sum of the whole."""
        query, key, value, out, sums = ctx.saved_tensors
        # A prompt's keys collect from several completions: in fp32, also where the rest is bf16.
        grads = [torch.zeros(tensor.shape, dtype=_wide(query)) for tensor in (query, key, value)]
        for block in ctx.blocks:
            here = (block.row, slice(None), block.own)
            for keys, causal in block.seen:
                there = (block.row, slice(None), keys)
                parts = BACKWARD(
                    gradient[here], query[here], key[there], value[there], out[here], sums[here], 0.0, causal, scale=ctx.scale
                )
                for total, part, place in zip(grads, parts, (here, there, there), strict=True):
                    total[place] += part
        return *(total.to(query.dtype) for total in grads), None, None


@torch.compiler.disable
def _attend_in_blocks(query: Tensor, key: Tensor, value: Tensor, blocks: list[Block], scale: float) -> Tensor:
    """Returns the attention over blocks; a compiler would make a program for each layout of a row."""
    return _InBlocks.apply(query, key, value, blocks, scale)


AttentionInterface.register(SEGMENTED, attend)
AttentionMaskInterface.register(SEGMENTED, sdpa_mask)
