"""What the two sides are compared in: the token ids of a pair, and the log-probs and losses of a micro-batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor


class Ids(NamedTuple):
    """The token ids of a row; `one_prompt` is False where the three completions follow different prompts."""

    prompt: list[int]
    chosen: list[int]
    rejected: list[int]
    explored: list[int]
    one_prompt: bool = True


PARTS = ("prompt", "chosen", "rejected", "explored")


@dataclass(frozen=True)
class Step:
    """A micro-batch: log-probs of chosen, rejected and explored under policy and reference (6, B), losses (B,), in nats."""

    logprobs: list[list[float]]
    losses: list[float]

    @classmethod
    def of(cls, logprobs: Sequence[Tensor], losses: Tensor) -> Step:
        """Returns the numbers of tensors."""
        return cls([each.detach().double().tolist() for each in logprobs], losses.detach().double().tolist())
