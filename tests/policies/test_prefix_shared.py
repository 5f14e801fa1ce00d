"""`prompt | chosen | rejected | explore` in one row gives what separate padded sequences give, in value and gradient."""

from __future__ import annotations

import copy
import shutil
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from handbook_ext.core.errors import UserError
from handbook_ext.core.records import PreferencePair
from handbook_ext.objectives.logprobs import sum_by_segment, token_logprobs
from handbook_ext.objectives.objective import Objective
from handbook_ext.policies import forward
from handbook_ext.policies.chat import ChatEncoder
from handbook_ext.policies.encoding import EncodedPairs, encode_pairs
from handbook_ext.policies.forward import attention_mask, pack_for, pair_logprobs, prefix_shared
from handbook_ext.policies.packing import EncodedPair, may_attend, pack

if TYPE_CHECKING:
    from tests.conftest import BuildPolicy

ARCHITECTURES = ("llama", "mistral", "gpt_neox", "phi3", "qwen2")
SELM = Objective(beta=0.3, alpha=0.4)
TOLERANCE = 1e-5

Gradients = dict[str, Tensor]


@pytest.fixture(scope="module")
def encoded(tokenizer: PreTrainedTokenizerFast, make_pairs: Callable[[int], list[PreferencePair]]) -> EncodedPairs:
    """Eight pairs under limits that cut some prompts and some completions."""
    return encode_pairs(make_pairs(8), ChatEncoder(tokenizer, max_length=44, max_prompt_length=32), explore=True)


def separate_logprobs(model: PreTrainedModel, prompts: list[list[int]], completions: list[list[int]]) -> Tensor:
    """Log-probs of completions, (B,), from padded sequences of their own, as every library computes them."""
    sequences = [torch.tensor(prompt + ids) for prompt, ids in zip(prompts, completions, strict=True)]
    input_ids = torch.nn.utils.rnn.pad_sequence(sequences, batch_first=True)
    mask = torch.nn.utils.rnn.pad_sequence([torch.ones_like(ids) for ids in sequences], batch_first=True)
    logprobs = model(input_ids=input_ids, attention_mask=mask).logits.log_softmax(-1)
    totals = []
    for row, (prompt, ids) in enumerate(zip(prompts, completions, strict=True)):
        places = torch.arange(len(prompt) - 1, len(prompt) + len(ids) - 1)
        totals.append(logprobs[row, places, torch.tensor(ids)].sum())
    return torch.stack(totals)


def separately(model: PreTrainedModel, pairs: list[EncodedPair]) -> tuple[Tensor, Tensor, Tensor]:
    prompts = [pair.prompt for pair in pairs]
    chosen = separate_logprobs(model, prompts, [pair.chosen for pair in pairs])
    rejected = separate_logprobs(model, prompts, [pair.rejected for pair in pairs])
    explored = separate_logprobs(model, prompts, [pair.explore or pair.chosen for pair in pairs])
    return chosen, rejected, explored * presence(pairs)


def shared(
    model: PreTrainedModel, pairs: list[EncodedPair], *, one_row: bool = False, head_chunk: int = 4096
) -> tuple[Tensor, Tensor, Tensor]:
    rows = pack(pairs, pad_id=0, one_row=one_row)
    return pair_logprobs(model(rows=rows, head_chunk=head_chunk), rows)


def presence(pairs: list[EncodedPair]) -> Tensor:
    return torch.tensor([float(pair.explore is not None) for pair in pairs])


def gradients(model: PreTrainedModel, values: tuple[Tensor, Tensor, Tensor], pairs: list[EncodedPair]) -> Gradients:
    """Gradients of SELM's mean loss, every parameter."""
    reference = torch.stack([value.detach() + 0.1 * (k + 1) for k, value in enumerate(values)])
    model.zero_grad()
    SELM.losses(values, reference, (torch.ones(len(pairs)), torch.ones(len(pairs))), presence(pairs)).mean().backward()
    return {name: copy.deepcopy(weight.grad) for name, weight in model.named_parameters() if weight.grad is not None}


def worst(ours: Tensor, theirs: Tensor) -> float:
    """The largest difference relative to the largest value."""
    return float((ours - theirs).abs().max() / theirs.abs().max())


def assert_equal(ours: tuple[Tensor, ...], theirs: tuple[Tensor, ...]) -> None:
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, rtol=TOLERANCE, atol=0)


def assert_gradients_equal(ours: Gradients, theirs: Gradients, model: PreTrainedModel) -> None:
    assert set(ours) == set(theirs) == {name for name, _ in model.named_parameters()}
    assert {name: worst(ours[name], theirs[name]) for name in ours if worst(ours[name], theirs[name]) > TOLERANCE} == {}


def test_the_pairs_have_every_case(encoded: EncodedPairs) -> None:
    notes = encoded.notes
    assert (notes["explored"], notes["explore is chosen"], notes["explore is rejected"]) == (6, 2, 2)
    assert 0 < notes["prompts cut"] < 8
    assert 0 < notes["completions cut"] < 20
    assert {len(pair.completions) for pair in encoded.pairs} == {2, 3}
    assert len(set(encoded.lengths)) > 4


@pytest.mark.parametrize("one_row", [False, True], ids=["row_per_pair", "one_row"])
@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_logprobs_and_gradients_equal_separate_sequences(
    kind: str, one_row: bool, build: BuildPolicy, encoded: EncodedPairs
) -> None:
    model = prefix_shared(build(kind)).train()  # training mode: the configuration's dropout must be off
    ours, theirs = shared(model, encoded.pairs, one_row=one_row), separately(model, encoded.pairs)
    assert_equal(ours, theirs)
    assert_gradients_equal(gradients(model, ours, encoded.pairs), gradients(model, theirs, encoded.pairs), model)


@pytest.mark.parametrize("kind", ["llama", "gpt_neox"])
def test_rows_that_go_through_the_model_in_several_chunks_change_nothing(
    kind: str, build: BuildPolicy, encoded: EncodedPairs, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = prefix_shared(build(kind)).train()
    pairs = sorted(encoded.pairs, key=len, reverse=True)
    whole = shared(model, pairs)
    monkeypatch.setattr(forward, "MIN_POSITIONS", 1)
    assert len(forward.row_chunks(pack(pairs, pad_id=0))) > 2
    chunks = shared(model, pairs)
    assert_equal(chunks, whole)
    assert_gradients_equal(gradients(model, chunks, pairs), gradients(model, whole, pairs), model)


@pytest.mark.parametrize("head_chunk", [1, 7, 64])
def test_head_chunks_change_nothing(head_chunk: int, build: BuildPolicy, encoded: EncodedPairs) -> None:
    model = prefix_shared(build("llama", tie_word_embeddings=True)).train()
    whole, chunked = shared(model, encoded.pairs), shared(model, encoded.pairs, head_chunk=head_chunk)
    assert len(pack(encoded.pairs, pad_id=0).targets) > 64
    assert_equal(chunked, whole)
    assert_gradients_equal(gradients(model, chunked, encoded.pairs), gradients(model, whole, encoded.pairs), model)


@pytest.mark.parametrize("kind", ["llama", "gpt_neox"])
def test_flex_attention_agrees_with_sdpa(kind: str, build: BuildPolicy, encoded: EncodedPairs) -> None:
    expected = shared(prefix_shared(build(kind)).eval(), encoded.pairs)
    flex = prefix_shared(build(kind, attention="flex_attention")).eval()
    with torch.no_grad(), warnings.catch_warnings(), torch.compiler.set_stance("force_eager"):
        warnings.simplefilter("ignore")  # torch warns that the uncompiled kernel holds the whole score matrix
        try:
            rows = pack_for(flex, encoded.pairs, pad_id=0)
            assert (rows.input_ids.shape[0], rows.input_ids.shape[1] % 128) == (1, 0)
            found = pair_logprobs(flex(rows=rows), rows)
        except (NotImplementedError, RuntimeError) as error:
            pytest.skip(f"flex_attention does not run here uncompiled: {error}")
    assert_equal(found, tuple(value.detach() for value in expected))


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch compiles with g++ here")
def test_the_block_masks_of_a_length_come_from_one_program(
    build: BuildPolicy, encoded: EncodedPairs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Compiled, as on a GPU: other pairs of the same length compile nothing, and the mask is the rule."""
    counters = torch._dynamo.utils.counters["stats"]
    flex, make, programs = build(attention="flex_attention"), forward._block_mask_maker(compiled=True), []
    monkeypatch.setattr(forward, "_block_mask_maker", lambda compiled: make)
    for pairs in (encoded.pairs[:3], encoded.pairs[1:4], encoded.pairs[:8], encoded.pairs[2:4]):
        rows = pack_for(flex, pairs, pad_id=0)
        before = counters["unique_graphs"]
        mask = attention_mask(flex, rows)
        programs.append((rows.input_ids.shape[1], counters["unique_graphs"] - before))
        blocks = may_attend(rows)[0, 0].unflatten(0, (-1, 128)).unflatten(2, (-1, 128)).any(3).any(1)
        assert torch.equal(mask.to_dense()[0, 0].bool(), blocks)
    lengths = [length for length, _ in programs]
    assert [new for _, new in programs] == [int(length not in lengths[:place]) for place, length in enumerate(lengths)]
    assert len(set(lengths)) < len(lengths)


def test_a_completion_does_not_see_the_others(build: BuildPolicy, encoded: EncodedPairs) -> None:
    model = prefix_shared(build()).eval()
    pair = next(pair for pair in encoded.pairs if len(pair.completions) == 3)
    other = EncodedPair(pair.prompt, [9, 8, 7], pair.rejected, [6, 5])
    with torch.no_grad():
        before, after = shared(model, [pair])[1], shared(model, [other])[1]
    torch.testing.assert_close(before, after, rtol=TOLERANCE, atol=0)


def test_the_mask_by_hand() -> None:
    rows = pack([EncodedPair([1, 2], [3, 4], [5], None)], pad_id=0)
    allowed = may_attend(rows)[0, 0].int().tolist()
    assert allowed == [[1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [1, 1, 1, 0, 0], [1, 1, 1, 1, 0], [1, 1, 0, 0, 1]]
    assert rows.positions.tolist() == [[0, 1, 2, 3, 2]]
    assert (rows.predictors.tolist(), rows.targets.tolist(), rows.owner.tolist()) == ([1, 2, 1], [3, 4, 5], [0, 0, 1])


def test_an_explored_text_of_the_pair_is_computed_once() -> None:
    for explore, index, count in (([3, 4], 0, 2), ([5], 1, 2), ([6], 2, 3), (None, -1, 2)):
        rows = pack([EncodedPair([1, 2], [3, 4], [5], explore)], pad_id=0)
        assert rows.explore.tolist() == [index]
        assert len(rows.completion_tokens) == count
        assert rows.input_ids.shape[1] == 5 + (index == 2)


def test_one_row_has_no_padding(encoded: EncodedPairs) -> None:
    assert pack(encoded.pairs, pad_id=0, one_row=True).padding_share == 0
    padded = pack(encoded.pairs, pad_id=0)
    assert padded.padding_share == pytest.approx(1 - sum(encoded.lengths) / (8 * max(encoded.lengths)))


@pytest.mark.parametrize("pair", [EncodedPair([], [1], [2]), EncodedPair([1], [], [2]), EncodedPair([1], [2], [3], [])])
def test_empty_parts_are_refused(pair: EncodedPair) -> None:
    with pytest.raises(ValueError, match="at least one token"):
        pack([pair], pad_id=0)


def test_a_model_that_changes_its_logits_behind_the_head_is_refused(build: BuildPolicy) -> None:
    model = build()
    model.config.final_logit_softcapping = 30.0
    with pytest.raises(UserError, match="final_logit_softcapping"):
        prefix_shared(model)


def test_the_models_own_forward_stays(build: BuildPolicy) -> None:
    ids = torch.tensor([[5, 6, 7, 8]])
    plain, mixed = build().eval(), prefix_shared(build().eval())
    assert torch.equal(plain(input_ids=ids).logits, mixed(input_ids=ids).logits)
    assert type(mixed).__name__ == type(plain).__name__


def test_token_logprobs_by_hand() -> None:
    hidden = torch.tensor([[0.0, 1.0], [2.0, 0.0], [1.0, 1.0]])
    found = token_logprobs(hidden, torch.tensor([1, 0, 0]), torch.nn.Identity(), chunk=2)
    expected = torch.tensor([1 / (1 + 1 / torch.e), 1 / (1 + torch.e**-2), 0.5]).log()
    torch.testing.assert_close(found, expected)
    assert sum_by_segment(torch.tensor([1.0, 2.0, 4.0]), torch.tensor([2, 0, 2]), 4).tolist() == [2.0, 0.0, 5.0, 0.0]
    assert token_logprobs(hidden[:0], torch.tensor([], dtype=torch.long), torch.nn.Identity(), chunk=2).shape == (0,)
