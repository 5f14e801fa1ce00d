"""Preference losses: pure functions, one per paper, with the equation they come from, and the table of them all, LOSSES.

A log-ratio is log pi(y|x) - log pi_ref(y|x); a log-prob is log pi(y|x) without a reference. Both are in nats, summed over the
completion's tokens or, where a function says so, their mean. Every function returns one loss per pair, shape (B,), to be
averaged over the pairs of a step.

A new loss is one function and one row of LOSSES. Its options are its keyword-only parameters: Objective reads them there, and
recipes have a setting of the same name and default for each. The settings of recipes read the table, so this module imports
torch only where it computes.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from handbook_ext.objectives.reward_form import RewardForm, ipo_log_ratios, mean_log_probs, summed_log_ratios

if TYPE_CHECKING:
    from torch import Tensor


def dpo_loss(chosen: Tensor, rejected: Tensor, *, beta: float, label_smoothing: float = 0.0) -> Tensor:
    """Returns -(1 - eps) log sigmoid(beta h) - eps log sigmoid(-beta h) with h = chosen - rejected.

    DPO (Rafailov et al. 2023, Eq. 7) for eps = label_smoothing = 0, else cDPO (Mitchell 2023). Takes summed log-ratios, (B,).
    """
    # The prompt's normalizer log Z(x) of the implicit reward (Eq. 5) is the same for both completions and cancels in h.
    logits = beta * (chosen - rejected)
    right = -_log_sigmoid(logits)
    if label_smoothing == 0:
        return right
    return (1 - label_smoothing) * right - label_smoothing * _log_sigmoid(-logits)


def rdpo_loss(chosen: Tensor, rejected: Tensor, *, beta: float, label_smoothing: float = 0.0) -> Tensor:
    """Returns (-(1 - eps) log sigmoid(beta h) + eps log sigmoid(-beta h)) / (1 - 2 eps): rDPO (Chowdhury et al. 2024).

    Its mean over labels flipped with probability eps = label_smoothing is the DPO loss. Takes summed log-ratios, (B,).
    Raises ValueError for eps of 0.5 or more, where labels say nothing.
    """
    if not 0 <= label_smoothing < 0.5:
        raise ValueError(f"label_smoothing is {label_smoothing}, but rDPO needs a share of wrong labels from 0 to below 0.5")
    logits = beta * (chosen - rejected)
    right, wrong = -_log_sigmoid(logits), -_log_sigmoid(-logits)
    # A label is kept with probability 1 - eps, so the mean of the bracket is ((1 - eps)^2 - eps^2) right, and that factor is
    # 1 - 2 eps. The price is variance: it grows without bound towards eps = 0.5, and one pair's loss may be negative.
    return ((1 - label_smoothing) * right - label_smoothing * wrong) / (1 - 2 * label_smoothing)


def ipo_loss(chosen: Tensor, rejected: Tensor, *, beta: float) -> Tensor:
    """Returns (h - 1 / (2 beta))^2 with h = chosen - rejected: IPO (Azar et al. 2024, Eq. 17; SeRA Eq. 9).

    Takes log-ratios, (B,): means over tokens as in TRL, or sums as in the paper.
    """
    # The margin has a target, 1 / (2 beta), and not only a direction: where a preference is always the same, DPO drives the
    # margin to infinity whatever beta is, and the KL penalty has no effect (Azar et al. 2024).
    return (chosen - rejected - 1 / (2 * beta)) ** 2


def slic_loss(chosen: Tensor, rejected: Tensor, *, beta: float) -> Tensor:
    """Returns max(0, 1 - beta h) with h = chosen - rejected: SLiC-HF as SeRA uses it (Eq. 8). Takes summed log-ratios, (B,)."""
    # The paper of SLiC-HF takes log-probs; SeRA and TRL's "hinge" take log-ratios. No gradient beyond a margin of 1 / beta.
    return (1 - beta * (chosen - rejected)).relu()


def simpo_loss(chosen: Tensor, rejected: Tensor, *, beta: float, gamma_beta_ratio: float = 0.5) -> Tensor:
    """Returns -log sigmoid(beta (chosen - rejected - gamma / beta)): SimPO (Meng et al. 2024, Eq. 6).

    Takes log-probs of the policy itself, means over tokens, (B,); no reference enters.
    """
    # The target margin is a multiple of beta, as in the authors' code: another beta then leaves the target where it was.
    return -_log_sigmoid(beta * (chosen - rejected - gamma_beta_ratio))


def orpo_loss(chosen: Tensor, rejected: Tensor, *, beta: float) -> Tensor:
    """Returns -chosen - beta log sigmoid(log odds(chosen) - log odds(rejected)): ORPO (Hong et al. 2024, Eq. 6), beta its lambda.

    Takes log-probs of the policy itself, means over tokens, (B,); odds(p) = p / (1 - p) of the probability per token. The
    first term is the mean negative log-likelihood of the chosen completion's tokens, pair by pair.
    """
    # log odds(p) = log p - log(1 - p). A trained policy's probability per token is close to 1, where 1 - exp(log p) cancels.
    odds = (chosen - rejected) - (_log1mexp(chosen) - _log1mexp(rejected))
    return -chosen - beta * _log_sigmoid(odds)


def exploration_term(explore: Tensor, *, beta: float, alpha: float, scale: str = "alpha_beta") -> Tensor:
    """Returns SELM's addition to any preference loss: alpha * beta * explore (Zhang et al. 2024, Eq. 4.2).

    It lowers the probability of the reference model's own completions. `explore` is the log-ratio (official code) or the
    log-prob (paper) of the explored sample y, (B,), in nats: the gradients are equal. Algorithm 1 prints the factor alpha
    without beta: scale="alpha".
    """
    # Added to a loss that is minimised, so a positive factor lowers log pi(y): optimism moves mass to other completions.
    factors = {"alpha_beta": alpha * beta, "alpha": alpha}
    return factors[scale] * explore


def implicit_reward(log_ratio: Tensor, *, beta: float) -> Tensor:
    """Returns DPO's implicit reward beta * log(pi / pi_ref), up to a term of the prompt alone; any shape, in nats."""
    return beta * log_ratio


def preference_accuracy(chosen: Tensor, rejected: Tensor) -> Tensor:
    """Returns 1 where the chosen completion has the larger log-ratio, 0.5 at a tie, else 0; shape (B,)."""
    # Ties count a half: in the first step policy and reference are equal, all ratios are 0, and 0.5 is what chance gives.
    return ((chosen > rejected).float() + (chosen >= rejected).float()) / 2


def _log_sigmoid(values: Tensor) -> Tensor:
    """Returns log sigmoid(x), without underflow at either end."""
    # log(sigmoid(x)) is -inf in fp32 below about -88, and its gradient nan, where this is x with gradient 1.
    from torch.nn.functional import logsigmoid  # noqa: PLC0415 - the table below is read where torch is not loaded

    return logsigmoid(values)


def _log1mexp(values: Tensor) -> Tensor:
    """Returns log(1 - exp(x)) of x < 0 without cancellation at either end; 0 is moved to the last number below it."""
    import torch  # noqa: PLC0415 - the table below is read where torch is not loaded

    below = values.clamp(max=-torch.finfo(values.dtype).eps)
    # Each form loses digits where the other is exact: 1 - exp(x) near x = 0, and log(1 - small) far below. The switch is log 2
    # (Maechler 2012).
    return torch.where(below > -0.6931, torch.log(-torch.expm1(below)), torch.log1p(-torch.exp(below)))


@dataclass(frozen=True)
class Loss:
    """A row of LOSSES.

    function: (chosen, rejected, *, beta, options) -> loss of each pair, all (B,). form: from its options, if any, to the form
    of the rewards that the function takes. summary: one line with the paper.
    """

    function: Callable[..., Tensor]
    form: Callable[..., RewardForm]
    summary: str

    @property
    def options(self) -> dict[str, Any]:
        """Returns what may be set besides beta, with the defaults: the keyword-only parameters of both functions."""
        return {name: value for name, value in (_keywords(self.function) | _keywords(self.form)).items() if name != "beta"}

    def reward_form(self, options: Mapping[str, Any]) -> RewardForm:
        """Returns what the loss, and with it the margin of a pair, is made of; takes what it needs of `options`."""
        return self.form(**_chosen_of(options, self.form))

    def __call__(self, chosen: Tensor, rejected: Tensor, *, beta: float, options: Mapping[str, Any]) -> Tensor:
        """Returns the loss of each pair, (B,), from the rewards of its two completions, in the form of `reward_form`."""
        return self.function(chosen, rejected, **{**_chosen_of(options, self.function), "beta": beta})


@cache
def _keywords(function: Callable[..., Any]) -> dict[str, Any]:
    """Returns the keyword-only parameters of a function with their defaults."""
    found = inspect.signature(function).parameters.values()
    return {each.name: each.default for each in found if each.kind is each.KEYWORD_ONLY}


def _chosen_of(options: Mapping[str, Any], function: Callable[..., Any]) -> dict[str, Any]:
    """Returns the options that a function takes."""
    return {name: options[name] for name in _keywords(function) if name in options}


# The names are those of TRL's `loss_type`.
LOSSES: dict[str, Loss] = {
    "sigmoid": Loss(
        dpo_loss, summed_log_ratios, "DPO (Rafailov et al. 2023), with label_smoothing cDPO (Mitchell 2023)",
    ),
    "robust": Loss(rdpo_loss, summed_log_ratios, "rDPO (Chowdhury et al. 2024), unbiased under flipped labels"),
    "ipo": Loss(ipo_loss, ipo_log_ratios, "IPO (Azar et al. 2024), a margin of 1 / (2 beta)"),
    "hinge": Loss(slic_loss, summed_log_ratios, "SLiC-HF (Zhao et al. 2023), as SeRA uses it"),
    "simpo": Loss(simpo_loss, mean_log_probs, "SimPO (Meng et al. 2024), without a reference model"),
    "orpo": Loss(orpo_loss, mean_log_probs, "ORPO (Hong et al. 2024), without a reference model; beta is its lambda"),
}  # fmt: skip
