"""What each process trains on: its share of the plan, and how many completion tokens the fullest process has in each round."""

from __future__ import annotations

import random

import pytest

from handbook_ext.objectives.batching import BatchPlan
from handbook_ext.policies.packing import EncodedPair
from handbook_ext.training.plan_loader import Pairs, PlanSampler

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
