"""Log-probs of tokens from hidden states: values by hand, chunks that change nothing, sums in double precision."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from handbook_ext.objectives.logprobs import sum_by_segment, token_logprobs

# The logits of five positions over three words are log-weights: word w of position n has the probability weight / total.
WEIGHTS = torch.tensor([[1.0, 2.0, 1.0], [3.0, 1.0, 4.0], [1.0, 1.0, 1.0], [5.0, 4.0, 1.0], [2.0, 6.0, 2.0]])
TARGETS = torch.tensor([1, 2, 0, 1, 0])
EXPECTED = [math.log(share) for share in (2 / 4, 4 / 8, 1 / 3, 4 / 10, 2 / 10)]


@pytest.mark.parametrize("chunk", [1, 2, 3, 5, 64])
def test_a_log_prob_is_the_log_of_the_targets_share_whatever_the_chunk(chunk: int) -> None:
    sizes: list[int] = []

    def head(hidden: Tensor) -> Tensor:
        sizes.append(len(hidden))
        return hidden

    hidden = WEIGHTS.log().requires_grad_()
    found = token_logprobs(hidden, TARGETS, head, chunk=chunk)
    assert found.tolist() == pytest.approx(EXPECTED, rel=1e-6)
    found.sum().backward()
    # The slope of a log-softmax: 1 for the target less its probability, for the others less theirs.
    slopes = torch.nn.functional.one_hot(TARGETS, 3) - WEIGHTS / WEIGHTS.sum(1, keepdim=True)
    torch.testing.assert_close(hidden.grad, slopes)
    assert max(sizes) == min(chunk, 5)
    # Chunks are computed again in the backward pass, so that one chunk's logits are held at a time; a single one is kept.
    assert sum(sizes) == (5 if chunk >= 5 else 10)


@pytest.mark.parametrize(("most", "calls"), [(0, 3), (5, 3), (6, 3), (7, 4), (9, 5)])
def test_the_head_is_called_as_often_as_by_the_process_with_most(most: int, calls: int) -> None:
    sizes: list[int] = []
    backward: list[int] = []

    def head(hidden: Tensor) -> Tensor:
        sizes.append(len(hidden))
        logits = hidden * 1.0
        logits.register_hook(lambda slope: backward.append(len(slope)))
        return logits

    hidden = WEIGHTS.log().requires_grad_()
    found = token_logprobs(hidden, TARGETS, head, chunk=2, most=most)
    assert found.tolist() == pytest.approx(EXPECTED, rel=1e-6)
    assert len(sizes) == calls
    found.sum().backward()
    assert len(sizes) == 2 * calls and len(backward) == calls  # The calls on nothing as well.
    slopes = torch.nn.functional.one_hot(TARGETS, 3) - WEIGHTS / WEIGHTS.sum(1, keepdim=True)
    torch.testing.assert_close(hidden.grad, slopes)


def test_a_single_call_is_computed_again_where_another_process_makes_two() -> None:
    sizes: list[int] = []
    hidden = WEIGHTS.log().requires_grad_()
    token_logprobs(hidden, TARGETS, lambda part: sizes.append(len(part)) or part, chunk=5, most=6).sum().backward()
    assert sorted(sizes) == [0, 0, 5, 5]


def test_without_gradients_nothing_is_computed_twice() -> None:
    sizes: list[int] = []
    with torch.no_grad():
        found = token_logprobs(WEIGHTS.log(), TARGETS, lambda hidden: sizes.append(len(hidden)) or hidden, chunk=2)
    assert found.tolist() == pytest.approx(EXPECTED, rel=1e-6)
    assert sizes == [2, 2, 1]


def test_logits_of_half_precision_are_summed_in_full_precision() -> None:
    """300 equal words: each has a probability of 1/300, which the softmax of bfloat16 misses by a tenth of a percent."""
    found = token_logprobs(torch.zeros(1, 300, dtype=torch.bfloat16), torch.tensor([7]), torch.nn.Identity(), chunk=8)
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(-math.log(300), rel=1e-6)


def test_no_target_gives_no_log_prob() -> None:
    hidden, targets = torch.zeros(0, 3, dtype=torch.bfloat16), torch.zeros(0, dtype=torch.long)
    found = token_logprobs(hidden, targets, torch.nn.Identity(), chunk=8)
    assert (found.shape, found.dtype) == ((0,), torch.float32)


def test_sums_are_by_segment_and_exact_in_double_precision() -> None:
    values, segments = torch.tensor([1.0, 2.0, 4.0, 8.0]), torch.tensor([2, 0, 2, 3])
    found = sum_by_segment(values, segments, 5)
    assert found.tolist() == [2.0, 0.0, 5.0, 8.0, 0.0]
    assert found.dtype == torch.float32
    # 2^24 + 1 + 1 is 2^24 in single precision, one addition at a time.
    large = torch.tensor([2.0**24, 1.0, 1.0])
    assert sum_by_segment(large, torch.zeros(3, dtype=torch.long), 1).tolist() == [2.0**24 + 2]
