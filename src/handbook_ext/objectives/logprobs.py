"""Log-probabilities of completion tokens from hidden states, without ever holding all logits.

Legend: N completion tokens of a batch, S completions (segments) of a batch, D hidden size, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint


def token_logprobs(hidden: Tensor, targets: Tensor, head: Callable[[Tensor], Tensor], *, chunk: int, most: int = 0) -> Tensor:
    """Returns log p(target) in nats, fp32, shape (N,).

    `hidden` (N, D) are the states that predict `targets` (N,); `head` maps (n, D) to logits (n, V). At most `chunk`
    positions have logits at a time: they are computed again in the backward pass rather than kept. `most`, at least N, is the
    largest N of the processes that run at the same time: the head is called as often as for that many.
    """
    # The logits of a micro-batch, (N, V) in fp32, are often larger than all else that training keeps: with N = 8192 and
    # V = 128256 they take 4.2 GB, and their gradient as much again.
    # Where the head's weights are sharded, a process that called it less often than another would leave that one waiting for
    # its share, in the backward pass as well: so the missing calls are made on no states, and stay in the graph.
    calls = math.ceil(max(len(targets), most) / chunk)
    pieces = []
    for start in range(0, calls * chunk, chunk):
        piece = slice(start, start + chunk)
        # A single chunk has its logits in memory anyway: computing it again would save nothing.
        if torch.is_grad_enabled() and calls > 1:
            # Kept for the backward pass: hidden (n, D), which the body's output holds anyway, instead of logits (n, V).
            part = checkpoint(_logprobs, hidden[piece], targets[piece], head, use_reentrant=False)
        else:
            part = _logprobs(hidden[piece], targets[piece], head)
        pieces.append(part)
    return torch.cat(pieces) if pieces else hidden.new_zeros(0, dtype=torch.float32)


def sum_by_segment(values: Tensor, segments: Tensor, count: int) -> Tensor:
    """Returns the sums of `values` (N,) over equal entries of `segments` (N,), shape (count,), in fp64 inside."""
    # A sum of a thousand fp32 values depends on their order in the last digits, and index_add on a GPU has none: fp64 rounds
    # that away.
    sums = torch.zeros(count, dtype=torch.float64, device=values.device)
    return sums.index_add(0, segments, values.double()).to(values.dtype)


def _logprobs(hidden: Tensor, targets: Tensor, head: Callable[[Tensor], Tensor]) -> Tensor:
    """Returns log-probabilities of the targets under the softmax over fp32 logits."""
    logits = head(hidden).float()  # (n, V); bf16 has 8 bits, and a log-ratio is a small difference of large log-probs.
    return -torch.nn.functional.cross_entropy(logits, targets, reduction="none")
