"""Figures of the stages that train or score: SFT, reward models, preference training, the score store. No torch."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

from handbook_ext.graph import stages as files
from handbook_ext.objectives.batching import fitting_micro_batch
from handbook_ext.planning import memory_model, stage_work, time_model
from handbook_ext.planning.amounts import mean
from handbook_ext.planning.calibration import at_width
from handbook_ext.planning.figures import Estimate, Setting
from handbook_ext.planning.memory_model import Rows, adapters_of
from handbook_ext.planning.stage_work import PairRows
from handbook_ext.recipes.iteration import Iteration
from handbook_ext.recipes.settings_run import HEAD_CHUNK
from handbook_ext.selection.rules import most_pairs


def sft(setting: Setting, settings: files.SFTStage, found: Estimate) -> None:
    """Fills in supervised fine-tuning: rows without padding, apart from what attention computes of it."""
    sft, amounts, shape = settings.sft, setting.amounts, setting.shape
    whole = tuple(min(each, sft.max_length) for each in amounts.conversations)
    micro = fitting_micro_batch(sft.global_batch_size, sft.per_device_train_batch_size, setting.sharding.processes)
    rows, tokens, length, longest = amounts.sft, mean(whole), stage_work.padded_mean(whole, micro), float(max(whole, default=1))
    if sft.packing:
        rows = math.ceil(amounts.sft * mean(amounts.conversations) / sft.max_length)
        tokens = length = longest = float(sft.max_length)
    elif sft.group_by_length:
        length = tokens
    answered = min(1.0, mean([each.chosen for each in amounts.pairs]) / max(1.0, mean(amounts.conversations)))
    share = answered if sft.loss_on == "completion" else 1.0  # Of the tokens, those that count in the loss.
    model = settings.model
    if model.name_or_path is None:
        model = model.model_copy(update={"lora": None})  # As the stage does: adapters on random weights learn little.
    found.memory = memory_model.training_memory(
        shape, model, setting.sharding, Rows(micro, longest, micro * longest), optim=sft.optim, bf16=sft.bf16,
        checkpointing=sft.gradient_checkpointing, head_chunk=HEAD_CHUNK, masked=False,
    )  # fmt: skip
    found.work = f"{amounts.sft:,} conversations" + (f", {rows:,} packed rows" if sft.packing else "")
    _train(setting, found, sft, rows, micro, model.lora, tokens=micro * tokens, length=length, predicted=micro * tokens * share,
           tokenised=amounts.sft)  # fmt: skip


def preference(setting: Setting, settings: files.TrainStage, found: Estimate) -> None:
    """Fills in preference training on prefix-shared rows."""
    train, each = settings.train, setting.iteration(settings)
    rows = _pair_rows(setting, each, settings.limits, explore=train.alpha > 0)
    micro = fitting_micro_batch(train.global_batch_size, train.per_device_train_batch_size, setting.sharding.processes)
    found.memory = memory_model.training_memory(
        setting.shape, settings.model, setting.sharding, rows.longest(micro), optim=train.optim, bf16=train.bf16,
        checkpointing=train.gradient_checkpointing, head_chunk=train.head_chunk,
    )  # fmt: skip
    found.work, found.examples = f"{rows.pairs:,} pairs", rows.pairs
    padded = rows.tokens if setting.sharding.on_cpu else rows.padded(micro, train.global_batch_size)
    _train(
        setting, found, train, rows.pairs, micro, settings.model.lora, tokens=micro * padded, length=padded,
        predicted=micro * rows.predicted, tokenised=rows.pairs,
    )  # fmt: skip


def fit_ranker(setting: Setting, settings: files.RankerStage, found: Estimate) -> None:
    """Fills in fitting a reward model: chosen and rejected of a pair are rows of their own."""
    fit = settings.fit
    rank = setting.run.settings.rank
    shape = setting.ranker_shape(rank.model_copy(update={"model": None}))
    share = (1 - fit.test_share) * (1.0 if settings.part == "all" else 0.5)
    pairs = round(setting.amounts.train * share)
    micro = fitting_micro_batch(fit.global_batch_size, fit.per_device_train_batch_size, setting.sharding.processes)
    most = fit.max_length or settings.max_length
    lengths = tuple(min(row.prompt + row.chosen, most) for row in setting.amounts.pairs)
    padded, longest = stage_work.padded_mean(lengths, 2 * micro), float(max(lengths, default=1))
    model = setting.run.settings.model.model_copy(update={"lora": None, "dtype": "float32"})
    found.memory = memory_model.training_memory(
        shape, model, setting.sharding, Rows(2 * micro, longest, 0), optim="adamw_torch", bf16=fit.bf16, checkpointing=False,
        head_chunk=1,
    )  # fmt: skip
    inner = replace(setting, shape=shape)
    plain = _Fitting(fit.global_batch_size, fit.num_train_epochs, fit.save_steps)
    _train(inner, found, plain, pairs, micro, None, tokens=2 * micro * padded, length=padded, predicted=0.0, tokenised=2 * pairs)
    held = round(setting.amounts.train * fit.test_share * (1.0 if settings.part == "all" else 0.5))
    flops = shape.body_flops(2 * held * padded, padded)
    found.seconds += flops / at_width(setting.machine.rates.scoring, shape.hidden)
    found.work = f"{pairs:,} pairs"


@dataclass(frozen=True)
class _Fitting:
    """What fitting a reward model says of its steps."""

    global_batch_size: int
    num_train_epochs: float
    save_steps: int
    gradient_checkpointing: bool = False


def _train(
    setting: Setting, found: Estimate, settings: Any, rows: int, micro: int, lora: Any, *, tokens: float, length: float,
    predicted: float, tokenised: int,
) -> None:  # fmt: skip
    """Fills in steps, tokens and seconds of a training whose micro-batches have so many tokens."""
    sharding, shape = setting.sharding, setting.shape
    share = settings.global_batch_size // sharding.processes
    found.micro_batch, found.accumulation = micro, share // micro
    found.steps = math.ceil(settings.num_train_epochs * math.ceil(rows / settings.global_batch_size))
    batches = settings.num_train_epochs * math.ceil(rows / micro) / sharding.processes
    trained = adapters_of(shape, lora)
    own = shape.weights if trained is None else trained
    saved = 12 * own + (2 * own if sharding.deepspeed else 0)
    work = time_model.Training(batches, found.steps, tokens, length, predicted, found.steps // settings.save_steps + 1)
    found.tokens = settings.num_train_epochs * rows * tokens / micro
    found.seconds = tokenised * time_model.PER_ROW + time_model.training_seconds(
        shape, sharding, setting.machine.rates, work, checkpointing=settings.gradient_checkpointing, trained=trained, saved=saved,
    )  # fmt: skip
    found.seconds += time_model.reading_seconds(setting.machine.rates, 4 * shape.weights)


def _pair_rows(setting: Setting, each: Iteration, limits: files.Limits, *, explore: bool) -> PairRows:
    """Returns the rows of an iteration's pairs."""
    part = stage_work.portion_rows(setting.amounts, files.Portion(
        index=each.index, of=setting.run.settings.data.portions, most=setting.run.settings.data.portion_rows,
    ))  # fmt: skip
    pairs = round(most_pairs(part, each.settings.select) * stage_work.kept_share(setting.amounts, limits))
    return stage_work.pair_rows(setting.amounts, each, limits, pairs, explore=explore)


def score_pairs(setting: Setting, settings: files.ScorePairsStage, found: Estimate) -> None:
    """Fills in scoring in training's own micro-batches."""
    each, sizes = setting.iteration(settings), settings.sizes
    rows = _pair_rows(setting, each, settings.limits, explore=settings.explore)
    micro = fitting_micro_batch(settings.global_batch_size, sizes.per_device_train_batch_size, setting.sharding.processes)
    padded = rows.tokens if setting.sharding.on_cpu else rows.padded(micro, settings.global_batch_size)
    _scored(setting, settings, found, rows, micro, rows.pairs * padded, rows.pairs * rows.predicted, padded)
    found.work, found.micro_batch = f"{rows.pairs:,} pairs", micro


def score_candidates(setting: Setting, settings: files.ScoreCandidatesStage, found: Estimate) -> None:
    """Fills in scoring before selection: what the starting policy has not scored, and samples under the policies before it."""
    each, sizes, amounts = setting.iteration(settings), settings.sizes, setting.amounts
    prompts = stage_work.portion_rows(amounts, settings.portion)
    micro = sizes.per_device_train_batch_size
    kept = [row for row in (row.under(settings.limits) for row in amounts.pairs) if row is not None]
    tokens = predicted = 0.0
    for policy, kinds in settings.texts.items():
        offline = "offline" in kinds and policy == settings.policy  # Earlier policies' are in the store.
        samples = each.settings.generate.num_completions if "samples" in kinds else 0
        answers = [(row.chosen + row.rejected) * offline + samples * row.chosen for row in kept]
        predicted += prompts * mean(answers)
        tokens += prompts * mean([row.prompt + answer for row, answer in zip(kept, answers, strict=True) if answer] or [0])
    longest = max((row.prompt + 4 * row.chosen + row.rejected for row in kept), default=1)
    rows = PairRows(prompts, tokens / max(1, prompts), predicted / max(1, prompts), ((float(longest), longest * 0.8),))
    _scored(setting, settings, found, rows, micro, tokens, predicted, rows.tokens)
    found.work, found.micro_batch = f"{prompts:,} prompts under {len(settings.texts)} policies", micro


def _scored(
    setting: Setting, settings: Any, found: Estimate, rows: PairRows, micro: int, tokens: float, predicted: float, length: float
) -> None:  # fmt: skip
    """Fills in memory, tokens and seconds of scoring."""
    sizes, shape, rates = settings.sizes, setting.shape, setting.machine.rates
    found.memory = memory_model.scoring_memory(
        shape, settings.model, setting.sharding, rows.longest(micro), bf16=sizes.bf16, head_chunk=sizes.head_chunk
    )
    found.tokens = tokens
    seconds = time_model.scoring_seconds(shape, rates, tokens, length, predicted)
    found.seconds = rows.pairs * time_model.PER_ROW + seconds / setting.sharding.processes
    found.seconds += time_model.reading_seconds(rates, 4 * shape.weights)
