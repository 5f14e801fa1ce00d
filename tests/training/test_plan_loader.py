"""What each process trains on: its share of the plan, and how many completion tokens the fullest process has in each round."""

from __future__ import annotations

import random

import pytest

from handbook_ext.core.errors import UserError
from handbook_ext.objectives.batching import BatchPlan
from handbook_ext.policies.packing import EncodedPair
from handbook_ext.training.plan_loader import Pairs, PlanSampler, plan_for

DRAW = random.Random(2)
PAIRS = [EncodedPair([1] * DRAW.randint(1, 9), [2] * DRAW.randint(1, 30), [3] * DRAW.randint(1, 30)) for _ in range(11)]
PLAN = BatchPlan([len(pair) for pair in PAIRS], 4, 1, seed=3)


@pytest.mark.parametrize("processes", [2, 4])
def test_all_processes_know_the_fullest_of_a_round(processes: int) -> None:
    shares = [list(PlanSampler(PLAN, PAIRS, rank, processes)) for rank in range(processes)]
    assert [turn.slot for together in zip(*shares, strict=True) for batch in together for turn in batch] == [
        slot for batch in PLAN.epoch(0) for slot in batch
    ]
    unequal = 0
    for together in zip(*shares, strict=True):
        tokens = [sum(len(ids) for turn in batch for ids in PAIRS[turn.slot.index].completions) for batch in together]
        assert {turn.most for batch in together for turn in batch} == {max(tokens)}
        unequal += len(set(tokens)) > 1
    assert unequal > 1
    turn = shares[0][0][0]
    assert Pairs(PAIRS)[turn] == (PAIRS[turn.slot.index], turn.slot.weight, turn.most)


def test_one_process_waits_for_nobody() -> None:
    assert {turn.most for batch in PlanSampler(PLAN, PAIRS, 0, 1) for turn in batch} == {0}


def test_the_plan_of_a_launch_fits_its_processes_and_epochs() -> None:
    """Of 4 pairs a step, 2 processes take 2 each at most; by tokens there are as many micro-batches as any epoch needs."""
    lengths = [10] * 5 + [1] * 15

    def plan(tokens: int | None, epochs: int = 1, processes: int = 2, per_device: int = 3) -> BatchPlan:
        return plan_for(lengths, 4, per_device=per_device, tokens=tokens, epochs=epochs, seed=0, processes=processes)

    assert (plan(None).micro_batch_size, plan(None).per_step) == (2, 2)
    assert plan(None, processes=1).micro_batch_size == 2
    assert [plan(12, epochs, processes=1).per_step for epochs in (1, 4)] == [3, 4]
    assert plan(12).per_step == 4
    assert [len(PlanSampler(plan(12), PAIRS, rank, 2)) for rank in (0, 1)] == [10, 10]


def test_processes_that_cannot_share_a_batch_are_a_users_mistake() -> None:
    with pytest.raises(UserError, match="global_batch_size 4 cannot be divided by 3 processes; change one of the two"):
        plan_for([5] * 8, 4, per_device=2, tokens=None, epochs=1, seed=0, processes=3)
