"""What a plan finds of a stage, and what that depends on. No torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from handbook_ext.planning.amounts import Amounts
from handbook_ext.planning.machine_choice import Machine
from handbook_ext.planning.memory_model import Memory
from handbook_ext.planning.shapes import Shape, named_shape
from handbook_ext.planning.sharding import Sharding
from handbook_ext.recipes.iteration import Iteration
from handbook_ext.recipes.run import Run
from handbook_ext.recipes.settings import RankSettings


@dataclass
class Estimate:
    """A stage's figures: what it works on, optimizer steps, tokens that meet a model, memory, seconds, bytes left and held.

    examples: the pairs of preference training.
    """

    artifact: str
    stage: str
    on_device: bool
    work: str
    steps: int | None = None
    tokens: float = 0.0
    memory: Memory = field(default_factory=Memory)
    seconds: float = 0.0
    kept: float = 0.0
    transient: float = 0.0
    micro_batch: int | None = None
    accumulation: int | None = None
    examples: int = 0


@dataclass(frozen=True)
class Setting:
    """All that an estimate depends on besides a stage's own settings."""

    run: Run
    folder: Path
    shape: Shape
    amounts: Amounts
    machine: Machine
    sharding: Sharding

    @property
    def single(self) -> Sharding:
        """Returns the launch of a stage whose processes each hold a policy of their own."""
        return Sharding(self.sharding.name, self.sharding.processes)

    def iteration(self, settings: Any) -> Iteration:
        """Returns the iteration of a stage."""
        return self.run.iteration(settings.iteration)

    def ranker_shape(self, rank: RankSettings) -> Shape:
        """Returns the shape of a ranker's checkpoint, or of the body that the run fits."""
        if rank.model is not None:
            return named_shape(str(rank.model), rank.revision, "rank.model")
        if rank.fit.model is not None:
            return named_shape(rank.fit.model, None, "rank.fit.model")
        return self.shape


def clock(seconds: float) -> str:
    """Returns a time in words."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def keep_highest(found: Estimate, memory: Memory) -> None:
    """Keeps the memory of the part of a stage that holds the most on a device."""
    if memory.on_device > found.memory.on_device:
        found.memory = memory
