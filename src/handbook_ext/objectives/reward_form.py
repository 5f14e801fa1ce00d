"""What a preference loss, and the margins of its pairs, are made of."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class RewardForm:
    """Log-ratios to a reference or plain log-probs, summed over a completion's tokens or their mean."""

    reference: bool = True
    length_normalized: bool = False

    def value(self, policy: float, reference: float, tokens: int) -> float:
        """Returns the measure of one completion from its summed log-probs under policy and reference, in nats."""
        value = policy - reference if self.reference else policy
        return value / tokens if self.length_normalized else value


def reward_form(loss_type: str, ipo_log_prob: str = "mean") -> RewardForm:
    """Returns what a loss is made of: simpo and orpo have no reference and take means, ipo takes means unless told."""
    if loss_type in ("simpo", "orpo"):
        return RewardForm(reference=False, length_normalized=True)
    return RewardForm(length_normalized=loss_type == "ipo" and ipo_log_prob == "mean")
