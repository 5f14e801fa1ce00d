"""Sampling with vLLM: one engine per GPU, or on a CPU in this process. The only module that imports vllm."""

from __future__ import annotations

import gc
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from pydantic import ValidationError

from handbook_ext.core.errors import UserError
from handbook_ext.core.records import Completion
from handbook_ext.policies.adapters import find_adapter
from handbook_ext.policies.chat import ChatEncoder
from handbook_ext.policies.launch import Launch
from handbook_ext.policies.source import PolicySource
from handbook_ext.sampling.generation import Job, sample_of

CPU_CACHE_GIB = "2"
ENVIRONMENT = {"VLLM_NO_USAGE_STATS": "1", "VLLM_LOGGING_LEVEL": "ERROR", "VLLM_LOGGING_STREAM": "ext://sys.stderr"}
# In this process, since a spawned engine takes 20 seconds to start; one thread, with which small models ran 7 times faster.
ON_CPU = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_KVCACHE_SPACE": CPU_CACHE_GIB, "OMP_NUM_THREADS": "1"}


class VllmEngine:
    """Samples with vLLM, which batches requests itself and computes the prompt of several samples once."""

    def __init__(
        self, source: PolicySource, encoder: ChatEncoder, *, batch_size: int, longest: int, launch: Launch,
        workspace: Path, tensor_parallel_size: int = 1, gpu_memory_utilization: float = 0.9,
    ) -> None:  # fmt: skip
        """Loads the policy; batch_size is in sequences, longest in tokens of prompt and completion.

        Raises UserError where vLLM cannot run the policy.
        """
        device, self.encoder = launch.device, encoder
        for name, value in (ENVIRONMENT | (ON_CPU if device.type == "cpu" else {})).items():
            os.environ.setdefault(name, value)
        self._set_num_threads = torch.set_num_threads  # On a CPU, vLLM puts a function in its place that does nothing.
        from vllm import LLM  # noqa: PLC0415 - only now, since it reads the environment when it is imported

        with launch.main_first():
            folder = plain_folder(source, workspace / "merged")
        options: dict[str, Any] = {"gpu_memory_utilization": gpu_memory_utilization, "tensor_parallel_size": tensor_parallel_size}
        if device.type == "cpu":
            # A prompt in chunks would need random numbers at an offset, which a CPU's generator does not have.
            options = {"enforce_eager": True, "enable_chunked_prefill": False, "max_num_batched_tokens": max(longest, 2048)}
        try:
            self._llm: Any = LLM(
                model=folder, revision=None if source.trained_here else source.model.revision,
                skip_tokenizer_init=True, trust_remote_code=source.model.trust_remote_code, dtype=source.model.dtype,
                max_num_seqs=batch_size, max_model_len=longest, enable_prefix_caching=True,
                generation_config="vllm",  # A checkpoint's own, such as a repetition penalty, would act too.
                disable_log_stats=True, **options,
            )  # fmt: skip
        except (ValueError, NotImplementedError, RuntimeError) as error:
            raise _cannot_run(error) from error

    def answer(self, jobs: Sequence[Job], *, temperature: float, top_p: float, max_new_tokens: int) -> list[Completion]:
        """Returns the completions of jobs, in their order; temperature 0 is greedy. Each request has the seed of its job."""
        from vllm import SamplingParams  # noqa: PLC0415

        ends = self.encoder.end_ids()
        sampling = [
            SamplingParams(
                temperature=temperature,
                top_p=top_p,
                max_tokens=max_new_tokens,
                seed=job.seed,
                stop_token_ids=ends,
                detokenize=False,
            )
            for job in jobs
        ]
        prompts = [{"prompt_token_ids": job.prompt_ids} for job in jobs]
        try:
            found = self._llm.generate(prompts, sampling, use_tqdm=False)
        except RuntimeError as error:
            # Kernels are asked for only now, and a CPU has none for some sizes of a head.
            if "unsupported" not in str(error).lower():
                raise
            raise _cannot_run(error) from error
        return [
            job.completed(sample_of(list(each.outputs[0].token_ids), self.encoder.tokenizer, ends))
            for job, each in zip(jobs, found, strict=True)
        ]

    def __enter__(self) -> Self:
        """Returns the engine."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Ends the engine's processes and gives its memory back, so that a ranker finds the device free."""
        core = getattr(self._llm.llm_engine, "engine_core", None)
        if core is not None:
            core.shutdown()
        del self._llm
        torch.set_num_threads = self._set_num_threads
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def _cannot_run(error: Exception) -> UserError:
    """Returns what the user is told where vLLM refuses a policy: what it says of the first setting, or last."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    said = error.errors()[0]["msg"] if isinstance(error, ValidationError) else (lines or [type(error).__name__])[-1]
    said = " ".join(said.removeprefix("Value error, ").split())
    return UserError(
        f"generate.engine: vllm cannot run this policy here ({said}); set generate.engine: transformers, or change what it names"
    )


def plain_folder(source: PolicySource, merged: Path) -> str:
    """Returns what vLLM loads: the checkpoint, or a copy with its adapter merged, so that all stages have the same weights.

    The copy is made once, in the folder `merged`.
    """
    if find_adapter(source.location, None if source.trained_here else source.model.revision) is None:
        return source.location
    if not merged.is_dir():
        partial = merged.with_name(f"{merged.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        source.load().save_pretrained(partial)
        partial.rename(merged)
    return str(merged)
