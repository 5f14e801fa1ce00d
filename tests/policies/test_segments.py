"""Attention by segments, without a mask, gives what the dense mask gives: log-probs, gradients, and bit for bit again."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from handbook_ext.core.records import PreferencePair
from handbook_ext.policies import segments
from handbook_ext.policies.chat import ChatEncoder
from handbook_ext.policies.encoding import encode_pairs
from handbook_ext.policies.forward import attention_mask, prefix_shared
from handbook_ext.policies.packing import EncodedGroup, EncodedPair, PackedRows, may_attend, pack, string_together
from tests.policies.test_prefix_shared import ARCHITECTURES, separate_logprobs

if TYPE_CHECKING:
    from tests.conftest import BuildPolicy

Pairs = list[EncodedPair]


@pytest.fixture
def pairs(tokenizer: PreTrainedTokenizerFast, make_pairs: Callable[[int], list[PreferencePair]]) -> Pairs:
    """Eight pairs of two and three completions, of different lengths."""
    return list(encode_pairs(make_pairs(8), ChatEncoder(tokenizer, max_length=44, max_prompt_length=32), explore=True).pairs)


@pytest.fixture
def at_every_length(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segments, "MIN_LENGTH", 1)


def value_and_gradients(model: PreTrainedModel, rows: PackedRows) -> tuple[Tensor, dict[str, Tensor]]:
    """Log-probs, and gradients of a weighted sum of them, in which no completion cancels another."""
    model.zero_grad()
    values = model(rows=rows)
    (values * torch.linspace(0.1, 1, len(values))).sum().backward()
    return values.detach(), {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}


def assert_same(ours: tuple[Tensor, dict[str, Tensor]], theirs: tuple[Tensor, dict[str, Tensor]], within: float = 1e-6) -> None:
    """Values agree relatively, gradients relatively to the largest entry of their tensor."""
    torch.testing.assert_close(ours[0], theirs[0], rtol=within, atol=0)
    assert ours[1].keys() == theirs[1].keys()
    for name, gradient in theirs[1].items():
        assert float((ours[1][name] - gradient).abs().max()) <= within * max(float(gradient.abs().max()), 1e-3), name


def asked_for(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many blocks each attention is computed in, from now on."""
    counts: list[int] = []
    original = segments._attend_in_blocks

    def spy(query: Tensor, key: Tensor, value: Tensor, blocks: list[segments.Block], scale: float) -> Tensor:
        counts.append(len(blocks))
        return original(query, key, value, blocks, scale)

    monkeypatch.setattr(segments, "_attend_in_blocks", spy)
    return counts


@pytest.mark.parametrize("one_row", [False, True], ids=["row_per_pair", "one_row"])
@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_segments_give_what_the_dense_mask_gives(
    kind: str, one_row: bool, build: BuildPolicy, pairs: Pairs, at_every_length: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = pack(pairs, pad_id=0, one_row=one_row)
    eager = value_and_gradients(prefix_shared(build(kind, attention="eager")).double(), rows)
    blocks = asked_for(monkeypatch)
    found = value_and_gradients(prefix_shared(build(kind)).double(), rows)
    assert set(blocks) == {sum(len(pair.completions) for pair in pairs)}
    assert_same(found, eager)


@pytest.mark.parametrize("kind", ["llama", "gpt_neox"])
def test_long_rows_take_the_segments_by_themselves(kind: str, build: BuildPolicy, monkeypatch: pytest.MonkeyPatch) -> None:
    draw = torch.Generator().manual_seed(1)
    ids = torch.randint(3, 300, (3, 300), generator=draw).tolist()
    long = [EncodedPair(ids[0][:90], ids[1][:140], ids[2][:200]), EncodedPair(ids[1][:5], ids[2][:7], ids[0][:250], ids[2][9:40])]
    rows = pack(long, pad_id=0)
    model = prefix_shared(build(kind, max_position_embeddings=1024))
    blocks = asked_for(monkeypatch)
    found = value_and_gradients(model, rows)
    assert set(blocks) == {5}
    monkeypatch.setattr(segments, "MIN_LENGTH", 10_000)
    blocks.clear()
    assert_same(found, value_and_gradients(model, rows), within=1e-5)
    assert not blocks


def test_the_same_rows_give_the_same_bits_with_and_without_gradient(
    build: BuildPolicy, pairs: Pairs, at_every_length: None
) -> None:
    """Training's first step meets what scoring stored."""
    model, rows = prefix_shared(build()), pack(pairs, pad_id=0)
    with torch.no_grad():
        scored = model(rows=rows)
    assert torch.equal(scored, model.train()(rows=rows))


def test_gradient_checkpointing_changes_nothing(build: BuildPolicy, pairs: Pairs, at_every_length: None) -> None:
    plain, checkpointed = prefix_shared(build()).train(), prefix_shared(build()).train()
    checkpointed.gradient_checkpointing_enable()
    rows = pack(pairs, pad_id=0)
    assert_same(value_and_gradients(checkpointed, rows), value_and_gradients(plain, rows), within=0)


def test_bf16_autocast_computes_the_kernel_in_bf16(
    build: BuildPolicy, pairs: Pairs, at_every_length: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = pack(pairs, pad_id=0)
    seen = []
    original = segments.FORWARD
    monkeypatch.setattr(
        segments, "FORWARD", lambda query, *args, **more: seen.append(query.dtype) or original(query, *args, **more)
    )
    with torch.autocast("cpu", torch.bfloat16):
        found = prefix_shared(build())(rows=rows)
        expected = prefix_shared(build(attention="eager"))(rows=rows)
    assert set(seen) == {torch.bfloat16}
    torch.testing.assert_close(found, expected, rtol=0.03, atol=0)


# --- one completion per row -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_rows_of_one_completion_go_the_causal_way(kind: str, build: BuildPolicy, monkeypatch: pytest.MonkeyPatch) -> None:
    groups = [
        EncodedGroup([5, 6, 7], [[8, 9, 10, 11]]),
        EncodedGroup([4], [[3, 2]]),
        EncodedGroup([9, 9], [[7, 5, 3, 2, 8, 6, 4, 1]]),
    ]
    rows = pack(groups, pad_id=0)
    model = prefix_shared(build(kind)).double()
    masks = []
    original = torch.nn.functional.scaled_dot_product_attention

    def spy(*args: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False, **more: object) -> Tensor:
        masks.append((attn_mask, is_causal))
        return original(*args, attn_mask=attn_mask, is_causal=is_causal, **more)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", spy)
    found = model(rows=rows)
    assert set(masks) == {(None, True)}
    monkeypatch.undo()
    expected = separate_logprobs(model, [group.prompt for group in groups], [group.completions[0] for group in groups])
    torch.testing.assert_close(found.double(), expected, rtol=1e-6, atol=0)


def test_only_rows_of_one_completion_count_as_causal(build: BuildPolicy) -> None:
    model = prefix_shared(build())
    one, two = EncodedGroup([1, 2], [[3, 4]]), EncodedGroup([1, 2], [[3], [4]])
    assert attention_mask(model, pack([one, one], pad_id=0)).shape == (1, 1, 1, 1)
    assert attention_mask(model, pack([one, two], pad_id=0)).dtype == torch.bool
    places = attention_mask(model, pack([one, EncodedGroup([1], [[3, 4]])], pad_id=0, one_row=True))
    assert places.tolist() == [[[[0, 1, 2, 3], [4, 5, 6, -1]]]]
    assert attention_mask(model, pack([one, two], pad_id=0, one_row=True)).dtype == torch.bool
    assert attention_mask(model, pack([one, one], pad_id=0, one_row=True, multiple_of=16)).dtype == torch.bool


@pytest.mark.parametrize("lengths", [(5, 1, 9, 3), (1, 1)])
@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_sequences_in_one_row_without_padding_are_blind_to_each_other(
    kind: str, lengths: tuple[int, ...], build: BuildPolicy
) -> None:
    policy = build(kind)
    ids = (torch.arange(sum(lengths)) * 37 % 300 + 3).tolist()
    apart = [policy(input_ids=each[None]).logits[0] for each in torch.tensor(ids).split(lengths)]
    rows = string_together(ids, ids, lengths, ignored=-100)
    model = prefix_shared(policy)
    inputs = {"input_ids": rows.input_ids, "position_ids": rows.positions, "attention_mask": attention_mask(model, rows)}
    torch.testing.assert_close(model(**inputs).logits[0], torch.cat(apart), rtol=1e-4, atol=1e-5)


# --- masks ------------------------------------------------------------------------------------------------------------


def test_masks_take_a_quarter_of_an_additive_one_or_less(build: BuildPolicy) -> None:
    short, long = ([EncodedPair([1] * n, [2] * n, [3] * n)] * 2 for n in (40, 400))
    for pairs, most in ((short, 2 * 120**2), (long, 8 * 2 * 1200)):
        mask = attention_mask(prefix_shared(build()), pack(pairs, pad_id=0))
        assert mask.numel() * mask.element_size() == most


def test_eager_attention_keeps_the_additive_mask(build: BuildPolicy, pairs: Pairs) -> None:
    rows = pack(pairs, pad_id=0)
    mask = attention_mask(prefix_shared(build(attention="eager")), rows)
    assert mask.dtype == torch.float32
    assert torch.equal(mask == 0, may_attend(rows))


def test_a_dense_mask_of_the_codes_is_the_rule(pairs: Pairs, at_every_length: None) -> None:
    for one_row in (False, True):
        rows = pack(pairs, pad_id=0, one_row=one_row)
        codes = segments.segment_mask(rows)
        assert codes is not None
        assert torch.equal(segments._dense(codes), may_attend(rows))


def test_heads_that_the_kernel_cannot_take_get_the_dense_mask(pairs: Pairs, at_every_length: None) -> None:
    """Values of another size than keys (as in multi-head latent attention): the output is that of SDPA under the rule."""
    rows = pack(pairs, pad_id=0)
    count, length = rows.pair.shape
    query, key, value = (torch.randn(count, 2, length, size) for size in (8, 8, 4))
    found, _ = segments.attend(torch.nn.Module(), query, key, value, segments.segment_mask(rows))
    expected = torch.nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=may_attend(rows))
    torch.testing.assert_close(found, expected.transpose(1, 2))


def test_the_models_own_forward_and_its_generation_stay_those_of_sdpa(build: BuildPolicy) -> None:
    ids, present = torch.tensor([[5, 6, 7, 8], [0, 0, 3, 4]]), torch.tensor([[1, 1, 1, 1], [0, 0, 1, 1]])
    plain = build().eval()
    mixed = prefix_shared(copy.deepcopy(plain))
    assert mixed.config._attn_implementation == segments.SEGMENTED
    assert "segments" not in mixed.config.to_json_string()
    assert torch.equal(mixed(input_ids=ids, attention_mask=present).logits, plain(input_ids=ids, attention_mask=present).logits)
    sampled = [m.generate(input_ids=ids, attention_mask=present, max_new_tokens=5, do_sample=False) for m in (plain, mixed)]
    assert torch.equal(*sampled)


@pytest.mark.parametrize("options", [{}, {"scaling": 0.9}], ids=["usual_scale", "own_scale"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_heads_that_share_keys_a_scale_and_bf16_give_what_sdpa_gives(
    dtype: torch.dtype, options: dict[str, float], pairs: Pairs, at_every_length: None
) -> None:
    """Output, and gradients against fp64 ones: in bf16 they are off by its rounding, not by that of a softmax sum in bf16."""
    rows = pack(pairs, pad_id=0)
    draw, (count, length) = torch.Generator().manual_seed(3), rows.pair.shape
    whole = [torch.randn(count, heads, length, 8, generator=draw).to(dtype).requires_grad_() for heads in (4, 2, 2)]
    exact = [each.detach().double().requires_grad_() for each in whole]
    found, _ = segments.attend(torch.nn.Module(), *whole, segments.segment_mask(rows), **options)
    repeated = [exact[0], *(each.repeat_interleave(2, 1) for each in exact[1:])]
    scale = options.get("scaling")
    expected = torch.nn.functional.scaled_dot_product_attention(*repeated, attn_mask=may_attend(rows), scale=scale)
    real = rows.pair >= 0
    within = 1e-5 if dtype == torch.float32 else 0.02
    assert float((found.double() - expected.transpose(1, 2))[real].abs().max()) < within * float(expected.abs().max())
    (found.double()[real]).square().sum().backward()
    expected.transpose(1, 2)[real].square().sum().backward()
    for ours, theirs in zip(whole, exact, strict=True):
        error = (ours.grad.double() - theirs.grad).abs().mean() / theirs.grad.abs().mean()
        assert float(error) < (1e-5 if dtype == torch.float32 else 0.008)


def test_dropout_goes_to_sdpa_under_the_rule(pairs: Pairs, at_every_length: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel has none."""
    rows, asked = pack(pairs, pad_id=0), []
    original = torch.nn.functional.scaled_dot_product_attention
    monkeypatch.setattr(
        torch.nn.functional, "scaled_dot_product_attention",
        lambda *args, **more: asked.append((more["dropout_p"], more["attn_mask"])) or original(*args, **more),
    )  # fmt: skip
    whole = [torch.randn(*rows.pair.shape[:1], 2, rows.pair.shape[1], 8) for _ in range(3)]
    segments.attend(torch.nn.Module(), *whole, segments.segment_mask(rows), dropout=0.25)
    [(dropout, mask)] = asked
    assert dropout == 0.25 and torch.equal(mask, may_attend(rows))
