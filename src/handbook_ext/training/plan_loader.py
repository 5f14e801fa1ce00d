"""The data loader of preference training: it follows a batch plan, each process its own share."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch.utils.data import DataLoader, Dataset, Sampler

from handbook_ext.core.errors import UserError
from handbook_ext.core.shards import batched
from handbook_ext.objectives.batching import BatchPlan, Slot, fitting_micro_batch
from handbook_ext.policies.packing import EncodedPair


@dataclass(frozen=True, slots=True)
class Turn:
    """A slot, and the most completion tokens among the micro-batches that several processes run at the same time."""

    slot: Slot
    most: int


class Pairs(Dataset):  # type: ignore[type-arg]
    """The pairs, by slot of the plan."""

    def __init__(self, pairs: Sequence[EncodedPair]) -> None:
        """Takes the encoded pairs."""
        self.pairs = pairs

    def __len__(self) -> int:
        """Returns how many pairs there are."""
        return len(self.pairs)

    def __getitem__(self, turn: Turn) -> tuple[EncodedPair, float, int]:
        """Returns the pair of a slot, its weight, and the most completion tokens that a process has in this round."""
        return self.pairs[turn.slot.index], turn.slot.weight, turn.most


class PlanSampler(Sampler):  # type: ignore[type-arg]
    """One process's micro-batches of the plan, epoch by epoch."""

    def __init__(self, plan: BatchPlan, pairs: Sequence[EncodedPair], rank: int, processes: int) -> None:
        """Takes the plan, its pairs, and this process's rank."""
        self.plan, self.rank, self.processes, self.number = plan, rank, processes, 0
        # One process waits for nobody, and need not read all pairs before its first step.
        self.tokens = [0] * len(pairs) if processes == 1 else [sum(map(len, pair.completions)) for pair in pairs]

    def set_epoch(self, number: int) -> None:
        """Chooses the epoch."""
        self.number = number

    def __iter__(self) -> Iterator[list[Turn]]:
        """Yields this process's micro-batches."""
        # Every processes-th micro-batch: those of a step are sorted by length, so at each moment all processes have similar work.
        for together in batched(self.plan.epoch(self.number), self.processes):
            most = max(sum(self.tokens[slot.index] for slot in batch) for batch in together)
            yield [Turn(slot, most) for slot in together[self.rank]]

    def __len__(self) -> int:
        """Returns micro-batches per epoch and process."""
        return self.plan.steps * self.plan.per_step // self.processes


class PlanLoader(DataLoader):  # type: ignore[type-arg]
    """A data loader that hands the epoch to its sampler, as Trainer asks of it."""

    def set_epoch(self, number: int) -> None:
        """Chooses the epoch."""
        # DataLoader has no epoch. Trainer calls this also on resuming, before it skips the batches that are done.
        self.batch_sampler.set_epoch(number)  # type: ignore[union-attr]


def plan_for(
    lengths: list[int], global_batch_size: int, *, per_device: int, tokens: int | None, epochs: int, seed: int, processes: int
) -> BatchPlan:  # fmt: skip
    """Returns the batch plan of a launch, the same in scoring and in training.

    per_device: pairs of a micro-batch at most; `tokens` in its place are positions of one. epochs: of training, rounded up.
    Raises UserError where the processes cannot share the global batch equally.
    """
    try:
        micro_batch = fitting_micro_batch(global_batch_size, per_device, processes)
    except ValueError as error:
        raise UserError(str(error)) from None
    return BatchPlan(lengths, global_batch_size, micro_batch, seed, tokens, processes, epochs)
