"""The processes of a launch: which of them this is, its device, and what only the first one does."""

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
from handbook_ext.core.stage import Stage
from handbook_ext.recipes.settings import ModelSettings


@dataclass(frozen=True)
class Launch:
    """One process of a launch."""

    rank: int
    processes: int
    device: torch.device

    @property
    def main(self) -> bool:
        """Returns whether this is the process that publishes."""
        return self.rank == 0

    def finished(self, stage: Stage) -> bool:
        """Returns Stage.finished of the first process to all of them; its UserError stops them all."""
        told: list[Any] = [None, None]
        if self.main:
            try:
                told = [stage.finished(), None]
            except UserError as error:
                told = [None, str(error)]
        if self.processes > 1:
            broadcast_object_list(told)
        if told[1] is not None:
            if self.main:
                raise UserError(told[1])
            sys.exit(2)
        return bool(told[0])

    @property
    def sharded(self) -> bool:
        """Returns whether DeepSpeed runs the training of this launch; it keeps fp32 copies of bf16 weights itself."""
        return os.environ.get("ACCELERATE_USE_DEEPSPEED", "false").lower() == "true"

    def training_dtype(self, model: ModelSettings) -> str:
        """Returns the type of the weights in training, and so in scoring.

        bf16 weights would round away steps of 5e-7, so they are fp32, but for DeepSpeed's and for those under adapters.
        """
        return model.dtype if self.sharded or model.lora is not None else "float32"

    def precision(self, bf16: bool) -> AbstractContextManager[Any]:
        """Returns the context in which training runs its forward: bf16 autocast where a recipe asks for it."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=bf16 and not self.sharded)

    def wait(self) -> None:
        """Waits until every process is here."""
        PartialState().wait_for_everyone()

    def progress(self, what: str, unit: str) -> Any:
        """Returns a function that shows an iterable's rate and time left, on the first process alone."""

        def show(items: Iterable[Any]) -> Iterable[Any]:
            """Wraps the iterable."""
            return tqdm(items, desc=what, unit=unit, disable=not self.main, mininterval=1.0)

        return show


def begin() -> Launch:
    """Returns this process's place; to be called before anything else uses torch.

    Denormal numbers are flushed to zero: small fp32 models train two to three times slower with them on a CPU.
    """
    torch.set_flush_denormal(True)
    state = PartialState(cpu=not torch.cuda.is_available())
    return Launch(state.process_index, state.num_processes, state.device)
