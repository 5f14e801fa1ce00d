"""Sampling: each request by its own seed, the stated law, greedy as transformers does it, and honest counts."""

from __future__ import annotations

import itertools
from collections import Counter
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel, PreTrainedTokenizerFast

from handbook_ext.core.records import OfflinePair, assistant, derived_seed, user
from handbook_ext.policies.chat import ChatEncoder
from handbook_ext.sampling.generation import Job, Request, Sample, jobs_of, sample_batch

if TYPE_CHECKING:
    from tests.conftest import BuildPolicy

PROMPTS = [[5, 9, 7], [6, 8], [7, 30, 40, 50, 60, 70], [8, 22, 23, 24], [9, 100], [10, 11, 12, 13, 14]]
Pair = tuple[str, ...]


def sampled(
    policy: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, requests: list[Request], *, temperature: float = 0.7,
    top_p: float = 0.9, tokens: int = 12,
) -> list[Sample]:  # fmt: skip
    return sample_batch(
        policy, tokenizer, requests, temperature=temperature, top_p=top_p, max_new_tokens=tokens,
        end_ids=[tokenizer.eos_token_id],
    )  # fmt: skip


@pytest.fixture(scope="module")
def letters() -> PreTrainedTokenizerFast:
    """A vocabulary of an end token and seven letters."""
    words = {"</s>": 0} | {letter: place for place, letter in enumerate("abcdefg", start=1)}
    backend = Tokenizer(models.WordLevel(words, unk_token="</s>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>", pad_token="</s>")


@pytest.fixture(scope="module")
def speller(letters: PreTrainedTokenizerFast) -> PreTrainedModel:
    """A policy over the letters whose next-token distributions are neither flat nor sharp."""
    torch.manual_seed(4)
    config = LlamaConfig(
        vocab_size=8, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2, pad_token_id=None,
        num_key_value_heads=1, max_position_embeddings=32, initializer_range=0.35, bos_token_id=None, eos_token_id=0,
    )  # fmt: skip
    return AutoModelForCausalLM.from_config(config).eval()


def test_a_sample_depends_on_its_seed_and_prompt_alone(build: BuildPolicy, tokenizer: PreTrainedTokenizerFast) -> None:
    policy = build("mistral").eval()
    requests = [Request(prompt, derived_seed("test", number)) for number, prompt in enumerate(PROMPTS)]
    together = sampled(policy, tokenizer, requests)
    assert sampled(policy, tokenizer, requests) == together
    assert [sampled(policy, tokenizer, [request])[0] for request in requests] == together
    assert sampled(policy, tokenizer, requests[::-1])[::-1] == together
    other = [Request(request.prompt_ids, request.seed + 1) for request in requests]
    assert sum(a != b for a, b in zip(sampled(policy, tokenizer, other), together, strict=True)) >= 5


def test_two_seeds_of_one_prompt_are_two_samples(build: BuildPolicy, tokenizer: PreTrainedTokenizerFast) -> None:
    samples = sampled(build().eval(), tokenizer, [Request(PROMPTS[0], seed) for seed in range(8)])
    assert len({sample.text for sample in samples}) >= 7


def next_letter(policy: PreTrainedModel, ids: list[int], temperature: float, top_p: float) -> dict[int, float]:
    """The law of the next token: the smallest set of most probable tokens that reaches top_p, renormalised."""
    logits = policy(input_ids=torch.tensor([ids])).logits[0, -1].double() / temperature
    kept: dict[int, float] = {}
    for probability, token in sorted(((p, t) for t, p in enumerate(logits.softmax(-1).tolist())), reverse=True):
        if sum(kept.values()) < top_p:
            kept[token] = probability
    return {token: probability / sum(kept.values()) for token, probability in kept.items()}


@pytest.mark.parametrize(("temperature", "top_p"), [(0.7, 0.9), (0.7, 1.0), (1.5, 0.6)])
def test_two_sampled_tokens_follow_the_law(
    temperature: float, top_p: float, speller: PreTrainedModel, letters: PreTrainedTokenizerFast
) -> None:
    prompt, count = [1, 2, 3], 6000
    law: dict[Pair, float] = {}
    for first, p in next_letter(speller, prompt, temperature, top_p).items():
        if first == 0:
            law[()] = p
            continue
        for second, q in next_letter(speller, [*prompt, first], temperature, top_p).items():
            words = letters.convert_ids_to_tokens([first, second] if second else [first])
            law[tuple(words)] = p * q
    found: Counter[Pair] = Counter()
    for start in range(0, count, 2000):
        requests = [Request(prompt, derived_seed(start, number)) for number in range(2000)]
        batch = sampled(speller, letters, requests, temperature=temperature, top_p=top_p, tokens=2)
        found.update(tuple(sample.text.split()) for sample in batch)
    assert found.keys() <= law.keys()
    assert sum(law.values()) == pytest.approx(1)
    statistic = sum((found[pair] - count * p) ** 2 / (count * p) for pair, p in law.items())
    freedom = len(law) - 1
    quantile = freedom * (1 - 2 / (9 * freedom) + 3.09 * (2 / (9 * freedom)) ** 0.5) ** 3  # 99.9 %, Wilson-Hilferty
    assert freedom >= 5
    assert statistic < quantile


def test_greedy_is_greedy_of_transformers(build: BuildPolicy, tokenizer: PreTrainedTokenizerFast) -> None:
    for kind in ("mistral", "gpt_neox"):
        policy = build(kind).eval()
        batch = sampled(policy, tokenizer, [Request(prompt, 0) for prompt in PROMPTS], temperature=0.0)
        for prompt, sample in zip(PROMPTS, batch, strict=True):
            ids = torch.tensor([prompt])
            whole = policy.generate(
                ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=12, pad_token_id=0,
                eos_token_id=tokenizer.eos_token_id,
            )  # fmt: skip
            assert sample.text == tokenizer.decode(whole[0, len(prompt) :], skip_special_tokens=True).strip()
            assert sample.tokens == whole.shape[1] - len(prompt)


@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_what_a_checkpoint_says_of_generation_does_not_change_the_law(
    temperature: float, build: BuildPolicy, tokenizer: PreTrainedTokenizerFast
) -> None:
    policy, requests = build().eval(), [Request(prompt, 1) for prompt in PROMPTS]
    plain = sampled(policy, tokenizer, requests, temperature=temperature)
    for name, value in {"repetition_penalty": 3.0, "top_k": 2, "temperature": 0.1, "do_sample": True}.items():
        setattr(policy.generation_config, name, value)
    assert sampled(policy, tokenizer, requests, temperature=temperature) == plain


class Scripted:
    """A policy that says what it is told."""

    device, config = torch.device("cpu"), SimpleNamespace(model_type="scripted")  # One of no known architecture.

    def __init__(self, *answers: list[int]) -> None:
        self.answers, self.generation_config = answers, SimpleNamespace()

    def generate(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, **_: Any) -> torch.Tensor:
        self.seen = input_ids, attention_mask
        return torch.cat([input_ids, torch.tensor(list(self.answers))], dim=1)


def test_counts_and_reasons_by_hand(letters: PreTrainedTokenizerFast) -> None:
    policy: Any = Scripted([1, 2, 0], [3, 0, 0], [4, 5, 6], [0, 0, 0])
    requests = [Request(prompt, 0) for prompt in ([1], [1, 2, 3], [2, 2], [4])]
    samples = sampled(policy, letters, requests, tokens=3)
    assert samples == [Sample("a b", 3, "stop"), Sample("c", 2, "stop"), Sample("d e f", 3, "length"), Sample("", 1, "stop")]
    assert policy.seen[0].tolist() == [[0, 0, 1], [1, 2, 3], [0, 2, 2], [0, 0, 4]]
    assert policy.seen[1].tolist() == [[0, 0, 1], [1, 1, 1], [0, 1, 1], [0, 0, 1]]


def test_any_of_several_end_tokens_ends_a_sample(letters: PreTrainedTokenizerFast) -> None:
    policy: Any = Scripted([1, 7, 2], [1, 2, 0])
    samples = sample_batch(
        policy, letters, [Request([1], 0), Request([1], 1)], temperature=0.0, top_p=1.0, max_new_tokens=3, end_ids=[0, 7]
    )
    assert samples == [Sample("a", 2, "stop"), Sample("a b", 3, "stop")]


def test_rows_carry_prompt_seed_and_counts(speller: PreTrainedModel, letters: PreTrainedTokenizerFast) -> None:
    prompts = [[{"role": "user", "content": name}] for name in "xy"]
    jobs = [
        Job(name, sample, prompt, [1, 2, 3][: sample + 1], seed=derived_seed(name, sample))
        for (name, prompt), sample in itertools.product(zip("xy", prompts, strict=True), range(2))
    ]
    requests = [Request(job.prompt_ids, job.seed) for job in jobs]
    together = sample_batch(speller, letters, requests, temperature=1.0, top_p=1.0, max_new_tokens=4, end_ids=[0])
    rows = [job.completed(sample) for job, sample in zip(jobs, together, strict=True)]
    for row, job in zip(rows, jobs, strict=True):
        [alone] = sampled(speller, letters, [Request(job.prompt_ids, job.seed)], temperature=1.0, top_p=1.0, tokens=4)
        assert (row.prompt_id, row.sample, row.prompt, row.seed) == (job.prompt_id, job.sample, job.prompt, job.seed)
        assert (row.text, row.finish_reason, row.completion_tokens) == (alone.text, alone.finish_reason, alone.tokens)
        assert row.prompt_tokens == len(job.prompt_ids)
    assert len({row.seed for row in rows}) == 4


def test_a_request_has_a_seed_of_its_own_in_every_iteration(tokenizer: PreTrainedTokenizerFast) -> None:
    rows = [
        OfflinePair.of(name, user(text), assistant("a"), assistant("b"), source=name)
        for name, text in (("p", "a longer prompt than the other"), ("q", "short"))
    ]

    def requests(seed: int = 1, iteration: str = "iter1", max_length: int = 64) -> list[Job]:
        return jobs_of(rows, ChatEncoder(tokenizer, max_length), samples=3, seed=seed, iteration=iteration)[0]

    first, names = requests(), [("q", 0), ("q", 1), ("q", 2), ("p", 0), ("p", 1), ("p", 2)]
    assert [(job.prompt_id, job.sample) for job in first] == names
    assert len({job.seed for job in [*first, *requests(iteration="iter2"), *requests(seed=2)]}) == 18
    assert [job.seed for job in requests()] == [job.seed for job in first]
    assert [len(job.prompt_ids) for job in first] == sorted(len(job.prompt_ids) for job in first)
    kept, long_prompts = jobs_of(
        rows, ChatEncoder(tokenizer, len(first[0].prompt_ids) + 1, long_prompts="drop"), samples=3, seed=1, iteration="iter1"
    )
    assert ([job.prompt_id for job in kept], long_prompts) == (["q"] * 3, 1)
