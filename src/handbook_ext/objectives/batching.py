"""Which pairs share a micro-batch: length-sorted inside each optimizer step, the same for every launch.

An optimizer step always averages over the same `global_batch_size` pairs. Inside it the pairs are sorted by length and
dealt to `micro_batches` micro-batches, so that padding is small; the gradient is the mean over the step's pairs whatever
the micro-batch size or the number of processes.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Slot:
    """One row of a micro-batch: which pair, and its weight in the step's mean (0 for a filler)."""

    index: int
    weight: float


@dataclass(frozen=True)
class BatchPlan:
    """The order of training: deterministic in lengths, sizes and seed.

    lengths: tokens of each pair's row. micro_batch_size: pairs per micro-batch. global_batch_size must be a multiple of
    it. The last step of an epoch may average over fewer pairs; its micro-batches are filled up with slots of weight 0.
    """

    lengths: list[int]
    global_batch_size: int
    micro_batch_size: int
    seed: int

    def __post_init__(self) -> None:
        """Raises ValueError when the sizes do not divide."""
        if self.global_batch_size % self.micro_batch_size:
            raise ValueError(
                f"global_batch_size {self.global_batch_size} is no multiple of the micro-batch {self.micro_batch_size}"
            )

    @property
    def steps(self) -> int:
        """Returns optimizer steps per epoch."""
        return math.ceil(len(self.lengths) / self.global_batch_size)

    def epoch(self, number: int) -> list[list[Slot]]:
        """Returns the micro-batches of an epoch, global_batch_size // micro_batch_size of them per step."""
        order = list(range(len(self.lengths)))
        # From seed and number alone, so that an epoch is the same on every process and after a resume.
        random.Random(f"{self.seed} {number}").shuffle(order)
        batches = []
        for start in range(0, len(order), self.global_batch_size):
            batches += self._step(order[start : start + self.global_batch_size])
        return batches

    def _step(self, pairs: list[int]) -> list[list[Slot]]:
        """Returns one step's micro-batches, longest pairs first, so that a lack of memory shows at once."""
        # Sorted inside a step only: over the whole epoch, length would decide which pairs meet in a step.
        ranked = sorted(pairs, key=lambda index: (-self.lengths[index], index))
        # The weights say 1 / n of the pairs that there are: divided by the global batch, the pairs of a short last step would
        # count for less. Its fillers repeat the shortest pair, so that every process has equally many micro-batches to reduce.
        slots = [Slot(index, 1 / len(pairs)) for index in ranked]
        slots += [Slot(ranked[-1], 0.0)] * (self.global_batch_size - len(pairs))
        return [slots[i : i + self.micro_batch_size] for i in range(0, len(slots), self.micro_batch_size)]


def accumulation_steps(global_batch_size: int, per_device: int, processes: int) -> int:
    """Returns micro-batches per device and optimizer step; raises ValueError where the launch cannot meet the batch."""
    if global_batch_size % (per_device * processes):
        raise ValueError(
            f"global_batch_size {global_batch_size} cannot be divided by {processes} processes x "
            f"per_device_train_batch_size {per_device} = {per_device * processes}; change one of the three, or the launch"
        )
    return global_batch_size // (per_device * processes)


def fitting_micro_batch(global_batch_size: int, at_most: int, processes: int) -> int:
    """Returns the largest micro-batch of at most that many pairs whose multiples meet the global batch on every process.

    Raises ValueError where the processes cannot share the global batch equally.
    """
    if global_batch_size % processes:
        raise ValueError(
            f"global_batch_size {global_batch_size} cannot be divided by {processes} processes; change one of the two"
        )
    share = global_batch_size // processes
    return next(size for size in range(min(at_most, share), 0, -1) if share % size == 0)
