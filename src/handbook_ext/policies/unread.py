"""The last layer's MLP, half of that layer's work or more, at those positions alone whose states something reads.

Behind the last attention no position has a part in another, so a state that predicts no label is computed for nothing.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel


class LastMLP:
    """Hooks of the last layer's MLP; `positions` (N,) are those that are read of a single row, None all of any."""

    def __init__(self) -> None:
        """Starts with all positions."""
        self.positions: Tensor | None = None
        self._whole: torch.Size | None = None

    def before(self, module: torch.nn.Module, inputs: tuple[Any, ...]) -> tuple[Tensor] | None:
        """Returns the states (1, N, D) that go in, or None for the (1, L, D) that came."""
        # An MLP that takes more than its states might need all of both.
        if self.positions is None or len(inputs) != 1:
            self._whole = None
            return None
        self._whole = inputs[0].shape
        return (inputs[0].index_select(1, self.positions),)

    def after(self, module: torch.nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
        """Returns the output as (1, L, D), 0 where nothing is read."""
        if self._whole is None or self.positions is None:
            return output
        return output.new_zeros(*self._whole[:2], output.shape[-1]).index_copy(1, self.positions, output)


def leave_out_unread(model: PreTrainedModel) -> None:
    """Lets a `prefix_shared` model's last MLP leave out what is not read of single rows; a model without such stays as it is."""
    layers = getattr(model.base_model, "layers", None)
    mlp = getattr(layers[-1], "mlp", None) if layers else None
    # Experts may return more than their output.
    if mlp is None or any("expert" in name for name in model.config.get_text_config().to_dict()):
        return
    model.last_mlp = hooks = LastMLP()
    mlp.register_forward_pre_hook(hooks.before)
    mlp.register_forward_hook(hooks.after)
