"""Figures of the stages that sample or judge: generation, ranking, evaluation. No torch."""

from __future__ import annotations

import math
from typing import Any

from handbook_ext.graph import stages as files
from handbook_ext.planning import memory_model, stage_work, time_model
from handbook_ext.planning.amounts import mean
from handbook_ext.planning.calibration import at_width
from handbook_ext.planning.figures import Estimate, Setting, keep_highest
from handbook_ext.planning.memory_model import Memory, Rows
from handbook_ext.planning.shapes import Shape
from handbook_ext.planning.space import SAVED
from handbook_ext.recipes.parts import RANKERS
from handbook_ext.recipes.settings import RankSettings

IMPLICIT_ROWS = 8  # Prompts that `evaluation.implicit_reward` scores together.


def generate(setting: Setting, settings: files.GenerateStage, found: Estimate) -> None:
    """Fills in sampling from the policy."""
    generating = settings.generate
    prompts = stage_work.portion_rows(setting.amounts, settings.portion)
    found.work = f"{prompts:,} prompts x {generating.num_completions}"
    _sampled(
        setting, settings, found, generating, requests=prompts * generating.num_completions, batch=generating.batch_size,
        new=generating.max_new_tokens, temperatures=[generating.temperature], samples=generating.num_completions,
    )  # fmt: skip


def _sampled(
    setting: Setting, settings: Any, found: Estimate, engine: Any, *, requests: float, batch: int, new: int,
    temperatures: list[float], samples: int = 1,
) -> None:  # fmt: skip
    """Fills in sampling of some requests at each temperature, `samples` of a prompt, by the engine of the run."""
    shape, rates, processes = setting.shape, setting.machine.rates, setting.sharding.processes
    size = SAVED[settings.model.dtype]
    requests = max(1, requests)  # Of fewer rows than portions an iteration has none, which the check refuses, and a plan shows.
    rows = min(batch, math.ceil(requests))
    lengths = stage_work.sampled_lengths(setting.amounts, settings.limits, new, batch, math.ceil(requests / rows))
    found.tokens += len(temperatures) * requests * (lengths.prompt + lengths.new)
    if engine.engine == "vllm":
        split = engine.tensor_parallel_size
        own = requests * len(temperatures) * split / processes
        found.seconds += time_model.vllm_seconds(
            shape, rates, requests=own, at_once=batch, prompt=lengths.prompt, new=lengths.new, size=size, split=split
        )
        keep_highest(found, memory_model.vllm_memory(
            shape, size, split=split, longest=lengths.longest + new, device=setting.machine.device,
            share=engine.gpu_memory_utilization if setting.machine.on_gpu else 0.0,
        ))  # fmt: skip
        return
    usual, longest = (_fitting(rows, engine.tokens_per_batch, prompt + new) for prompt in (lengths.prompt, lengths.longest))
    batches = math.ceil(math.ceil(requests / usual) / processes)
    found.seconds += len(temperatures) * time_model.sampling_seconds(
        shape, rates, batches=batches, rows=usual, distinct=usual / min(usual, samples), prompt=lengths.padded,
        new=lengths.new, steps=lengths.most, size=size,
    )  # fmt: skip
    found.seconds += time_model.reading_seconds(rates, size * shape.weights)
    sampled = max(temperatures) > 0
    keep_highest(found, memory_model.sampling_memory(
        shape, size, rows=longest, distinct=_distinct(longest, samples), prompt=lengths.longest, new=new, sampled=sampled
    ))  # fmt: skip


def _distinct(rows: int, samples: int) -> int:
    """Returns the most prompts that a batch has; it may begin and end amid the samples of one."""
    return min(rows, math.ceil((rows - 1) / samples) + 1)


def _fitting(rows: int, tokens: int | None, positions: float) -> int:
    """Returns how many rows of so many positions a batch has."""
    return rows if tokens is None else max(1, min(rows, int(tokens / positions)))


def rank_samples(setting: Setting, settings: files.RankStage, found: Estimate) -> None:
    """Fills in judging the samples of an iteration."""
    each, rank = setting.iteration(settings), settings.rank
    prompts = stage_work.portion_rows(setting.amounts, files.Portion(
        index=each.index, of=setting.run.settings.data.portions, most=setting.run.settings.data.portion_rows,
    ))  # fmt: skip
    candidates = each.settings.generate.num_completions + (2 if rank.candidates == "all" else 0)
    found.work = f"{prompts:,} prompts x {candidates}"
    found.seconds = prompts * candidates * time_model.PER_ROW
    found.memory = Memory(_judge(setting, settings.model, rank)[1].device)
    _judged(setting, settings.model, rank, found, prompts * stage_work.comparisons(rank, candidates), setting.sharding.processes)


def _judge(setting: Setting, model: Any, rank: RankSettings) -> tuple[Shape | None, Memory]:
    """Returns the shape of a ranker that computes, and what it holds; none of one that is a rule or an endpoint."""
    if not RANKERS[rank.ranker].on_device:
        return None, Memory()
    _, longest = stage_work.judged_length(setting.amounts, rank)
    batch = Rows(rank.batch_size, longest, rank.batch_size)
    if rank.tokens_per_batch is not None:
        batch = Rows(1, max(longest, rank.tokens_per_batch), 1)
    elif rank.ranker == "pairrm" and not setting.machine.on_gpu:
        batch = Rows(1, max(longest, 2048), 1)
    if rank.ranker == "self":
        size = SAVED[model.dtype]
        return setting.shape, memory_model.sampling_memory(
            setting.shape, size, rows=rank.batch_size, distinct=rank.batch_size, prompt=longest, new=rank.max_new_tokens,
            sampled=False,
        )  # fmt: skip
    shape, size = setting.ranker_shape(rank), 2 if rank.bf16 else 4
    return shape, memory_model.judging_memory(shape, size, batch)


def _judged(setting: Setting, model: Any, rank: RankSettings, found: Estimate, readings: float, processes: int) -> None:
    """Adds tokens and seconds of so many readings by a ranker."""
    shape, _ = _judge(setting, model, rank)
    if shape is None:
        return
    length, _ = stage_work.judged_length(setting.amounts, rank)
    found.tokens += readings * length
    flops = shape.body_flops(readings * length, length)
    rates = setting.machine.rates
    found.seconds += flops / at_width(rates.scoring, shape.hidden) / processes
    if rank.ranker == "self":
        found.seconds += time_model.sampling_seconds(
            shape, rates, batches=readings / rank.batch_size / processes, rows=rank.batch_size,
            distinct=rank.batch_size, prompt=0.0, new=rank.max_new_tokens / 2, steps=rank.max_new_tokens / 2,
            size=SAVED[model.dtype],
        )  # fmt: skip
    found.seconds += time_model.reading_seconds(rates, 4 * shape.weights)


def evaluate(setting: Setting, settings: files.EvaluateStage, found: Estimate) -> None:
    """Fills in evaluation, shared among all processes; a ranker without a model of its own judges on the first one alone."""
    evaluate, rank, shape = settings.evaluate, settings.rank, setting.shape
    prompts = min(setting.amounts.test, evaluate.prompts or setting.amounts.test)
    found.work = f"{prompts:,} prompts x {len(evaluate.temperatures)}"
    found.seconds = prompts * 4 * time_model.PER_ROW
    _sampled(
        setting, settings, found, settings.engine, requests=prompts, batch=evaluate.batch_size, new=evaluate.max_new_tokens,
        temperatures=list(evaluate.temperatures),
    )  # fmt: skip
    _, judging = _judge(setting, settings.model, rank)
    implicit = settings.initial_policy is not None
    beside = 2 if rank.ranker == "pairrm" else 0  # PairRM reads an answer beside the two of the data.
    readings = len(evaluate.temperatures) * stage_work.comparisons(rank, 1 + beside)
    readings += 2 * stage_work.comparisons(rank, 1 + beside) if implicit else 0
    processes = setting.sharding.processes
    _judged(setting, settings.model, rank, found, prompts * readings, processes if RANKERS[rank.ranker].on_device else 1)
    held = dict(judging.device)
    if implicit:
        size = SAVED[settings.model.dtype]
        rows = [row.prompt + 2 * row.chosen + row.rejected for row in setting.amounts.pairs]
        answers = mean([2 * row.chosen + row.rejected for row in setting.amounts.pairs])
        found.tokens += 2 * prompts * mean(rows)
        found.seconds += 2 * time_model.scoring_seconds(
            shape, setting.machine.rates, prompts * mean(rows) / processes, mean(rows), prompts * answers / processes
        )
        numbers = memory_model.Numbers(size, size, size)
        most = float(min(max(rows, default=1), 3 * settings.limits.max_length))
        batch = Rows(IMPLICIT_ROWS, most, IMPLICIT_ROWS * most)
        held = {
            "weights": held.get("weights", 0.0) + size * shape.weights,  # One policy after the other.
            "activations": memory_model.activations(shape, numbers, batch, checkpointing=False, training=False)
            + memory_model.mask_bytes(numbers, batch),
            "logits": memory_model.logits_bytes(shape, numbers, min(batch.predicted, 4096), training=False),
        }
    keep_highest(found, Memory(held))
