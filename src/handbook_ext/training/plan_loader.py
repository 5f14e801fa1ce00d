"""The data loader of preference training: it follows a batch plan, each process its own share."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch.utils.data import DataLoader, Dataset, Sampler

from handbook_ext.objectives.batching import BatchPlan, Slot
from handbook_ext.policies.packing import EncodedPair


class Pairs(Dataset):  # type: ignore[type-arg]
    """The pairs, by slot of the plan."""

    def __init__(self, pairs: Sequence[EncodedPair]) -> None:
        """Takes the encoded pairs."""
        self.pairs = pairs

    def __len__(self) -> int:
        """Returns how many pairs there are."""
        return len(self.pairs)

    def __getitem__(self, slot: Slot) -> tuple[EncodedPair, float]:
        """Returns the pair of a slot and its weight."""
        return self.pairs[slot.index], slot.weight


class PlanSampler(Sampler):  # type: ignore[type-arg]
    """One process's micro-batches of the plan, epoch by epoch."""

    def __init__(self, plan: BatchPlan, rank: int, processes: int) -> None:
        """Takes the plan and this process's rank."""
        self.plan, self.rank, self.processes, self.number = plan, rank, processes, 0

    def set_epoch(self, number: int) -> None:
        """Chooses the epoch."""
        self.number = number

    def __iter__(self) -> Iterator[list[Slot]]:
        """Yields this process's micro-batches."""
        # Every processes-th micro-batch: those of a step are sorted by length, so at each moment all processes have similar work.
        return iter(self.plan.epoch(self.number)[self.rank :: self.processes])

    def __len__(self) -> int:
        """Returns micro-batches per epoch and process."""
        return self.plan.steps * self.plan.global_batch_size // self.plan.micro_batch_size // self.processes


class PlanLoader(DataLoader):  # type: ignore[type-arg]
    """A data loader that hands the epoch to its sampler, as Trainer asks of it."""

    def set_epoch(self, number: int) -> None:
        """Chooses the epoch."""
        # DataLoader has no epoch. Trainer calls this also on resuming, before it skips the batches that are done.
        self.batch_sampler.set_epoch(number)  # type: ignore[union-attr]
