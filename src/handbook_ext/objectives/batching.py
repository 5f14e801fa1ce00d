"""Which pairs share a micro-batch: length-sorted inside each optimizer step, the same for every launch.

An optimizer step always averages over the same `global_batch_size` pairs. Inside it the pairs are sorted by length and
dealt to `micro_batches` micro-batches, so that padding is small; the gradient is the mean over the step's pairs whatever
the micro-batch size or the number of processes. A micro-batch is a fixed number of pairs, or as many as fit in a number of
tokens; neither changes which pairs are in which step.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property


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

    micro_batch_tokens: with it a micro-batch is pairs whose padded rows have that many positions at most (a longer pair is
    alone), and micro_batch_size is not read. Every step of `epochs` epochs has equally many micro-batches, a multiple of
    `processes`, so that a trainer's accumulation is one number: as many as the fullest step needs.
    """

    lengths: list[int]
    global_batch_size: int
    micro_batch_size: int
    seed: int
    micro_batch_tokens: int | None = None
    processes: int = 1
    epochs: int = 1

    def __post_init__(self) -> None:
        """Raises ValueError when the sizes do not divide."""
        if self.micro_batch_tokens is None and self.global_batch_size % self.micro_batch_size:
            raise ValueError(
                f"global_batch_size {self.global_batch_size} is no multiple of the micro-batch {self.micro_batch_size}"
            )

    @property
    def steps(self) -> int:
        """Returns optimizer steps per epoch."""
        return math.ceil(len(self.lengths) / self.global_batch_size)

    @cached_property
    def per_step(self) -> int:
        """Returns the micro-batches of an optimizer step, over all processes."""
        if self.micro_batch_tokens is None:
            return self.global_batch_size // self.micro_batch_size
        steps = [step for number in range(self.epochs) for step in self._steps(number)]
        needed = max(len(within(self._ranked(step), self.lengths, self.micro_batch_tokens)) for step in steps)
        return math.ceil(needed / self.processes) * self.processes

    def epoch(self, number: int) -> list[list[Slot]]:
        """Returns the micro-batches of an epoch, `per_step` of them per step."""
        by_tokens = self.micro_batch_tokens is not None
        return [batch for step in self._steps(number) for batch in (self._by_tokens if by_tokens else self._step)(step)]

    def _steps(self, number: int) -> list[list[int]]:
        """Returns the pairs of each step of an epoch."""
        order = list(range(len(self.lengths)))
        # From seed and number alone, so that an epoch is the same on every process and after a resume.
        random.Random(f"{self.seed} {number}").shuffle(order)
        return [order[start : start + self.global_batch_size] for start in range(0, len(order), self.global_batch_size)]

    def _ranked(self, pairs: list[int]) -> list[int]:
        """Returns a step's pairs, the longest first."""
        return sorted(pairs, key=lambda index: (-self.lengths[index], index))

    def _by_tokens(self, pairs: list[int]) -> list[list[Slot]]:
        """Returns one step's micro-batches of similar size in positions, longest pairs first; fillers where pairs are too few."""
        ranked = self._ranked(pairs)
        # The least capacity that `per_step` micro-batches can do with, so that they are alike; it is the planned one at most.
        low, high = 1, self.lengths[ranked[0]] * len(ranked)
        while low < high:
            middle = (low + high) // 2
            if len(within(ranked, self.lengths, middle)) <= self.per_step:
                high = middle
            else:
                low = middle + 1
        batches = [[Slot(index, 1 / len(pairs)) for index in batch] for batch in within(ranked, self.lengths, low)]
        # Fewer than planned: the last steps of an epoch, and steps that could not be cut finer at equal capacity.
        return batches + [[Slot(ranked[-1], 0.0)]] * (self.per_step - len(batches))

    def _step(self, pairs: list[int]) -> list[list[Slot]]:
        """Returns one step's micro-batches, longest pairs first, so that a lack of memory shows at once."""
        # Sorted inside a step only: over the whole epoch, length would decide which pairs meet in a step.
        ranked = self._ranked(pairs)
        # The weights say 1 / n of the pairs that there are: divided by the global batch, the pairs of a short last step would
        # count for less. Its fillers repeat the shortest pair, so that every process has equally many micro-batches to reduce.
        slots = [Slot(index, 1 / len(pairs)) for index in ranked]
        slots += [Slot(ranked[-1], 0.0)] * (self.global_batch_size - len(pairs))
        return [slots[i : i + self.micro_batch_size] for i in range(0, len(slots), self.micro_batch_size)]


def within(ranked: Sequence[int], lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Returns consecutive pairs of an order, longest first, in batches of at most `capacity` positions, padding included.

    Rows are padded to the longest of their batch, its first. A pair that is longer than the capacity is a batch of its own.
    """
    batches: list[list[int]] = []
    for index in ranked:
        if batches and (len(batches[-1]) + 1) * lengths[batches[-1][0]] <= capacity:
            batches[-1].append(index)
        else:
            batches.append([index])
    return batches


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
