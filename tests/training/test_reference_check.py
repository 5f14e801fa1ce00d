"""The store of the untrained policy passes at any shape of batch and any length of answer; another policy's store does not."""

from __future__ import annotations

import contextlib
import copy
import random
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from transformers import PreTrainedModel

from handbook_ext.core.errors import UserError
from handbook_ext.objectives.batching import BatchPlan
from handbook_ext.objectives.objective import Objective
from handbook_ext.policies.forward import prefix_shared
from handbook_ext.policies.packing import EncodedPair
from handbook_ext.training.reference_check import ReferenceCheck
from handbook_ext.training.scoring import score_batch
from handbook_ext.training.trainer import PreferenceTrainer

if TYPE_CHECKING:
    from tests.conftest import Arguments, BuildPolicy

BF16, FP32 = 2e-2, 1e-3  # The tolerances of recipes.


def pairs_of(tokens: int, count: int = 24) -> list[EncodedPair]:
    """Pairs whose answers have so many tokens."""
    draw = random.Random(tokens)

    def ids(length: int, first: int) -> list[int]:
        return [first, *(draw.randrange(3, 300) for _ in range(length - 1))]

    return [
        EncodedPair(ids(draw.randint(4, 40), 5), ids(tokens, 10 + number), ids(tokens, 60 + number), ids(tokens, 120 + number))
        for number in range(count)
    ]


def scored(policy: PreTrainedModel, pairs: Sequence[EncodedPair], *, bf16: bool, together: int) -> list[EncodedPair]:
    """The pairs with the log-probs that a policy gives them in batches of another size than training's."""
    scorer, ready = prefix_shared(copy.deepcopy(policy)).eval(), []
    for start in range(0, len(pairs), together):
        batch = pairs[start : start + together]
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            values = score_batch(scorer, batch, pad_id=0, head_chunk=4096)
        ready += [replace(pair, reference=tuple(each)) for pair, each in zip(batch, values, strict=True)]
    return ready


def train(policy: PreTrainedModel, pairs: list[EncodedPair], args: Any, tolerance: float) -> None:
    plan = BatchPlan([len(pair) for pair in pairs], 8, 2, seed=1)
    objective = Objective(beta=0.1, alpha=0.1)
    PreferenceTrainer(prefix_shared(policy), args, pairs, plan, objective, pad_id=0, tolerance=tolerance).train()


def peaked(build: BuildPolicy, seed: int = 0) -> PreTrainedModel:
    """A policy as sure of itself as a trained one: logits of up to about 20, whose last bit in bf16 is a tenth of a nat."""
    policy = build(seed=seed)
    with torch.no_grad():
        policy.get_output_embeddings().weight.mul_(8)
    return policy


@pytest.mark.parametrize("together", [1, 3, 24])
@pytest.mark.parametrize("tokens", [1, 2, 30])
def test_other_batches_of_short_answers_in_bf16_are_no_other_policy(
    tokens: int, together: int, build: BuildPolicy, arguments: Arguments
) -> None:
    policy, pairs = peaked(build), pairs_of(tokens)
    train(policy, scored(policy, pairs, bf16=True, together=together), arguments(bf16=True, max_steps=1), BF16)


def test_a_bound_on_the_worst_answer_per_token_would_refuse_them(build: BuildPolicy) -> None:
    """What the check replaces: the largest difference per token of one-token answers exceeds the tolerance."""
    pairs = pairs_of(1)
    one, three = (scored(peaked(build), pairs, bf16=True, together=size) for size in (1, 24))
    worst = max(abs(a - b) for x, y in zip(one, three, strict=True) for a, b in zip(x.reference, y.reference, strict=True))
    assert worst > BF16


@pytest.mark.parametrize(("bf16", "tolerance"), [(True, BF16), (False, FP32)])
@pytest.mark.parametrize("tokens", [1, 8, 30])
def test_the_store_of_another_policy_is_refused(
    tokens: int, bf16: bool, tolerance: float, build: BuildPolicy, arguments: Arguments
) -> None:
    pairs = scored(peaked(build, seed=9), pairs_of(tokens), bf16=bf16, together=2)
    with pytest.raises(UserError, match="belongs to another policy or numeric type"):
        train(peaked(build), pairs, arguments(bf16=bf16, max_steps=1), tolerance)


@pytest.mark.parametrize(("bf16", "tolerance", "swapped", "refused"), [
    (False, FP32, 1, True), (True, BF16, 1, True), (False, FP32, 0, False), (True, BF16, 0, False),
])  # fmt: skip
def test_pairs_whose_log_probs_are_exchanged_are_counted(
    bf16: bool, tolerance: float, swapped: int, refused: bool, build: BuildPolicy, arguments: Arguments
) -> None:
    """One of the first step's eight is enough: answers of six tokens that differ by nats move the sum in bf16 as well."""
    policy = peaked(build)
    pairs = scored(policy, pairs_of(6), bf16=bf16, together=2)
    for slot in [slot for batch in BatchPlan([len(pair) for pair in pairs], 8, 2, seed=1).epoch(0)[:4] for slot in batch][
        :swapped
    ]:
        chosen, rejected, explored = pairs[slot.index].reference
        pairs[slot.index] = replace(pairs[slot.index], reference=(rejected, chosen, explored))
    message = f"in {swapped} of 8 pairs by more than rounding"
    with pytest.raises(UserError, match=message) if refused else contextlib.nullcontext():
        train(policy, pairs, arguments(bf16=bf16, max_steps=1), tolerance)


def test_in_half_precision_one_pair_of_eight_may_be_beyond_rounding_if_the_sum_is_not() -> None:
    for strays, half, refused in ((0, True, False), (1, True, False), (2, True, True), (1, False, True)):
        differences = torch.tensor([[0.15] * strays + [0.001] * (8 - strays)])
        check = ReferenceCheck(0.02, half)
        check.add(differences, torch.ones(1, 8))
        assert (check.fault(check.totals, check.worst) is not None) is refused


def test_the_bounds_by_hand() -> None:
    """Nine tokens and one: 0.09 + 0.01 in fp32; in half precision 6 * 0.01 * (3 + 1) more."""
    tokens = torch.tensor([[9], [1]])
    for half, differences, fault in (
        (False, [0.089, 0.009], False), (False, [0.0, 0.011], True), (True, [0.26, 0.06], False), (True, [0.0, 0.08], True),
        (True, [float("nan"), 0.0], True),
    ):  # fmt: skip
        check = ReferenceCheck(0.01, half)
        check.add(torch.tensor(differences, dtype=torch.float64)[:, None], tokens)
        assert (check.fault(check.totals, check.worst) is not None) is fault
    assert check.totals[1:].tolist() == [10, pytest.approx(0.34), 1, 1]
