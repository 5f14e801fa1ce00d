"""The processes of a launch: the rank and device of this one, and what the first one alone does."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from tqdm import tqdm

from handbook_ext.core.errors import UserError
from handbook_ext.core.per_device import STORE
from handbook_ext.core.stage import Stage
from handbook_ext.recipes.settings import ModelSettings


@dataclass(frozen=True)
class Launch:
    """One process of a launch: its rank, how many there are, and its device."""

    rank: int
    processes: int
    device: torch.device

    @property
    def main(self) -> bool:
        """Returns whether this is the first process, which alone writes artifacts and reports progress."""
        return self.rank == 0

    def finished(self, stage: Stage) -> bool:
        """Returns what Stage.finished returns in the first process; a UserError there ends all processes."""
        # Processes that looked for themselves could disagree while the first one publishes, and wait for each other forever.
        status: list[Any] = [None, None]  # Whether the stage is finished; the message of a UserError.
        if self.main:
            try:
                status = [stage.finished(), None]
            except UserError as error:
                status = [None, str(error)]
        finished, message = self.told(status)
        if message is not None:
            if self.main:
                raise UserError(message)
            sys.exit(2)
        return bool(finished)

    def told(self, value: Any) -> Any:
        """Returns the first process's value in every process."""
        values = [value]
        if self.processes > 1:
            broadcast_object_list(values)
        return values[0]

    @property
    def sharded(self) -> bool:
        """Returns whether DeepSpeed runs the training of this launch; it keeps fp32 copies of bf16 weights itself."""
        return os.environ.get("ACCELERATE_USE_DEEPSPEED", "false").lower() == "true"

    @property
    def checkpoints(self) -> str:
        """Returns the name of the folder of training's checkpoints: a launch resumes only from what it can read whole."""
        # From another kind's checkpoint transformers takes the weights and silently starts the optimizer afresh; DeepSpeed's
        # optimizer states are cut for one number of processes.
        if self.sharded:
            return f"checkpoints-deepspeed-{self.processes}"
        return "checkpoints-fsdp" if os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true" else "checkpoints"

    def training_dtype(self, model: ModelSettings) -> str:
        """Returns the type of the weights in training, and so in scoring.

        Weights are fp32, since bf16 (8 significant bits) rounds steps of a learning rate like 5e-7 away. They keep the
        recipe's type under DeepSpeed, which holds fp32 copies itself, and under adapters, which leave them frozen.
        """
        return model.dtype if self.sharded or model.lora is not None else "float32"

    def precision(self, bf16: bool) -> AbstractContextManager[Any]:
        """Returns the context of a training forward pass: bf16 autocast where the recipe asks for it, not under DeepSpeed."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=bf16 and not self.sharded)

    def main_first(self) -> AbstractContextManager[Any]:
        """Returns a context that the first process passes before the others: they then read what it has written."""
        return PartialState().main_process_first()

    def wait(self) -> None:
        """Returns once every process has called this."""
        PartialState().wait_for_everyone()

    def progress(self, what: str, unit: str) -> Any:
        """Returns a function that wraps an iterable and shows its rate and time left, on the first process alone."""

        def show(items: Iterable[Any]) -> Iterable[Any]:
            """Wraps the iterable."""
            return tqdm(items, desc=what, unit=unit, disable=not self.main, mininterval=1.0)

        return show


def begin() -> Launch:
    """Returns this process of the launch; to be called before anything else uses torch.

    Denormal numbers are flushed to zero: on a CPU, small fp32 models train two to three times slower with them.
    """
    torch.set_flush_denormal(True)
    if STORE in os.environ:
        from handbook_ext.policies.independent import IndependentLaunch  # noqa: PLC0415 - it is a Launch itself

        return IndependentLaunch.from_environment()
    state = PartialState(cpu=not torch.cuda.is_available())
    return Launch(state.process_index, state.num_processes, state.device)
