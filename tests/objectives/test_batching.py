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


# --- micro-batches by tokens ------------------------------------------------------------------------------------------

BY_TOKENS = [(8, 200, 1, 1), (8, 200, 2, 3), (16, 90, 4, 2), (43, 1000, 3, 1), (8, 10**6, 1, 1), (4, 5, 2, 2)]


def positions(batch: list[Slot]) -> int:
    """Of padded rows."""
    return len(batch) * max(LENGTHS[slot.index] for slot in batch)


@pytest.mark.parametrize(("step", "tokens", "processes", "epochs"), BY_TOKENS)
def test_batches_by_tokens_have_the_same_pairs_in_the_same_steps(step: int, tokens: int, processes: int, epochs: int) -> None:
    fixed = BatchPlan(LENGTHS, step, 1, seed=5)
    plan = BatchPlan(LENGTHS, step, 1, 5, tokens, processes, epochs)
    assert plan.steps == fixed.steps
    assert plan.per_step % processes == 0
    for epoch in range(epochs + 1):
        batches, alone = plan.epoch(epoch), fixed.epoch(epoch)
        assert len(batches) == plan.steps * plan.per_step
        for number in range(plan.steps):
            mine = [slot for batch in batches[number * plan.per_step : (number + 1) * plan.per_step] for slot in batch]
            theirs = [slot for batch in alone[number * step : (number + 1) * step] for slot in batch]
            assert [slot for slot in mine if slot.weight] == [slot for slot in theirs if slot.weight]
            assert sum(slot.weight for slot in mine) == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize(("step", "tokens", "processes", "epochs"), BY_TOKENS)
def test_no_batch_exceeds_its_tokens_but_a_single_long_pair(step: int, tokens: int, processes: int, epochs: int) -> None:
    plan = BatchPlan(LENGTHS, step, 1, 5, tokens, processes, epochs)
    for epoch in range(epochs):
        assert all(positions(batch) <= tokens or len(batch) == 1 for batch in plan.epoch(epoch))


def test_there_are_as_many_batches_as_the_fullest_step_needs() -> None:
    """Steps of 3 pairs of 10 or 1 tokens; two of 10 exceed 19 positions, and so do a 10 and a 1 in padded rows."""
    lengths = [10, 10, 10, 1, 1, 1]
    tens = [sum(lengths[index] == 10 for index in step) for step in BatchPlan(lengths, 3, 1, 0)._steps(0)]
    assert sorted(tens) in ([0, 3], [1, 2])
    assert BatchPlan(lengths, 3, 1, 0, 19).per_step == 3
    assert BatchPlan(lengths, 3, 1, 0, 30).per_step == 1
    assert BatchPlan(lengths, 3, 1, 0, 30, processes=2).per_step == 2
    assert BatchPlan([10] * 6, 6, 1, 0, 20, processes=2).per_step == 4


def test_processes_of_a_round_have_similar_work() -> None:
    """64 pairs a step in bins of 400 positions: no round of four processes has one with twice the positions of another."""
    draw = random.Random(1)
    lengths = [draw.randrange(20, 120) for _ in range(256)]
    plan = BatchPlan(lengths, 64, 1, 5, 400, processes=4)
    batches = plan.epoch(0)
    for start in range(0, len(batches), 4):
        sizes = [
            len(batch) * max(lengths[slot.index] for slot in batch) for batch in batches[start : start + 4] if batch[0].weight
        ]
        assert max(sizes) < 2 * min(sizes)


def test_a_batch_by_tokens_asks_for_no_divisor() -> None:
    assert BatchPlan(LENGTHS, 7, 3, 5, 300).steps == 7


def test_the_fullest_step_of_any_epoch_counts() -> None:
    """Accumulation is one number for the whole training, and a later epoch may bring more long pairs together than the first."""
    lengths, seed, epochs = [10] * 5 + [1] * 15, 0, 4
    needed = [BatchPlan(lengths, 4, 1, seed, 12, epochs=number).per_step for number in range(1, epochs + 1)]
    assert needed[0] < needed[-1]
    plan = BatchPlan(lengths, 4, 1, seed, 12, epochs=epochs)
    batches = [batch for number in range(epochs) for batch in plan.epoch(number)]
    assert max(len(batch) * max(lengths[slot.index] for slot in batch) for batch in batches) <= 12


def test_a_batch_by_tokens_that_fills_up_a_step_is_its_shortest_pair() -> None:
    """A filler is computed like any other, for nothing."""
    plan = BatchPlan([9, 8, 7, 6, 5], 4, 1, 0, 9, processes=3)
    batches = plan.epoch(0)
    for start in range(0, len(batches), plan.per_step):
        step = batches[start : start + plan.per_step]
        real = [slot.index for batch in step for slot in batch if slot.weight]
        fillers = [slot.index for batch in step for slot in batch if not slot.weight]
        assert len(fillers) == 6 - len(real) and set(fillers) == {max(real)}
