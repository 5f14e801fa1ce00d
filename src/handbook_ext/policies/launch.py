"""The processes of a launch: the rank and device of this one, and what the first one alone does."""

from __future__ import annotations

import atexit
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from typing import Any, TypeVar

import torch
from accelerate import PartialState
from torch import distributed

from handbook_ext.core.bars import progress
from handbook_ext.core.errors import UserError
from handbook_ext.core.per_device import STORE, end_with_launcher
from handbook_ext.core.stage import Stage
from handbook_ext.recipes.settings import ModelSettings

T = TypeVar("T")

TIMEOUT = timedelta(minutes=30)  # Of training's collectives, in which all processes have equal work: longer is a hang.
PATIENCE = timedelta(days=30)  # Of meetings: one process may judge or hash for hours. Whoever dies is seen by the launcher.


@dataclass(frozen=True)
class Launch:
    """One process of a launch: its rank, how many there are, and its device.

    All processes call `first_alone`, `told`, `main_first` and `wait` in the same order.
    """

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
        return self.first_alone(stage.finished)

    def first_alone(self, work: Callable[[], T]) -> T:
        """Returns in every process what the first one alone works out; a UserError there ends all processes."""
        found: list[Any] = [None, None]  # The result; the messages of a UserError.
        if self.main:
            try:
                found = [work(), None]
            except UserError as error:
                found = [None, [str(message) for message in error.args]]
        result, messages = self.told(found)
        if messages is not None:
            if self.main:
                raise UserError(*messages)
            sys.exit(2)
        return result  # type: ignore[no-any-return]

    def told(self, value: Any) -> Any:
        """Returns the first process's value in every process."""
        values = [value]
        if self.processes > 1:
            distributed.broadcast_object_list(values, src=0, group=_meetings())
        return values[0]

    @property
    def sharded(self) -> bool:
        """Returns whether DeepSpeed runs the training of this launch; it keeps fp32 copies of bf16 weights itself."""
        return os.environ.get("ACCELERATE_USE_DEEPSPEED", "false").lower() == "true"

    @property
    def checkpoints(self) -> str:
        """Returns the name of the folder of training's checkpoints: a launch resumes only from what it can read whole."""
        # From another kind's checkpoint transformers takes the weights and silently starts the optimizer afresh; DeepSpeed's
        # optimizer states are cut for one number of processes, and in another way by each stage of ZeRO.
        if self.sharded:
            offload = "-offload" * (os.environ.get("ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE", "none") not in ("none", ""))
            return f"checkpoints-zero{os.environ.get('ACCELERATE_DEEPSPEED_ZERO_STAGE', '')}{offload}-{self.processes}"
        return "checkpoints-fsdp" if os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true" else "checkpoints"

    def training_dtype(self, model: ModelSettings) -> str:
        """Returns the type of the weights in training, and so in scoring.

        Weights are fp32, since bf16 (8 significant bits) rounds steps of a learning rate like 5e-7 away. They keep the
        recipe's type under DeepSpeed, which holds fp32 copies itself, and under adapters, which leave them frozen.
        """
        return model.dtype if self.sharded or model.lora is not None else "float32"

    def train_in(self, bf16: bool) -> None:
        """Has trainings of this process use bf16 autocast exactly where the recipe asks for it.

        The launch configuration names a precision as well, which would win over a recipe's `bf16: false`, and scoring in fp32
        would not be what trains. To be called before any training's arguments are made.
        """
        os.environ["ACCELERATE_MIXED_PRECISION"] = "bf16" if bf16 else "no"

    def precision(self, bf16: bool) -> AbstractContextManager[Any]:
        """Returns the context of a training forward pass: bf16 autocast where the recipe asks for it, not under DeepSpeed."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=bf16 and not self.sharded)

    @contextmanager
    def main_first(self) -> Iterator[None]:
        """Returns a context that the first process passes before the others: they then read what it has written."""
        if not self.main:
            self.wait()
        yield
        if self.main:
            self.wait()

    def wait(self) -> None:
        """Returns once every process has called this."""
        if self.processes > 1:
            distributed.barrier(group=_meetings())

    def progress(self, what: str, unit: str) -> Any:
        """Returns a function that wraps an iterable and shows its rate and time left, on the first process alone."""

        def show(items: Iterable[Any]) -> Iterable[Any]:
            """Wraps the iterable."""
            return progress(items, what, unit) if self.main else items

        return show


def begin() -> Launch:
    """Returns this process of the launch; to be called before anything else uses torch.

    Denormal numbers are flushed to zero: on a CPU, small fp32 models train two to three times slower with them.
    """
    torch.set_flush_denormal(True)
    if STORE in os.environ:
        from handbook_ext.policies.independent import IndependentLaunch  # noqa: PLC0415 - it is a Launch itself

        return IndependentLaunch.from_environment()
    state = PartialState(cpu=not torch.cuda.is_available(), timeout=TIMEOUT)
    if state.num_processes > 1:
        end_with_launcher()
        _meetings()  # Made by all at once, before any of them works alone.
        atexit.register(_leave)
    return Launch(state.process_index, state.num_processes, state.device)


@cache
def _meetings() -> Any:
    """Returns the group in which processes wait for each other outside of training: its time-out is no measure of a hang."""
    return distributed.new_group(backend="gloo", timeout=PATIENCE)


def _leave() -> None:
    """Leaves the process group after a stage that ended well: a thread of it that outlives Python aborts the process."""
    if distributed.is_initialized() and getattr(sys, "last_value", None) is None:
        distributed.destroy_process_group()
