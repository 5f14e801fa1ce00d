"""The losses against Liger's, in value and gradient: `make test-liger` installs it and runs this."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from handbook_ext.objectives.losses import dpo_loss, orpo_loss, rdpo_loss, simpo_loss, slic_loss

chunked = pytest.importorskip("liger_kernel.chunked_loss", reason="make test-liger installs it")

BETA = 0.3
CHOSEN, REJECTED = [-0.7, -1.9, -0.2, -4.0], [-1.1, -0.4, -3.0, -4.5]
Loss = Callable[[Tensor, Tensor], Tensor]


def ligers(name: str, **settings: float | str) -> Loss:
    """Liger's loss of log-probs, which it divides by the number of pairs itself."""
    functions = {"DPO": chunked.dpo_loss, "SimPO": chunked.simpo_loss, "ORPO": chunked.orpo_loss}
    function = getattr(functions[name], f"LigerFusedLinear{name}Function").preference_loss_fn
    return lambda chosen, rejected: function(chosen, rejected, torch.zeros(2 * len(chosen)), **settings)[0]


@pytest.mark.parametrize(("ours", "theirs"), [
    (lambda c, r: dpo_loss(c, r, beta=BETA), ligers("DPO", beta=BETA)),
    (
        lambda c, r: rdpo_loss(c, r, beta=BETA, label_smoothing=0.2),
        ligers("DPO", beta=BETA, loss_type="robust", label_smoothing=0.2),
    ),
    (lambda c, r: slic_loss(c, r, beta=BETA), ligers("DPO", beta=BETA, loss_type="hinge")),
    (lambda c, r: dpo_loss(c, r, beta=BETA, label_smoothing=0.2), ligers("SimPO", beta=BETA, gamma=0.0, label_smoothing=0.2)),
    (lambda c, r: simpo_loss(c, r, beta=BETA, gamma_beta_ratio=0.5), ligers("SimPO", beta=BETA, gamma=0.5 * BETA)),
    # Liger adds the negative log-likelihood elsewhere.
    (lambda c, r: orpo_loss(c, r, beta=BETA) + c, ligers("ORPO", beta=BETA)),
], ids=["dpo", "rdpo", "slic", "cdpo", "simpo", "orpo"])  # fmt: skip
def test_a_loss_and_its_gradients_equal_ligers(ours: Loss, theirs: Loss) -> None:
    inputs = [torch.tensor(values, requires_grad=True) for values in (CHOSEN, REJECTED)]
    here, there = ours(*inputs).mean(), theirs(*inputs)
    torch.testing.assert_close(here, there, rtol=1e-5, atol=0)
    for mine, other in zip(torch.autograd.grad(here, inputs), torch.autograd.grad(there, inputs), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-8)
        assert bool(mine.abs().sum() > 0)
