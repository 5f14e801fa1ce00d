"""Whether the untrained policy gives the log-probs that the score store holds for it, judged over training's first step."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

ROUNDING = 6.0
"""In half precision, how many tolerances a completion of one token may differ by rounding, on top of the tolerance itself."""
PAIRS_PER_STRAY = 8  # In half precision one pair of so many may exceed its bound: rounding errors have long tails.


@dataclass
class ReferenceCheck:
    """Differences of log-probs (nats, absolute) between policy and store, added up over the pairs of a step.

    tolerance: nats per token. A completion of n tokens may differ by tolerance * n; in half precision (`half`) by
    ROUNDING * tolerance * sqrt(n) more, since the errors of n tokens are independent: their sum grows with the root of n, so
    that a short answer may be off per token where a long one may not. Another policy's differences grow with n itself.
    """

    tolerance: float
    half: bool
    totals: Tensor = field(default_factory=lambda: torch.zeros(5, dtype=torch.float64))
    """Sums of differences, tokens, bounds, pairs, and pairs with a completion beyond its bound."""
    worst: float = 0.0

    def add(self, differences: Tensor, tokens: Tensor) -> None:
        """Adds pairs: differences (C, B) of C completions of each, and their tokens (C, B), 0 where there is none."""
        differences, tokens = differences.double().cpu(), tokens.double().cpu()
        bounds = self.tolerance * (tokens + (ROUNDING * tokens.sqrt() if self.half else 0))
        off = (~(differences <= bounds)).any(0)  # So written that nan is off.
        self.totals += torch.stack([
            differences.sum(), tokens.sum(), bounds.sum(), torch.tensor(float(len(off))), off.double().sum(),
        ])  # fmt: skip
        per_token = differences / tokens.clamp(min=1)
        self.worst = float(torch.cat([per_token.flatten(), torch.tensor([self.worst])]).max())  # nan stays nan.

    def fault(self, totals: Tensor, worst: float) -> str | None:
        """Returns what is wrong in words, or None. totals (5,) and worst may be those of all processes together."""
        difference, tokens, bound, pairs, off = totals.tolist()
        allowed = pairs // PAIRS_PER_STRAY if self.half else 0
        # The sum is robust to rounding and sees another policy; the count sees a single wrong pair, which a sum would hide.
        if difference <= bound and off <= allowed:
            return None
        if math.isnan(difference):
            return (
                "the untrained policy's log-probs, or those stored for it, are NaN: the policy has weights or activations that "
                "are no numbers; train from another, or set model.dtype: float32 if it overflows in bfloat16"
            )
        return (
            f"the untrained policy differs from its stored log-probs by {difference / max(tokens, 1):.2g} nats per token, in the "
            f"worst answer by {worst:.2g}, in {off:.0f} of {pairs:.0f} pairs by more than rounding (score.tolerance is "
            f"{self.tolerance}): the store belongs to another policy or numeric type; delete it and run make"
        )
