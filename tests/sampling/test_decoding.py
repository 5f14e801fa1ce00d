"""Decoding by rows: a prompt is computed once, ended rows leave, and tokens are those of transformers' own loop."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from handbook_ext.bench.generation import LengthsLaw, counted
from handbook_ext.core.records import user
from handbook_ext.core.shards import fill_shards, read_shards
from handbook_ext.policies.forward import prefix_shared
from handbook_ext.sampling.decoding import SEPARABLE, Law, Limits, by_batch, by_rows, decoded, separable
from handbook_ext.sampling.generation import Job, Request, Sample, request_batches, sample_batch

if TYPE_CHECKING:
    from tests.conftest import BuildPolicy

CPU = torch.device("cpu")
ENDS = list(range(5, 45))  # So many that rows end at many steps.
PROMPTS = [[50 + (7 * row + 3 * place) % 250 for place in range(2 + 3 * row % 11)] for row in range(9)]
WINDOW = {"mistral": {"sliding_window": 6}, "phi3": {"sliding_window": 8}}


@pytest.fixture(scope="module")
def llama(build: BuildPolicy) -> PreTrainedModel:
    """A policy whose completions end at many steps."""
    return build(initializer_range=0.1).eval()


def until_end(rows: Sequence[Sequence[int]]) -> list[list[int]]:
    """The tokens up to the first end token."""
    ends = [next((place for place, token in enumerate(row) if token in ENDS), len(row)) for row in rows]
    return [list(row[: end + 1]) for row, end in zip(rows, ends, strict=True)]


def law(count: int, temperature: float = 0.7) -> Law:
    return Law(range(count), temperature=temperature, top_p=0.9, steps=24, device=CPU)


@pytest.mark.parametrize("kind", sorted(SEPARABLE))
def test_each_architecture_decodes_as_transformers_does(kind: str, build: BuildPolicy) -> None:
    policy = build(kind, **WINDOW.get(kind, {})).eval()
    assert separable(policy)
    prompts, limits = [prompt for prompt in PROMPTS for _ in range(2)], Limits(24, ENDS, 0)
    greedy = until_end(by_rows(policy, prompts, law(18, 0.0), limits))
    assert len({len(tokens) for tokens in greedy}) > 3
    for prompt, tokens in zip(prompts[::2], greedy[::2], strict=True):
        ids = torch.tensor([prompt])
        whole = policy.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=24, pad_token_id=0, eos_token_id=ENDS
        )
        assert tokens == whole[0, len(prompt) :].tolist()
    assert greedy[::2] == greedy[1::2]
    sampled = until_end(by_rows(policy, prompts, law(18), limits))
    assert sampled == until_end(by_batch(policy, prompts, law(18), limits))
    assert sampled[::2] != sampled[1::2] and len({len(tokens) for tokens in sampled}) > 3


def test_a_sample_is_the_same_alone_and_among_others(llama: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> None:
    requests = [Request(PROMPTS[number // 3], number) for number in range(27)]
    options: dict[str, Any] = {"temperature": 0.9, "top_p": 1.0, "max_new_tokens": 16, "end_ids": ENDS}

    def sampled(size: int) -> list[Sample]:
        """The samples where batches have so many requests; those of a prompt then lie in several."""
        batches = [requests[start : start + size] for start in range(0, len(requests), size)]
        return [sample for batch in batches for sample in sample_batch(llama, tokenizer, batch, **options)]

    together = sampled(len(requests))
    assert len({sample.tokens for sample in together}) > 3
    for size in (1, 4, 7):
        assert sampled(size) == together


def test_a_prompt_is_computed_once_for_all_its_samples(llama: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> None:
    requests = [Request(prompt, seed) for prompt in ([50] * 4, [60] * 7, [70] * 7) for seed in range(5)]
    with counted(llama) as positions:
        sample_batch(llama, tokenizer, requests, temperature=0.7, top_p=1.0, max_new_tokens=1, end_ids=ENDS)
    assert (positions.prompt, positions.decoded) == (3 * 7, 0)


@pytest.mark.parametrize(
    ("lengths", "decoded"),
    [
        ([1, 2, 3, 7, 7, 4, 9], 0 + 1 + 2 + 6 + 6 + 3 + 8),  # Of 8 rows or fewer, each leaves when it ends.
        ([5] * 6, 6 * 4),  # All at once.
        ([1] * 6, 0),  # Each with its first token.
        ([4], 3),
        ([20], 11),  # Cut off after 12.
        ([1] * 2 + [12] * 22, 24 * 11),  # Fewer than an eighth of the rows do not leave.
        ([1] * 3 + [12] * 21, 21 * 11),
    ],
)
def test_ended_rows_are_not_decoded(lengths: list[int], decoded: int, llama: PreTrainedModel) -> None:
    ending = LengthsLaw(law(len(lengths)), lengths, 2)
    prompts = [[50 + row] * (3 + row % 2) for row in range(len(lengths))]
    with counted(llama) as positions:
        found = by_rows(llama, prompts, ending, Limits(12, [2], 0))
    assert positions.decoded == decoded
    assert [[*tokens, 2].index(2) + 1 for tokens in found] == [min(length, 13) for length in lengths]


def test_rows_beside_those_that_left_keep_their_own_tokens(llama: PreTrainedModel) -> None:
    """The longest prompts leave first, with the padding of the others; then the first of the batch, then one in its middle."""
    prompts, lengths = [[50 + row] * (1 + row) for row in range(6)], [4, 12, 6, 12, 2, 1]
    limits = Limits(12, [2], 0)
    apart = [
        by_rows(llama, [prompt], LengthsLaw(Law([row], temperature=1.0, top_p=0.9, steps=12, device=CPU), [length], 2), limits)[0]
        for row, (prompt, length) in enumerate(zip(prompts, lengths, strict=True))
    ]
    ours = LengthsLaw(Law(range(6), temperature=1.0, top_p=0.9, steps=12, device=CPU), lengths, 2)
    together = by_rows(llama, prompts, ours, limits)
    assert [row[:length] for row, length in zip(together, lengths, strict=True)] == [
        row[:length] for row, length in zip(apart, lengths, strict=True)
    ]


@pytest.mark.parametrize(
    "change",
    [
        lambda policy: setattr(policy.config, "model_type", "another"),
        lambda policy: setattr(policy.config, "rope_parameters", {"rope_type": "longrope"}),
        lambda policy: setattr(policy, "__class__", type("Theirs", (type(policy),), {"__module__": "remote.modeling"})),
    ],
)
def test_where_rows_may_not_leave_transformers_decodes(
    change: Callable[[Any], None], build: BuildPolicy, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy: Any = build().eval()
    policy.config = SimpleNamespace(model_type="llama", rope_parameters={"rope_type": "default"})
    assert separable(policy)
    change(policy)
    assert not separable(policy)
    monkeypatch.setattr(type(policy), "generate", lambda self, input_ids, **_: torch.cat([input_ids, input_ids], dim=1))
    assert decoded(policy, [[7, 8]], law(1), Limits(2, ENDS, 0)) == [[7, 8]]


def test_policies_with_a_merged_adapter_or_the_forward_pass_of_training_are_decoded_by_rows(build: BuildPolicy) -> None:
    adapted: Any = get_peft_model(build(), LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"]))
    policy = prefix_shared(adapted.merge_and_unload()).eval()
    assert separable(policy)
    prompts, limits = [prompt for prompt in PROMPTS for _ in range(2)], Limits(24, ENDS, 0)
    assert until_end(by_rows(policy, prompts, law(18), limits)) == until_end(by_batch(policy, prompts, law(18), limits))


def test_a_shard_that_is_made_again_has_the_same_rows(
    llama: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    jobs = [
        Job(f"p{row}", sample, user("x"), prompt, 9 * row + sample) for row, prompt in enumerate(PROMPTS) for sample in (0, 1)
    ]
    batches = request_batches(jobs, size=5, max_new_tokens=16)

    def answer(batch: list[Job]) -> list[Any]:
        requests = [Request(job.prompt_ids, job.seed) for job in batch]
        samples = sample_batch(llama, tokenizer, requests, temperature=0.7, top_p=0.9, max_new_tokens=16, end_ids=ENDS)
        return [job.completed(sample) for job, sample in zip(batch, samples, strict=True)]

    def filled() -> list[dict[str, Any]]:
        fill_shards(tmp_path, batches, answer, rank=0, processes=1, progress=lambda mine: mine)
        return list(read_shards(tmp_path, len(batches)))

    whole = filled()
    for lost in sorted(tmp_path.iterdir())[1::2]:
        lost.unlink()
    assert filled() == whole and len(whole) == 18


def test_a_token_of_probability_zero_is_never_drawn() -> None:
    """Nor where the uniform number is 0 and the tokens before the first possible one have none."""
    chosen = Law([1, 2], temperature=1.0, top_p=1.0, steps=1, device=CPU)
    chosen.uniform = torch.tensor([[0.0], [1.0 - 2**-53]], dtype=torch.float64)
    scores = torch.tensor([[-torch.inf, -torch.inf, 0.0, 0.0, -torch.inf]] * 2)
    assert chosen.tokens(scores, 0).tolist() == [2, 3]


@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_transformers_own_loop_does_not_follow_what_a_checkpoint_says_of_generation(
    temperature: float, build: BuildPolicy
) -> None:
    policy, limits = build().eval(), Limits(24, ENDS, 0)
    plain = until_end(by_batch(policy, PROMPTS, law(len(PROMPTS), temperature), limits))
    for name, value in {"repetition_penalty": 3.0, "top_k": 2, "temperature": 0.1, "do_sample": True}.items():
        setattr(policy.generation_config, name, value)
    assert until_end(by_batch(policy, PROMPTS, law(len(PROMPTS), temperature), limits)) == plain
