"""Preference objectives: pure functions, one per paper, with the equation they come from.

A log-ratio is log pi(y|x) - log pi_ref(y|x); a log-prob is log pi(y|x) without a reference. Both are in nats, summed over the
completion's tokens or, where a function says so, their mean. Every function returns one loss per pair, shape (B,), to be
averaged over the pairs of a step.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def dpo_loss(chosen: Tensor, rejected: Tensor, *, beta: float, label_smoothing: float = 0.0) -> Tensor:
    """Returns -(1 - eps) log sigmoid(beta h) - eps log sigmoid(-beta h) with h = chosen - rejected.

    DPO (Rafailov et al. 2023, Eq. 7) for eps = label_smoothing = 0, else cDPO (Mitchell 2023). Takes summed log-ratios, (B,).
    """
    logits = beta * (chosen - rejected)
    right = -F.logsigmoid(logits)
    if label_smoothing == 0:
        return right
    return (1 - label_smoothing) * right - label_smoothing * F.logsigmoid(-logits)


def rdpo_loss(chosen: Tensor, rejected: Tensor, *, beta: float, label_smoothing: float = 0.0) -> Tensor:
    """Returns (-(1 - eps) log sigmoid(beta h) + eps log sigmoid(-beta h)) / (1 - 2 eps): rDPO (Chowdhury et al. 2024).

    Its mean over labels flipped with probability eps = label_smoothing < 0.5 is the DPO loss. Takes summed log-ratios, (B,).
    """
    logits = beta * (chosen - rejected)
    right, wrong = -F.logsigmoid(logits), -F.logsigmoid(-logits)
    return ((1 - label_smoothing) * right - label_smoothing * wrong) / (1 - 2 * label_smoothing)


def ipo_loss(chosen: Tensor, rejected: Tensor, *, beta: float) -> Tensor:
    """Returns (h - 1 / (2 beta))^2 with h = chosen - rejected: IPO (Azar et al. 2024, Eq. 17; SeRA Eq. 9).

    Takes log-ratios, (B,): means over tokens as in TRL, or sums as in the paper.
    """
    return (chosen - rejected - 1 / (2 * beta)) ** 2


def slic_loss(chosen: Tensor, rejected: Tensor, *, beta: float) -> Tensor:
    """Returns max(0, 1 - beta h) with h = chosen - rejected: SLiC-HF as SeRA uses it (Eq. 8). Takes summed log-ratios, (B,)."""
    return F.relu(1 - beta * (chosen - rejected))


def simpo_loss(chosen: Tensor, rejected: Tensor, *, beta: float, gamma_beta_ratio: float) -> Tensor:
    """Returns -log sigmoid(beta (chosen - rejected - gamma / beta)): SimPO (Meng et al. 2024, Eq. 6).

    Takes log-probs of the policy itself, means over tokens, (B,); no reference enters.
    """
    return -F.logsigmoid(beta * (chosen - rejected - gamma_beta_ratio))


def orpo_loss(chosen: Tensor, rejected: Tensor, *, beta: float) -> Tensor:
    """Returns -chosen - beta log sigmoid(log odds(chosen) - log odds(rejected)): ORPO (Hong et al. 2024, Eq. 6), beta its lambda.

    Takes log-probs of the policy itself, means over tokens, (B,); odds(p) = p / (1 - p) of the probability per token. The
    first term is the mean negative log-likelihood of the chosen completion's tokens, pair by pair.
    """
    odds = (chosen - rejected) - (_log1mexp(chosen) - _log1mexp(rejected))
    return -chosen - beta * F.logsigmoid(odds)


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


def _log1mexp(values: Tensor) -> Tensor:
    """Returns log(1 - exp(x)) of x < 0 without cancellation at either end; 0 is moved to the last number below it."""
    below = values.clamp(max=-torch.finfo(values.dtype).eps)
    return torch.where(below > -0.6931, torch.log(-torch.expm1(below)), torch.log1p(-torch.exp(below)))
