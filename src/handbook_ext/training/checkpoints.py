"""Training's checkpoints, from which a killed stage resumes: which are whole, and which a launch can read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import distributed
from transformers import TrainerCallback, TrainingArguments

from handbook_ext.core.console import say
from handbook_ext.policies.launch import Launch

COMPLETE = "complete"


class MarkComplete(TrainerCallback):
    """Marks each checkpoint once it is whole, so that a killed run never resumes from half of one."""

    def on_save(self, args: TrainingArguments, state: Any, control: Any, **kwargs: Any) -> None:
        """Writes the mark: Trainer calls this after a process has written its last file of a checkpoint."""
        if distributed.is_initialized():
            distributed.barrier()  # Where the policy is sharded, each process writes a part.
        if state.is_world_process_zero:
            (Path(args.output_dir) / f"checkpoint-{state.global_step}" / COMPLETE).touch()


def last_complete_checkpoint(folder: Path) -> str | None:
    """Returns the newest whole checkpoint of a folder, or None."""
    found = [path.parent for path in folder.glob(f"checkpoint-*/{COMPLETE}")]
    # By number: as text, checkpoint-9 comes after checkpoint-10.
    return str(max(found, key=lambda path: int(path.name.split("-")[-1]))) if found else None


def resume_point(workspace: Path, launch: Launch) -> str | None:
    """Returns the newest whole checkpoint that this launch can read, or None, and says so where it cannot read any of others."""
    own = last_complete_checkpoint(workspace / launch.checkpoints)
    others = {path.name for path in workspace.glob("checkpoints*") if last_complete_checkpoint(path) is not None}
    if own is None and others and launch.main:
        say(
            f"note: {workspace}: training was begun by another launch, and this one ({launch.checkpoints}) cannot read "
            f"{', '.join(sorted(others))}; it starts from the beginning: to go on instead, repeat the command under that launch"
        )
    return own
