"""The whole loss of a step: a preference loss, and SELM's exploration term on top of any of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

from handbook_ext.objectives.losses import LOSSES, exploration_term
from handbook_ext.objectives.reward_form import RewardForm

if TYPE_CHECKING:
    from torch import Tensor

ALPHA_SCALES = ("alpha_beta", "alpha")
EXPLORE_FORMS = ("log_ratio", "log_prob")


@dataclass(frozen=True, kw_only=True)
class Objective:
    """A preference loss with SELM's exploration term; the names are those of a recipe's `train` section.

    loss_type: a name of LOSSES. beta: strength of the tie to the reference model (simpo: scale of the reward, orpo: weight of
    the odds ratio). options: what else the loss takes, `LOSSES[loss_type].options` lists it. alpha: SELM's optimism, 0 for
    none. alpha_scale: factor of the exploration term, alpha * beta (Eq. 4.2, official code) or alpha (Algorithm 1).
    explore_form: the term on log-ratios (official code) or log-probs (paper); the gradients are equal.
    Raises ValueError for an unknown loss, option, scale or form, and for beta or alpha out of range.
    """

    loss_type: str = "sigmoid"
    beta: float = 0.1
    options: Mapping[str, Any] = field(default_factory=dict)
    alpha: float = 0.0
    alpha_scale: str = "alpha_beta"
    explore_form: str = "log_ratio"

    def __post_init__(self) -> None:
        """Raises ValueError for values of which no loss can be made."""
        for name, known in (("loss_type", tuple(LOSSES)), ("alpha_scale", ALPHA_SCALES), ("explore_form", EXPLORE_FORMS)):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} is {getattr(self, name)!r}, but must be one of: {', '.join(known)}")
        taken = LOSSES[self.loss_type].options
        if unknown := sorted(self.options.keys() - taken.keys()):
            raise ValueError(f"the loss {self.loss_type} has no option {unknown[0]!r}; it has: {', '.join(taken) or 'none'}")
        if not (self.beta > 0 and self.alpha >= 0):
            raise ValueError(f"beta is {self.beta} and alpha {self.alpha}, but beta must be above 0, and alpha 0 or more")
        self.reward_form  # noqa: B018 - An option of the form may be unknown: raised here, not at the first step.

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> Objective:
        """Returns the objective of a recipe's `train` section, or of any mapping with such names; other entries are ignored.

        The section has the options of all losses side by side, so those of other losses are ignored too.
        """
        values = {each.name: settings[each.name] for each in fields(cls) if each.name in settings and each.name != "options"}
        loss_type = values.get("loss_type", cls.loss_type)
        taken = LOSSES[loss_type].options if loss_type in LOSSES else {}
        return cls(**values, options={name: settings[name] for name in taken if name in settings})

    @property
    def reward_form(self) -> RewardForm:
        """Returns the form of the rewards that the loss takes."""
        return LOSSES[self.loss_type].reward_form(self.options)

    @property
    def needs_reference(self) -> bool:
        """Returns whether log-probs of the reference model enter the loss."""
        return self.reward_form.reference or (self.alpha > 0 and self.explore_form == "log_ratio")

    def losses(
        self, logprobs: tuple[Tensor, Tensor, Tensor], reference: Tensor, tokens: tuple[Tensor, Tensor], explored: Tensor
    ) -> Tensor:
        """Returns the loss of each pair, (B,).

        logprobs: summed log-probs of chosen, rejected and explore under the policy, (B,) each, nats. reference (3, B): the
        same under the reference model. tokens: of chosen and rejected, (B,) each. explored (B,): 1 where the pair has an
        explored sample.
        """
        chosen, rejected = self.rewards(logprobs, reference, tokens)
        losses = LOSSES[self.loss_type](chosen, rejected, beta=self.beta, options=self.options)
        if self.alpha == 0:
            return losses
        # Summed over tokens under every loss, also under one of per-token rewards: Eq. 4.2 has the whole completion's log-ratio.
        term = logprobs[2] - reference[2] if self.explore_form == "log_ratio" else logprobs[2]
        # A mask, not a selection: the term too is averaged over all pairs of the step, also where some have no y.
        return losses + explored * exploration_term(term, beta=self.beta, alpha=self.alpha, scale=self.alpha_scale)

    def rewards(
        self, logprobs: tuple[Tensor, Tensor, Tensor], reference: Tensor, tokens: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Returns the rewards of chosen and rejected without beta, (B,) each, in the form that the loss takes."""
        form = self.reward_form
        # Without beta, which each loss applies in its own place (IPO: to the target).
        chosen, rejected = (logprobs[side] - reference[side] if form.reference else logprobs[side] for side in (0, 1))
        return (chosen / tokens[0], rejected / tokens[1]) if form.length_normalized else (chosen, rejected)
