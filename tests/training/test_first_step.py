"""The check of the first step over fillers and other processes, and what the model hears of the fullest process."""

from __future__ import annotations

import contextlib
import copy
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from handbook_ext.core.errors import UserError
from handbook_ext.objectives.batching import BatchPlan
from handbook_ext.objectives.objective import Objective
from handbook_ext.policies.forward import prefix_shared
from handbook_ext.policies.packing import EncodedPair
from handbook_ext.training.scoring import score_batch
from handbook_ext.training.trainer import PreferenceTrainer

if TYPE_CHECKING:
    from tests.conftest import Arguments, BuildPolicy

PAIRS = [EncodedPair([5, 6, 7], [10 + n] * (9 - n), [30 + n, 9, 8]) for n in range(5)]  # Five of a global batch of eight.
PLAN = BatchPlan([len(pair) for pair in PAIRS], 8, 2, seed=1)


def trainer_of(policy: PreTrainedModel, wrong: int | None, args: Any) -> PreferenceTrainer:
    """A trainer whose store is the policy's own, but for one nat in each token of one pair's chosen answer."""
    values = [score_batch(prefix_shared(copy.deepcopy(policy)).eval(), [pair], pad_id=0, head_chunk=64)[0] for pair in PAIRS]
    pairs = [
        replace(pair, reference=(chosen + (number == wrong) * len(pair.chosen), rejected, 0.0))
        for number, (pair, (chosen, rejected)) in enumerate(zip(PAIRS, values, strict=True))
    ]
    return PreferenceTrainer(prefix_shared(policy), args, pairs, PLAN, Objective(beta=0.1), pad_id=0, tolerance=1e-3)


def test_a_filler_is_no_second_wrong_pair(build: BuildPolicy, arguments: Arguments) -> None:
    filler = next(slot.index for batch in PLAN.epoch(0) for slot in batch if not slot.weight)
    with pytest.raises(UserError, match="in 1 of 5 pairs by more than rounding"):
        trainer_of(build(), filler, arguments(max_steps=1)).train()


@pytest.mark.parametrize("wrong", [False, True])
def test_what_another_process_found_counts(
    wrong: bool, build: BuildPolicy, arguments: Arguments, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That one has two pairs of 8 tokens, one off by 3 nats, and this one 50 tokens: all must stop, or one would wait."""
    trainer = trainer_of(build(), None, arguments(max_steps=1))
    theirs = torch.tensor([3.0, 8, 8e-3, 2, 1, 0.75] if wrong else [0.0, 8, 8e-3, 2, 0, 0.0], dtype=torch.float64)
    monkeypatch.setattr(trainer.accelerator, "gather", lambda numbers: torch.cat([numbers, theirs]))
    message = r"by 0\.052 nats per token, in the worst answer by 0\.75, in 1 of 7 pairs"
    with pytest.raises(UserError, match=message) if wrong else contextlib.nullcontext():
        trainer.train()


def test_the_model_hears_how_many_tokens_the_fullest_process_has(build: BuildPolicy, arguments: Arguments) -> None:
    """Else a process with fewer chunks would call a sharded head less often than another, which waits for it."""
    trainer, heard = trainer_of(build(), None, arguments(max_steps=1)), []

    def model(*, most: int, **inputs: Any) -> Tensor:
        heard.append(most)
        values: Tensor = trainer.model(most=most, **inputs)
        return values

    trainer.compute_loss(model, trainer._collate([(pair, 0.2, 77) for pair in trainer.pairs]))
    assert heard == [77]
