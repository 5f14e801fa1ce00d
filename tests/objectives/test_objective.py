"""Every preference loss by hand and against TRL, and what enters it: sums or means, with or without a reference."""

from __future__ import annotations

import math
import re
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from handbook_ext.objectives.losses import LOSSES, Loss, dpo_loss, orpo_loss, rdpo_loss, simpo_loss
from handbook_ext.objectives.objective import Objective
from handbook_ext.objectives.reward_form import RewardForm, summed_log_ratios
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
        (Objective(beta=0.5, options={"label_smoothing": 0.2}), [0.8 * nlsig(0.5 * h) + 0.2 * nlsig(-0.5 * h) for h in SUMS]),
        (
            Objective(loss_type="robust", beta=0.5, options={"label_smoothing": 0.2}),
            [(0.8 * nlsig(0.5 * h) - 0.2 * nlsig(-0.5 * h)) / 0.6 for h in SUMS],
        ),
        (Objective(loss_type="ipo", beta=0.5), [(h - 1) ** 2 for h in MEANS]),
        (Objective(loss_type="ipo", beta=0.5, options={"ipo_log_prob": "sum"}), [(h - 1) ** 2 for h in SUMS]),
        (Objective(loss_type="hinge", beta=0.5), [max(0, 1 - 0.5 * h) for h in SUMS]),
        (Objective(loss_type="simpo", beta=2.0, options={"gamma_beta_ratio": 0.3}), [nlsig(2 * (h - 0.3)) for h in PLAIN]),
        (Objective(loss_type="orpo", beta=0.1), ORPO),
    ],
    ids=["dpo", "cdpo", "rdpo", "ipo", "ipo_sum", "slic", "simpo", "orpo"],
)
def test_each_loss_by_hand(objective: Objective, by_hand: list[float]) -> None:
    assert losses_of(objective).tolist() == pytest.approx(by_hand, rel=1e-5)


@pytest.mark.parametrize("loss_type", LOSSES)
def test_the_exploration_term_may_be_added_to_each(loss_type: str) -> None:
    plain, exploring = (
        losses_of(Objective(loss_type=loss_type, beta=0.5, alpha=alpha, explore_form="log_prob")) for alpha in (0.0, 0.2)
    )
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


@pytest.mark.parametrize("loss_type", LOSSES)
def test_settings_know_whether_a_reference_enters(loss_type: str) -> None:
    values = {"learning_rate": 1e-3, "global_batch_size": 8, "per_device_train_batch_size": 8, "max_length": 64, "beta": 0.1}
    train = TrainSettings(loss_type=loss_type, **values)
    other = REFERENCE + torch.tensor([[1.0], [-2.0], [3.0]])
    objective = Objective(loss_type=loss_type, beta=0.1)
    moved = objective.losses(tuple(OURS.unbind(0)), other, TOKENS, torch.ones(2))  # type: ignore[arg-type]
    assert train.needs_reference == (not torch.equal(moved, losses_of(objective)))
    assert train.reward_form == objective.reward_form
    assert TrainSettings(loss_type=loss_type, alpha=0.1, **values).needs_reference


def test_a_loss_takes_the_options_that_its_own_function_names() -> None:
    assert {name: loss.options for name, loss in LOSSES.items()} == {
        "sigmoid": {"label_smoothing": 0.0},
        "robust": {"label_smoothing": 0.0},
        "ipo": {"ipo_log_prob": "mean"},
        "hinge": {},
        "simpo": {"gamma_beta_ratio": 0.5},
        "orpo": {},
    }


def test_a_new_loss_is_one_function_and_one_row(monkeypatch: pytest.MonkeyPatch) -> None:
    def shifted(chosen: Tensor, rejected: Tensor, *, beta: float, shift: float = 1.0) -> Tensor:
        """Returns shift - beta h."""
        return shift - beta * (chosen - rejected)

    monkeypatch.setitem(LOSSES, "shifted", Loss(shifted, summed_log_ratios, "a loss of nobody"))
    recipe = {"loss_type": "shifted", "beta": 0.5, "shift": 3.0, "label_smoothing": 0.0, "learning_rate": 1e-3}
    assert losses_of(Objective.from_settings(recipe)).tolist() == pytest.approx([3 - 0.5 * h for h in SUMS])
    assert losses_of(Objective(loss_type="shifted", beta=0.5)).tolist() == pytest.approx([1 - 0.5 * h for h in SUMS])


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"loss_type": "dpo"}, "loss_type is 'dpo', but must be one of: sigmoid, robust, ipo, hinge, simpo, orpo"),
        ({"options": {"gamma": 1.0}}, "the loss sigmoid has no option 'gamma'; it has: label_smoothing"),
        ({"loss_type": "hinge", "options": {"label_smoothing": 0.1}}, "hinge has no option 'label_smoothing'; it has: none"),
        ({"loss_type": "ipo", "options": {"ipo_log_prob": "median"}}, "ipo_log_prob is 'median', but must be mean or sum"),
        ({"alpha_scale": "beta"}, "alpha_scale is 'beta', but must be one of: alpha_beta, alpha"),
        ({"explore_form": "ratio"}, "explore_form is 'ratio', but must be one of: log_ratio, log_prob"),
        ({"beta": 0.0}, "beta must be above 0"),
        ({"alpha": -0.1}, "alpha 0 or more"),
    ],
)
def test_what_no_loss_could_be_made_of_is_refused_at_once(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        Objective(**values)


@pytest.mark.parametrize("label_smoothing", [0.5, -0.1])
def test_rdpo_refuses_labels_that_say_nothing(label_smoothing: float) -> None:
    with pytest.raises(ValueError, match="needs a share of wrong labels from 0 to below"):
        losses_of(Objective(loss_type="robust", beta=0.5, options={"label_smoothing": label_smoothing}))


def test_an_objective_takes_of_a_recipes_section_what_is_its_own() -> None:
    section = {
        "loss_type": "simpo", "beta": 2.0, "label_smoothing": 0.1, "ipo_log_prob": "sum", "gamma_beta_ratio": 0.3, "alpha": 0.2,
        "alpha_scale": "alpha", "explore_form": "log_prob", "learning_rate": 1e-3, "max_length": 64,
    }  # fmt: skip
    assert Objective.from_settings(section) == Objective(
        loss_type="simpo", beta=2.0, options={"gamma_beta_ratio": 0.3}, alpha=0.2, alpha_scale="alpha", explore_form="log_prob"
    )
    ipo = Objective.from_settings({**section, "loss_type": "ipo"})
    assert ipo.options == {"ipo_log_prob": "sum"}
    assert ipo.reward_form == RewardForm(reference=True, length_normalized=False)


def test_the_table_of_losses_is_read_without_torch() -> None:
    code = "import sys; from handbook_ext.objectives.objective import Objective; Objective(); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_section_without_a_loss_is_that_of_dpo() -> None:
    assert Objective.from_settings({"label_smoothing": 0.2}) == Objective(options={"label_smoothing": 0.2})
    assert Objective.from_settings({}) == Objective(loss_type="sigmoid", beta=0.1, alpha=0.0)


def test_the_odds_of_a_certain_token_keep_their_digits() -> None:
    """log(1 - exp(x)) is log(-x) next to 0, where 1 - exp(x) has no digits left in fp32, and -exp(x) far from it."""
    for mean in (-1e-6, -1e-3, -0.5, -0.8, -3.0, -30.0):
        loss = orpo_loss(torch.tensor([mean]), torch.tensor([-1.0]), beta=1.0)
        odds = mean - math.log(-math.expm1(mean)) - log_odds(-1.0)
        assert loss.item() == pytest.approx(-mean + nlsig(odds), rel=1e-5, abs=1e-12)
        turned = orpo_loss(torch.tensor([-1.0]), torch.tensor([mean]), beta=1.0)
        assert turned.item() == pytest.approx(1.0 + nlsig(-odds), rel=1e-6)
