"""The form of a completion's reward: one for a preference loss and for the margins by which pairs are selected."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class RewardForm:
    """Log-ratios to a reference or plain log-probs, summed over a completion's tokens or their mean."""

    reference: bool = True
    length_normalized: bool = False

    def value(self, policy: float, reference: float, tokens: int) -> float:
        """Returns the reward of one completion, without beta, from its summed log-probs under policy and reference, in nats."""
        value = policy - reference if self.reference else policy
        return value / tokens if self.length_normalized else value


def summed_log_ratios() -> RewardForm:
    """Returns the form of DPO's implicit reward: log pi(y|x) - log pi_ref(y|x), summed over tokens."""
    return RewardForm()


def mean_log_probs() -> RewardForm:
    """Returns the form of SimPO's reward: log pi(y|x) per token, without a reference."""
    return RewardForm(reference=False, length_normalized=True)


def ipo_log_ratios(*, ipo_log_prob: str = "mean") -> RewardForm:
    """Returns the form of IPO's reward: log-ratios per token, as TRL has them, or with `sum` summed, as the paper has them."""
    if ipo_log_prob not in ("mean", "sum"):
        raise ValueError(f"ipo_log_prob is {ipo_log_prob!r}, but must be mean or sum")
    # A sum grows with length, the target margin 1 / (2 beta) does not; TRL has divided by the tokens since 0.8.6 at the latest.
    # SeRA does not state its form; its beta of 1.0 was probably tuned on TRL, hence the default.
    return RewardForm(length_normalized=ipo_log_prob == "mean")
