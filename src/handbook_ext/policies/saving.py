"""How a trained model gets into a folder whole, whatever the launch: sharded weights are gathered first."""

from __future__ import annotations

from pathlib import Path

from transformers import Trainer


def save_whole(trainer: Trainer, folder: Path) -> None:
    """Writes a Hugging Face checkpoint; the first process writes, all must call.

    FSDP saves each process's share in the checkpoints to resume from, and with that setting Trainer writes no model at all.
    """
    plugin = getattr(trainer.accelerator.state, "fsdp_plugin", None)
    if plugin is not None:
        plugin.set_state_dict_type("FULL_STATE_DICT")
    trainer.save_model(str(folder))
