"""How a trained model gets into a folder whole, whatever the launch: sharded weights are gathered first."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import Trainer


def save_whole(trainer: Trainer, folder: Path) -> None:
    """Writes a Hugging Face checkpoint; the first process writes, all must call. Training may go on afterwards.

    FSDP saves each process's share in the checkpoints to resume from, and with that setting Trainer writes no model at all.
    """
    accelerator = trainer.accelerator
    plugin = getattr(accelerator.state, "fsdp_plugin", None)
    shares = getattr(plugin, "state_dict_type", None)
    if plugin is not None:
        plugin.set_state_dict_type("FULL_STATE_DICT")
    tied = dict(getattr(trainer.model, "all_tied_weights_keys", None) or {})
    gather = accelerator.get_state_dict

    def gathered(*arguments: Any, **named: Any) -> Any:
        """Returns the gathered weights, of which gathering has made copies of those that are tied: each is saved once."""
        state = gather(*arguments, **named)
        return state and {name: weight for name, weight in state.items() if tied.get(name) not in state}

    accelerator.get_state_dict = gathered  # type: ignore[method-assign]
    try:
        trainer.save_model(str(folder))
    finally:
        accelerator.get_state_dict = gather  # type: ignore[method-assign]
        if plugin is not None:
            plugin.set_state_dict_type(shares)
