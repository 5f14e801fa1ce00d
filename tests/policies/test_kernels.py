"""Other kernels under the same forward pass: compiled, they give the same log-probs and gradients; what cannot run is refused."""

from __future__ import annotations

import copy
import importlib.util
import shutil
from typing import TYPE_CHECKING

import pytest
import torch

from handbook_ext.core.errors import UserError
from handbook_ext.policies import kernels
from handbook_ext.policies.forward import PrefixShared, prefix_shared
from handbook_ext.policies.kernels import use_kernels
from handbook_ext.policies.packing import EncodedPair, pack

if TYPE_CHECKING:
    from tests.conftest import BuildPolicy


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch compiles with g++ here")
def test_a_compiled_body_gives_the_same_log_probs_and_gradients(build: BuildPolicy) -> None:
    """Short rows with a mask, and long ones by segments; scoring and training agree to the bit."""
    plain = prefix_shared(build()).train()
    names = list(plain.state_dict())
    compiled = use_kernels(copy.deepcopy(plain), torch_compile=True)
    assert list(compiled.state_dict()) == names
    for times in (1, 8):
        rows = pack([EncodedPair([5] * 20 * times, [7, 8] * 5 * times, [9] * 9), EncodedPair([6, 4], [7], [9, 3])], pad_id=0)
        found = {}
        for name, model in (("plain", plain), ("compiled", compiled)):
            model.zero_grad()
            values = model(rows=rows)
            (values * torch.linspace(0.1, 1, len(values))).sum().backward()
            with torch.no_grad():
                assert torch.equal(model(rows=rows), values)
            found[name] = values.detach(), [weight.grad.clone() for weight in model.parameters()]
        torch.testing.assert_close(found["compiled"][0], found["plain"][0], rtol=1e-5, atol=0)
        for ours, theirs in zip(found["compiled"][1], found["plain"][1], strict=True):
            assert float((ours - theirs).abs().max()) <= 1e-5 * float(theirs.abs().max())


def test_without_a_compiler_compiling_is_refused(build: BuildPolicy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(UserError, match=r"train.torch_compile needs a C\+\+ compiler"):
        use_kernels(build(), torch_compile=True)


@pytest.mark.parametrize(("installed", "message"), [(False, "package liger_kernel; install it"), (True, "needs a GPU, and none")])
def test_liger_is_refused_where_it_cannot_run(
    installed: bool, message: str, build: BuildPolicy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: installed or None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match=message):
        use_kernels(build(), liger=True)


def test_ligers_modules_come_into_the_body_and_our_forward_stays(build: BuildPolicy, monkeypatch: pytest.MonkeyPatch) -> None:
    """Placed, not run: they need a GPU."""
    pytest.importorskip("liger_kernel", reason="make test-liger installs it")
    from transformers.models.mistral import modeling_mistral

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for name in ("apply_rotary_pos_emb", "MistralRMSNorm", "MistralMLP"):  # What Liger replaces, put back afterwards.
        monkeypatch.setattr(modeling_mistral, name, getattr(modeling_mistral, name))
    model = prefix_shared(build("mistral"))
    names = list(model.state_dict())
    use_kernels(model, liger=True)
    assert all("Liger" in repr(part) for part in (model.base_model.norm, model.base_model.layers[1].input_layernorm))
    assert "liger" in model.base_model.layers[0].mlp.forward.__func__.__module__
    assert "forward" not in vars(model)
    assert isinstance(model, PrefixShared)
    assert list(model.state_dict()) == names
    with pytest.raises(UserError, match="no kernels for the architecture gpt_neox"):
        use_kernels(prefix_shared(build("gpt_neox")), liger=True)
    assert kernels.LIGER["fused_linear_cross_entropy"] is False
