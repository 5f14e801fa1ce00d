"""Preference objectives: pure functions of log-ratios, one per paper, with the equation they come from.

A log-ratio is log pi(y|x) - log pi_ref(y|x): the difference of two log-probabilities summed over the completion's
tokens, in nats. Every function returns one loss per pair, shape (B,), to be averaged over the pairs of a step.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def dpo_loss(chosen: Tensor, rejected: Tensor, *, beta: float) -> Tensor:
    """Returns the DPO loss -log sigmoid(beta * (chosen - rejected)) (Rafailov et al. 2023, Eq. 7).

    Takes the log-ratios of the chosen and rejected completions, each (B,), in nats.
    """
    return -F.logsigmoid(beta * (chosen - rejected))


def exploration_term(explore: Tensor, *, beta: float, alpha: float, scale: str = "alpha_beta") -> Tensor:
    """Returns SELM's addition to any preference loss: alpha * beta * explore (Zhang et al. 2024, Eq. 4.2).

    It pushes down what the reference model itself answers. `explore` is the log-ratio (official code) or the log-prob
    (paper) of the explored sample y, (B,), in nats: the gradients are equal. Algorithm 1 prints the factor alpha without beta:
    scale="alpha".
    """
    factors = {"alpha_beta": alpha * beta, "alpha": alpha}
    return factors[scale] * explore


def implicit_reward(log_ratio: Tensor, *, beta: float) -> Tensor:
    """Returns DPO's implicit reward beta * log(pi / pi_ref), up to a term of the prompt alone; any shape, in nats."""
    return beta * log_ratio


def preference_accuracy(chosen: Tensor, rejected: Tensor) -> Tensor:
    """Returns 1 where the chosen completion has the larger log-ratio, 0.5 at a tie, else 0; shape (B,)."""
    return ((chosen > rejected).float() + (chosen >= rejected).float()) / 2


LOSSES = {"sigmoid": dpo_loss}
