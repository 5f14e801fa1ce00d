"""Every preference loss by hand and against TRL, and what enters it: sums or means, with or without a reference."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from handbook_ext.objectives.losses import dpo_loss, orpo_loss, rdpo_loss, simpo_loss
from handbook_ext.objectives.objective import Objective
from handbook_ext.recipes.settings import TrainSettings

# Two pairs: summed log-probs of chosen, rejected and explore under policy and reference (nats), tokens of chosen and rejected.
OURS = torch.tensor([[-4.0, -9.0], [-6.0, -7.0], [-5.0, -3.0]])
REFERENCE = torch.tensor([[-5.0, -8.5], [-5.5, -7.5], [-8.0, -3.5]])
TOKENS = (torch.tensor([2, 5]), torch.tensor([4, 3]))
# The log-ratios' difference h, summed and per token, and the difference of the log-probs per token.
SUMS = [(-4 + 5) - (-6 + 5.5), (-9 + 8.5) - (-7 + 7.5)]
MEANS = [(-4 + 5) / 2 - (-6 + 5.5) / 4, (-9 + 8.5) / 5 - (-7 + 7.5) / 3]
PLAIN = [-4 / 2 - -6 / 4, -9 / 5 - -7 / 3]


def nlsig(x: float) -> float:
    return math.log1p(math.exp(-x))


def losses_of(objective: Objective) -> Tensor:
    return objective.losses(tuple(OURS.unbind(0)), REFERENCE, TOKENS, torch.ones(2))  # type: ignore[arg-type]


def log_odds(mean: float) -> float:
    return mean - math.log1p(-math.exp(mean))


ORPO = [-chosen + 0.1 * nlsig(log_odds(chosen) - log_odds(rejected)) for chosen, rejected in ((-4 / 2, -6 / 4), (-9 / 5, -7 / 3))]


@pytest.mark.parametrize(
    ("objective", "by_hand"),
    [
        (Objective(beta=0.5), [nlsig(0.5 * h) for h in SUMS]),
        (Objective(beta=0.5, label_smoothing=0.2), [0.8 * nlsig(0.5 * h) + 0.2 * nlsig(-0.5 * h) for h in SUMS]),
        (Objective("robust", 0.5, label_smoothing=0.2), [(0.8 * nlsig(0.5 * h) - 0.2 * nlsig(-0.5 * h)) / 0.6 for h in SUMS]),
        (Objective("ipo", 0.5), [(h - 1) ** 2 for h in MEANS]),
        (Objective("ipo", 0.5, ipo_log_prob="sum"), [(h - 1) ** 2 for h in SUMS]),
        (Objective("hinge", 0.5), [max(0, 1 - 0.5 * h) for h in SUMS]),
        (Objective("simpo", 2.0, gamma_beta_ratio=0.3), [nlsig(2 * (h - 0.3)) for h in PLAIN]),
        (Objective("orpo", 0.1), ORPO),
    ],
    ids=["dpo", "cdpo", "rdpo", "ipo", "ipo_sum", "slic", "simpo", "orpo"],
)
def test_each_loss_by_hand(objective: Objective, by_hand: list[float]) -> None:
    assert losses_of(objective).tolist() == pytest.approx(by_hand, rel=1e-5)


@pytest.mark.parametrize("loss_type", ["sigmoid", "robust", "ipo", "hinge", "simpo", "orpo"])
def test_the_exploration_term_may_be_added_to_each(loss_type: str) -> None:
    plain, exploring = (losses_of(Objective(loss_type, 0.5, alpha=alpha, explore_form="log_prob")) for alpha in (0.0, 0.2))
    assert (exploring - plain).tolist() == pytest.approx([0.2 * 0.5 * y for y in OURS[2].tolist()], rel=1e-5)


def test_rdpo_is_dpo_in_expectation_over_flipped_labels() -> None:
    chosen, rejected, eps = torch.tensor([1.3]), torch.tensor([-0.4]), 0.3
    kept, flipped = (rdpo_loss(*pair, beta=0.7, label_smoothing=eps) for pair in ((chosen, rejected), (rejected, chosen)))
    assert float((1 - eps) * kept + eps * flipped) == pytest.approx(nlsig(0.7 * 1.7), rel=1e-6)


def compare(ours: Tensor, theirs: Tensor, inputs: list[Tensor]) -> None:
    """Values and gradients agree to 1e-5."""
    assert torch.allclose(ours, theirs, rtol=1e-5)
    for mine, other in zip(*(torch.autograd.grad(each.sum(), inputs) for each in (ours, theirs)), strict=True):
        assert torch.allclose(mine, other, rtol=1e-5)
        assert bool(mine.abs().sum() > 0)


def test_simpo_equals_trls() -> None:
    from trl.experimental.cpo import CPOTrainer

    inputs = [torch.tensor([-0.7, -1.9, -0.2], requires_grad=True), torch.tensor([-1.1, -0.4, -3.0], requires_grad=True)]
    fake = SimpleNamespace(
        loss_type="simpo", beta=2.0, simpo_gamma=1.0, label_smoothing=0.0, accelerator=SimpleNamespace(device="cpu"), alpha=0.0
    )
    theirs, *_ = CPOTrainer.cpo_loss(fake, *inputs)
    compare(simpo_loss(*inputs, beta=2.0, gamma_beta_ratio=0.5), theirs, inputs)


def test_cdpo_equals_trls_smoothed_loss_on_log_ratios() -> None:
    from trl.experimental.cpo import CPOTrainer

    inputs = [torch.tensor([0.7, -1.9, -0.2], requires_grad=True), torch.tensor([-1.1, 0.4, -3.0], requires_grad=True)]
    fake = SimpleNamespace(
        loss_type="sigmoid", beta=0.3, label_smoothing=0.2, accelerator=SimpleNamespace(device="cpu"), alpha=0.0
    )
    theirs, *_ = CPOTrainer.cpo_loss(fake, *inputs)  # DPOTrainer of TRL 1.16 has no smoothed loss.
    compare(dpo_loss(*inputs, beta=0.3, label_smoothing=0.2), theirs, inputs)


def test_orpos_odds_ratio_equals_trls() -> None:
    from trl.experimental.orpo import ORPOTrainer

    inputs = [torch.tensor([-0.7, -1.9, -0.2], requires_grad=True), torch.tensor([-1.1, -0.4, -3.0], requires_grad=True)]
    fake = SimpleNamespace(beta=0.3, accelerator=SimpleNamespace(device="cpu"))
    odds, *_ = ORPOTrainer.odds_ratio_loss(fake, *inputs)  # TRL subtracts it from the negative log-likelihood.
    compare(orpo_loss(*inputs, beta=0.3), -inputs[0] - odds, inputs)


def test_orpo_is_finite_with_finite_gradients_at_certain_and_at_hopeless_tokens() -> None:
    values = torch.tensor([0.0, -1e-9, -30.0, -200.0], requires_grad=True)
    losses = orpo_loss(values, torch.tensor([-1.0, -1.0, -1.0, -1e-12]), beta=1.0)
    losses.sum().backward()
    assert torch.isfinite(losses).all()
    assert values.grad is not None and torch.isfinite(values.grad).all()


@pytest.mark.parametrize("loss_type", ["sigmoid", "robust", "ipo", "hinge", "simpo", "orpo"])
def test_settings_know_whether_a_reference_enters(loss_type: str) -> None:
    values = {"learning_rate": 1e-3, "global_batch_size": 8, "per_device_train_batch_size": 8, "max_length": 64, "beta": 0.1}
    train = TrainSettings(loss_type=loss_type, **values)
    other = REFERENCE + torch.tensor([[1.0], [-2.0], [3.0]])
    objective = Objective(loss_type, 0.1)
    moved = objective.losses(tuple(OURS.unbind(0)), other, TOKENS, torch.ones(2))  # type: ignore[arg-type]
    assert train.needs_reference == (not torch.equal(moved, losses_of(objective)))
    assert train.reward_form == objective.reward_form
    assert TrainSettings(loss_type=loss_type, alpha=0.1, **values).needs_reference
