"""What a preference loss, and the margins of its pairs, are made of."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Measure:
    """Log-ratios to a reference or plain log-probs, summed over a completion's tokens or their mean."""

    reference: bool = True
    per_token: bool = False

    def quality(self, policy: float, reference: float, tokens: int) -> float:
        """Returns the measure of one completion from its summed log-probs under policy and reference, in nats."""
        value = policy - reference if self.reference else policy
        return value / tokens if self.per_token else value


def measure_of(loss_type: str, ipo_log_prob: str = "mean") -> Measure:
    """Returns what a loss is made of: simpo and orpo have no reference and take means, ipo takes means unless told."""
    if loss_type in ("simpo", "orpo"):
        return Measure(reference=False, per_token=True)
    return Measure(per_token=loss_type == "ipo" and ipo_log_prob == "mean")
