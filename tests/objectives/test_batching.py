"""The order of training: every pair once per epoch, one mean per step, whatever the micro-batch and the launch."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from handbook_ext.objectives.batching import BatchPlan, Slot, accumulation_steps, fitting_micro_batch

RNG = random.Random(3)
LENGTHS = [RNG.randrange(4, 90) for _ in range(43)]
SIZES = [(8, 1), (8, 2), (8, 8), (16, 4), (64, 8), (1, 1), (43, 43)]


@pytest.mark.parametrize(("step", "micro"), SIZES)
def test_every_pair_once_per_epoch(step: int, micro: int) -> None:
    plan = BatchPlan(LENGTHS, step, micro, seed=5)
    for epoch in range(3):
        real = Counter(slot.index for batch in plan.epoch(epoch) for slot in batch if slot.weight)
        assert real == Counter(range(len(LENGTHS)))


@pytest.mark.parametrize(("step", "micro"), SIZES)
def test_a_step_is_a_mean_over_its_pairs_in_full_micro_batches(step: int, micro: int) -> None:
    plan = BatchPlan(LENGTHS, step, micro, seed=5)
    batches = plan.epoch(0)
    per_step = step // micro
    assert plan.steps == -(-len(LENGTHS) // step)
    assert len(batches) == plan.steps * per_step
    assert {len(batch) for batch in batches} == {micro}
    for start in range(0, len(batches), per_step):
        weights = [slot.weight for batch in batches[start : start + per_step] for slot in batch]
        assert sum(weights) == pytest.approx(1, abs=1e-12)
        assert len({weight for weight in weights if weight}) == 1


@pytest.mark.parametrize(("step", "micro"), SIZES)
def test_a_step_goes_from_long_to_short(step: int, micro: int) -> None:
    batches = BatchPlan(LENGTHS, step, micro, seed=5).epoch(1)
    for start in range(0, len(batches), step // micro):
        lengths = [LENGTHS[slot.index] for batch in batches[start : start + step // micro] for slot in batch]
        assert lengths == sorted(lengths, reverse=True)


def test_the_pairs_of_a_step_do_not_depend_on_the_micro_batch() -> None:
    def steps(micro: int) -> list[list[Slot]]:
        slots = [slot for batch in BatchPlan(LENGTHS, 8, micro, seed=5).epoch(2) for slot in batch]
        return [slots[start : start + 8] for start in range(0, len(slots), 8)]

    assert steps(1) == steps(2) == steps(4) == steps(8)


def test_the_order_follows_seed_and_epoch_alone() -> None:
    def order(seed: int, epoch: int) -> list[int]:
        return [slot.index for batch in BatchPlan(LENGTHS, 8, 2, seed).epoch(epoch) for slot in batch]

    assert order(5, 0) == order(5, 0)
    assert order(5, 0) != order(5, 1)
    assert order(5, 0) != order(6, 0)


def test_only_the_last_step_has_fillers() -> None:
    batches = BatchPlan(LENGTHS, 8, 2, seed=5).epoch(0)
    fillers = [number for number, batch in enumerate(batches) for slot in batch if not slot.weight]
    assert len(fillers) == 48 - 43
    assert min(fillers) >= len(batches) - 4


def test_accumulation_is_what_the_global_batch_leaves() -> None:
    assert accumulation_steps(128, 4, 8) == 4
    assert accumulation_steps(8, 8, 1) == 1


@pytest.mark.parametrize(("step", "micro", "processes"), [(8, 3, 1), (8, 2, 3), (4, 8, 1), (32, 8, 8)])
def test_a_launch_that_cannot_meet_the_batch_is_refused(step: int, micro: int, processes: int) -> None:
    with pytest.raises(ValueError, match=f"global_batch_size {step} cannot be divided by {processes} processes"):
        accumulation_steps(step, micro, processes)


def test_a_plan_refuses_a_micro_batch_that_does_not_divide() -> None:
    with pytest.raises(ValueError, match="no multiple"):
        BatchPlan(LENGTHS, 8, 3, seed=5)


def test_the_micro_batch_is_the_largest_that_meets_the_global_batch() -> None:
    """A process has 24 pairs of 48, then 12 of 12, then 6 of 6: the divisors of these that are at most as many as asked."""
    assert [fitting_micro_batch(48, at_most, 2) for at_most in (1, 5, 7, 8, 11, 12, 24, 100)] == [1, 4, 6, 8, 8, 12, 24, 24]
    assert fitting_micro_batch(12, 5, 1) == 4
    assert fitting_micro_batch(48, 48, 8) == 6
    with pytest.raises(ValueError, match="global_batch_size 48 cannot be divided by 5 processes; change one of the two"):
        fitting_micro_batch(48, 4, 5)
