"""What samples from a policy: one protocol for transformers and vLLM, so that generation and evaluation know neither."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

import torch

from handbook_ext.core.provenance import package_versions
from handbook_ext.core.records import Completion
from handbook_ext.policies.chat import ChatEncoder
from handbook_ext.policies.launch import Launch
from handbook_ext.policies.source import PolicySource
from handbook_ext.recipes.settings import EngineSettings
from handbook_ext.sampling.generation import Job, Request, request_batches, sample_batch

VLLM_BATCHES_PER_SHARD = 8  # vLLM fills its batches itself: it wants many requests at once, a stage that resumes wants few.


class Engine(Protocol):
    """Samples from one policy; a context, at whose end the policy leaves the device."""

    def answer(self, jobs: Sequence[Job], *, temperature: float, top_p: float, max_new_tokens: int) -> list[Completion]:
        """Returns the completions of jobs, in their order; temperature 0 is greedy."""
        ...

    def __enter__(self) -> Self:
        """Returns the engine."""
        ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Frees the device."""
        ...


class TransformersEngine:
    """Samples with transformers, one padded batch per call."""

    def __init__(self, source: PolicySource, encoder: ChatEncoder, *, device: torch.device) -> None:
        """Loads the policy onto a device."""
        self.policy, self.encoder = source.load(attn_implementation="sdpa").to(device), encoder

    def answer(self, jobs: Sequence[Job], *, temperature: float, top_p: float, max_new_tokens: int) -> list[Completion]:
        """Returns the completions of jobs, in their order; temperature 0 is greedy."""
        samples = sample_batch(
            self.policy, self.encoder.tokenizer, [Request(job.prompt_ids, job.seed) for job in jobs], temperature=temperature,
            top_p=top_p, max_new_tokens=max_new_tokens, end_ids=self.encoder.end_ids(),
        )  # fmt: skip
        return [job.completed(sample) for job, sample in zip(jobs, samples, strict=True)]

    def __enter__(self) -> Self:
        """Returns the engine."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Gives the memory of the policy back."""
        device = self.policy.device
        del self.policy
        if device.type == "cuda":
            torch.cuda.empty_cache()


def open_engine(
    settings: EngineSettings, source: PolicySource, encoder: ChatEncoder, *, batch_size: int, longest: int, launch: Launch,
    workspace: Path,
) -> Engine:  # fmt: skip
    """Returns the engine of a run, with the policy loaded.

    batch_size: sequences generated together; longest: tokens of the longest prompt and completion together; workspace: a folder
    for what an engine must read from disk.
    """
    if settings.engine == "transformers":
        return TransformersEngine(source, encoder, device=launch.device)
    from handbook_ext.sampling.vllm_engine import VllmEngine  # noqa: PLC0415 - takes ten seconds, and is an extra

    return VllmEngine(
        source, encoder, batch_size=batch_size, longest=longest, launch=launch, workspace=workspace,
        tensor_parallel_size=settings.tensor_parallel_size, gpu_memory_utilization=settings.gpu_memory_utilization,
    )  # fmt: skip


def shards_of(settings: EngineSettings, jobs: Sequence[Job], *, batch_size: int, max_new_tokens: int) -> list[list[Job]]:
    """Returns the requests in the parts that an engine is given at a time, the longest first; each is a shard once finished."""
    if settings.engine == "transformers":
        return request_batches(jobs, size=batch_size, max_new_tokens=max_new_tokens, tokens=settings.tokens_per_batch)
    return request_batches(jobs, size=VLLM_BATCHES_PER_SHARD * batch_size, max_new_tokens=max_new_tokens)


def engine_facts(engine: str) -> dict[str, str | None]:
    """Returns the engine and its version for a manifest; vLLM for a CPU is another distribution."""
    versions = package_versions()
    return {"name": engine, "version": next((versions[name] for name in (engine, f"{engine}-cpu") if name in versions), None)}
