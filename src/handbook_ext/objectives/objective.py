"""The whole loss of a step: a preference loss, and SELM's exploration term on top of any of them."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from handbook_ext.objectives.losses import dpo_loss, exploration_term, ipo_loss, orpo_loss, rdpo_loss, simpo_loss, slic_loss
from handbook_ext.objectives.reward_form import RewardForm, reward_form


@dataclass(frozen=True)
class Objective:
    """A preference loss with SELM's exploration term; the names are those of a recipe's `train` section."""

    loss_type: str = "sigmoid"
    beta: float = 0.1
    alpha: float = 0.0
    alpha_scale: str = "alpha_beta"
    explore_form: str = "log_ratio"
    label_smoothing: float = 0.0
    ipo_log_prob: str = "mean"
    gamma_beta_ratio: float = 0.5

    @property
    def reward_form(self) -> RewardForm:
        """Returns what the loss is made of."""
        return reward_form(self.loss_type, self.ipo_log_prob)

    def losses(
        self, logprobs: tuple[Tensor, Tensor, Tensor], reference: Tensor, tokens: tuple[Tensor, Tensor], explored: Tensor
    ) -> Tensor:
        """Returns the loss of each pair, (B,).

        logprobs: summed log-probs of chosen, rejected and explore under the policy, (B,) each, nats. reference (3, B): the
        same under the reference model. tokens: of chosen and rejected, (B,) each. explored (B,): 1 where the pair has an
        explored sample.
        """
        losses = self._preference(*self.rewards(logprobs, reference, tokens))
        if self.alpha == 0:
            return losses
        term = logprobs[2] - reference[2] if self.explore_form == "log_ratio" else logprobs[2]
        return losses + explored * exploration_term(term, beta=self.beta, alpha=self.alpha, scale=self.alpha_scale)

    def rewards(
        self, logprobs: tuple[Tensor, Tensor, Tensor], reference: Tensor, tokens: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Returns the measure of chosen and rejected, (B,) each: log-ratios or log-probs, summed or means over tokens."""
        chosen, rejected = (logprobs[side] - reference[side] if self.reward_form.reference else logprobs[side] for side in (0, 1))
        return (chosen / tokens[0], rejected / tokens[1]) if self.reward_form.length_normalized else (chosen, rejected)

    def _preference(self, chosen: Tensor, rejected: Tensor) -> Tensor:
        """Returns the preference loss of each pair, (B,), from the measures of its two completions."""
        match self.loss_type:
            case "sigmoid":
                return dpo_loss(chosen, rejected, beta=self.beta, label_smoothing=self.label_smoothing)
            case "robust":
                return rdpo_loss(chosen, rejected, beta=self.beta, label_smoothing=self.label_smoothing)
            case "ipo":
                return ipo_loss(chosen, rejected, beta=self.beta)
            case "hinge":
                return slic_loss(chosen, rejected, beta=self.beta)
            case "simpo":
                return simpo_loss(chosen, rejected, beta=self.beta, gamma_beta_ratio=self.gamma_beta_ratio)
            case "orpo":
                return orpo_loss(chosen, rejected, beta=self.beta)
            case other:
                raise ValueError(f"no preference loss is called {other!r}")
