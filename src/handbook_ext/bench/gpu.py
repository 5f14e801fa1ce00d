"""The measurements of `make bench-gpu`: one way on one shape, the matmul peak, agreement with fp32 on the CPU."""

from __future__ import annotations

import copy
import statistics
import tempfile
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import Trainer, TrainingArguments

from handbook_ext.bench.baselines import PAD_ID, trl_trainer
from handbook_ext.bench.gpu_ways import SHAPES, WAYS, Shape, Way, policy_of, useful_flops
from handbook_ext.bench.measuring import PeakMemory, spread
from handbook_ext.bench.quiet import quieten
from handbook_ext.objectives.batching import BatchPlan
from handbook_ext.objectives.objective import Objective
from handbook_ext.policies.packing import EncodedPair
from handbook_ext.training.scoring import score_batch
from handbook_ext.training.trainer import PreferenceTrainer

BETA = 0.1
SMALL = (2, 128)  # Pairs, and tokens of the longest sequence, that a CPU computes in fp32 for comparison.


def measure_way(shape_name: str, way_name: str, device: str, rounds: int, profile: Path | None) -> dict[str, Any]:
    """Returns the numbers of a way on a shape, by their names, or under `not measured` why there are none."""
    quieten()
    shape, way = SHAPES[shape_name], WAYS[way_name]
    try:
        found: dict[str, Any] = {"agreement": agreement(shape, way, device)} if way.ours else {}
        with tempfile.TemporaryDirectory() as folder:
            return found | measure(shape, way, device, rounds=rounds, folder=Path(folder), profile=profile)
    except (torch.OutOfMemoryError, NotImplementedError) as error:  # The other ways are still worth their numbers.
        return {"not measured": str(error).splitlines()[0]}


def matmul_peak(device: str) -> float:
    """Returns the FLOPs per second of a large bf16 matrix product, the best of ten."""
    size = 8192 if device == "cuda" else 256
    left, right = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    best = float("inf")
    for _ in range(10):
        _wait(device)
        start = time.perf_counter()
        left @ right
        _wait(device)
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best


def agreement(shape: Shape, way: Way, device: str) -> dict[str, float]:
    """Returns by how many nats per token, at most, log-probs of a few short pairs differ from fp32 on the CPU: fp32 and bf16."""
    few, longest = SMALL
    distribution = replace(shape.distribution, max_length=min(longest, shape.distribution.max_length))
    pairs = [replace(pair, explore=None) for pair in distribution.draw(few, seed=1)]
    tokens = torch.tensor([[len(pair.chosen), len(pair.rejected)] for pair in pairs])
    plain = policy_of(shape, Way(True)).float().eval()
    expected = torch.tensor(score_batch(plain, pairs, pad_id=PAD_ID, head_chunk=4096))
    del plain
    policy, found = policy_of(shape, way).eval().to(device), {}
    for name, context in (("fp32", nullcontext()), ("bf16", torch.autocast(device, torch.bfloat16))):
        if name == "fp32" and next(policy.parameters()).dtype != torch.float32:
            continue
        with context:
            values = torch.tensor(score_batch(policy, pairs, pad_id=PAD_ID, head_chunk=4096))
        found[name] = float(((values - expected).abs() / tokens).max())
    return found


def measure(shape: Shape, way: Way, device: str, *, rounds: int, folder: Path, profile: Path | None = None) -> dict[str, Any]:
    """Returns seconds, tokens and pairs per second, useful FLOPs per second and peak memory of forward and backward passes.

    Tokens are those of both sequences of each pair. The first two steps, in which kernels are compiled, are not counted.
    profile: a file for the profiler's table of one more step.
    """
    drawn = [replace(pair, explore=None) for pair in shape.distribution.draw(shape.pairs, seed=0)]
    # Before the policy comes, so that its own memory counts.
    _wait(device)
    if device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    start = time.perf_counter()
    trainer = (_ours if way.ours else _trls)(shape, way, device, drawn, folder)
    if way.settings.get("padding_free") and not trainer.padding_free:
        raise NotImplementedError("this version of TRL has padding_free switched off")
    prepared = time.perf_counter() - start
    loader = trainer.get_train_dataloader()
    for _ in range(2):
        loss = step(trainer, loader)
    seconds = []
    with PeakMemory() as memory:
        for _ in range(rounds):
            _wait(device)
            start = time.perf_counter()
            step(trainer, loader)
            _wait(device)
            seconds.append(time.perf_counter() - start)
    tokens = sum(2 * len(pair.prompt) + len(pair.chosen) + len(pair.rejected) for pair in drawn)
    if profile is not None:
        _profile(trainer, loader, device, profile)
    needed = useful_flops(shape, drawn, trainer.model)
    return {
        "loss": loss, "prepared_seconds": prepared, "seconds": seconds, "micro_batches": len(loader),
        "pairs_per_second": spread([len(drawn) / each for each in seconds]),
        "tokens_per_second": spread([tokens / each for each in seconds]),
        "useful_flops_per_second": needed / statistics.median(seconds),
        "peak_bytes": torch.cuda.max_memory_allocated() if device == "cuda" else memory.bytes,
    }  # fmt: skip


def step(trainer: Trainer, loader: Any) -> float:
    """Returns the loss of one step, gradients accumulated; the optimizer's own update is left out."""
    trainer.model.zero_grad(set_to_none=True)
    with trainer.accelerator.autocast():
        return sum(float(trainer.training_step(trainer.model, inputs)) for inputs in loader)


def _ours(shape: Shape, way: Way, device: str, pairs: Sequence[EncodedPair], folder: Path) -> Trainer:
    """Returns our trainer over pairs scored by the policy itself, in the plan's micro-batches."""
    tokens = shape.micro_batch_tokens if way.by_tokens else None
    plan = BatchPlan([len(pair) for pair in pairs], len(pairs), shape.micro_batch, seed=0, micro_batch_tokens=tokens)
    policy = policy_of(shape, way).to(device)
    args = TrainingArguments(**_arguments(device, folder, shape.micro_batch, plan.per_step))
    scored = list(pairs)
    with torch.autocast(device, torch.bfloat16):
        for batch in plan.epoch(0):
            values = score_batch(policy, [pairs[slot.index] for slot in batch], pad_id=PAD_ID, head_chunk=4096)
            for slot, (chosen, rejected) in zip(batch, values, strict=True):
                scored[slot.index] = replace(pairs[slot.index], reference=(chosen, rejected, 0.0))
    trainer = PreferenceTrainer(policy, args, scored, plan, Objective(beta=BETA), pad_id=PAD_ID)
    trainer.current_gradient_accumulation_steps = plan.per_step
    return trainer


def _trls(shape: Shape, way: Way, device: str, pairs: Sequence[EncodedPair], folder: Path) -> Trainer:
    """Returns TRL's trainer over the same pairs."""
    policy = policy_of(shape, way)
    # With adapters TRL's reference is the policy without them; precomputed, it is the policy before it trains.
    reference = copy.deepcopy(policy) if way.live and not shape.lora else None
    settings = {
        **_arguments(device, folder, shape.micro_batch, len(pairs) // shape.micro_batch), "beta": BETA,
        "max_length": shape.distribution.max_length, **way.settings,
    }  # fmt: skip
    return trl_trainer(policy, reference, pairs, shape.distribution, settings)


def _arguments(device: str, folder: Path, micro_batch: int, accumulation: int) -> dict[str, Any]:
    """Returns the training arguments that both trainers are given."""
    return {
        "output_dir": str(folder), "per_device_train_batch_size": micro_batch, "gradient_accumulation_steps": accumulation,
        "report_to": [], "use_cpu": device == "cpu", "bf16": True, "gradient_checkpointing": False,
    }  # fmt: skip


def _profile(trainer: Trainer, loader: Any, device: str, path: Path) -> None:
    """Writes the profiler's table of one step, the costliest kernels first."""
    kinds = torch.profiler.ProfilerActivity
    on_gpu = device == "cuda"
    with torch.profiler.profile(activities=[kinds.CPU, *([kinds.CUDA] if on_gpu else [])], record_shapes=True) as found:
        step(trainer, loader)
        _wait(device)
    order = "self_cuda_time_total" if on_gpu else "self_cpu_time_total"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(found.key_averages().table(sort_by=order, row_limit=40), encoding="utf-8")


def _wait(device: str) -> None:
    """Returns once the device has done all that it was given."""
    if device == "cuda":
        torch.cuda.synchronize()
