"""Policies kept while training goes on: whole, at given shares of its optimizer steps, and published with what it ends in."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase, Trainer, TrainerCallback, TrainingArguments

from handbook_ext.core.artifacts import flush_folder
from handbook_ext.core.errors import UserError
from handbook_ext.core.kept import KEPT
from handbook_ext.training.trainer import save_policy


def steps_to_keep(shares: Mapping[str, float], steps: int) -> dict[str, int]:
    """Returns the optimizer step after which each policy is kept, by the name of its folder; shares are by percent in words.

    Raises UserError where there are too few steps to tell the policies apart.
    """
    found = {f"{KEPT}{percent}": round(share * steps) for percent, share in shares.items()}
    if [0, *found.values(), steps] != sorted({0, *found.values(), steps}):
        raise UserError(
            f"train.keep_at: its shares of {steps} optimizer steps are {', '.join(map(str, found.values()))}, but each policy "
            "needs a step of its own, before the last; keep fewer, or train on more pairs or in smaller batches"
        )
    return found


class KeepPolicies(TrainerCallback):
    """Keeps the policy of a trainer beside its checkpoints, after given steps.

    A training that is killed resumes from a checkpoint: a policy of a step after it is written anew, and one of a step up to
    it is there, since Trainer writes the checkpoint of a step after it has called this.
    """

    def __init__(self, trainer: Trainer, tokenizer: PreTrainedTokenizerBase, steps: Mapping[str, int]) -> None:
        """Takes the steps by the names of the policies' folders."""
        self.trainer, self.tokenizer, self.steps = trainer, tokenizer, steps
        self.folder = Path(str(trainer.args.output_dir))

    def on_step_end(self, args: TrainingArguments, state: Any, control: Any, **kwargs: Any) -> None:
        """Keeps the policy where the step is one of those; the first process writes, all call."""
        for name, step in self.steps.items():
            if step == state.global_step:
                self._keep(name)

    def publish(self, policy: Path) -> None:
        """Puts the kept policies into the folder of the one that training ended in."""
        for name in self.steps:
            shutil.rmtree(policy / name, ignore_errors=True)
            # Linked: where this is killed, a repeat finds them where they were.
            shutil.copytree(self.folder / name, policy / name, copy_function=os.link)

    def _keep(self, name: str) -> None:
        """Writes a Hugging Face checkpoint under a name, by rename: a half-written one never has it."""
        whole, partial = self.folder / name, self.folder / f".{name}.partial"
        if self.trainer.is_world_process_zero():
            shutil.rmtree(partial, ignore_errors=True)
        save_policy(self.trainer, self.tokenizer, partial)
        if self.trainer.is_world_process_zero():
            flush_folder(partial)
            shutil.rmtree(whole, ignore_errors=True)  # Of a training that was killed after this step.
            partial.rename(whole)
