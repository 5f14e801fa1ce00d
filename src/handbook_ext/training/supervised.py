"""Supervised fine-tuning with TRL's trainer, and the arguments that every training of this project shares."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback
from trl import SFTConfig, SFTTrainer

from handbook_ext.core.errors import UserError
from handbook_ext.objectives.batching import accumulation_steps, fitting_micro_batch
from handbook_ext.policies.adapters import adapted
from handbook_ext.policies.forward import prefix_shared
from handbook_ext.policies.unread import leave_out_unread
from handbook_ext.recipes.settings import FitSettings, LoraSettings, OptimizerSettings, SFTSettings
from handbook_ext.training.padding_free import PaddingFreeTrainer, can_string_together
from handbook_ext.training.shown_steps import ShowSteps


def optimizer_arguments(settings: OptimizerSettings, folder: Path, processes: int, seed: int) -> dict[str, Any]:
    """Returns the keyword arguments that every TrainingArguments of this project shares.

    Raises UserError where processes and micro-batch do not divide the global batch.
    """
    return {
        "output_dir": str(folder), "num_train_epochs": settings.num_train_epochs,
        "learning_rate": settings.learning_rate * settings.learning_rate_factor,
        **batch_arguments(settings.global_batch_size, settings.per_device_train_batch_size, processes),
        # transformers 5 takes a share of all steps as `warmup_steps` below 1.
        "lr_scheduler_type": settings.lr_scheduler_type, "warmup_steps": settings.warmup_ratio, "optim": settings.optim,
        "weight_decay": settings.weight_decay, "adam_beta1": settings.adam_beta1, "adam_beta2": settings.adam_beta2,
        "adam_epsilon": settings.adam_epsilon, "max_grad_norm": settings.max_grad_norm, "bf16": settings.bf16,
        "gradient_checkpointing": settings.gradient_checkpointing, "logging_steps": settings.logging_steps,
        "save_steps": settings.save_steps, "save_strategy": "steps", "save_total_limit": 2,
        # ShowSteps has a bar for the console; what is logged goes, printed, to the log of the stage.
        "report_to": settings.report_to or "none", "disable_tqdm": True, "seed": seed, "data_seed": seed,
        # Every weight takes part in each loss, so DDP need not look for those that do not.
        "ddp_find_unused_parameters": False,
        "use_cpu": not torch.cuda.is_available(), "dataloader_pin_memory": torch.cuda.is_available(),
    }  # fmt: skip


def fit_arguments(fit: FitSettings, folder: Path, processes: int, seed: int) -> dict[str, Any]:
    """Returns the keyword arguments of TrainingArguments for the reward model's training."""
    # max_length is required there but not among the arguments: `reward_trainer` is given its own.
    settings = OptimizerSettings(
        learning_rate=fit.learning_rate, num_train_epochs=fit.num_train_epochs, global_batch_size=fit.global_batch_size,
        per_device_train_batch_size=fit.per_device_train_batch_size, max_length=8, save_steps=fit.save_steps,
        bf16=fit.bf16,
    )  # fmt: skip
    # An encoder may have a pooler that a classifier does not use.
    return optimizer_arguments(settings, folder, processes, seed) | {"ddp_find_unused_parameters": None}


def batch_arguments(global_batch_size: int, per_device: int, processes: int) -> dict[str, int]:
    """Returns micro-batch and accumulation steps; raises UserError where they cannot make up the global batch exactly."""
    try:
        micro_batch = fitting_micro_batch(global_batch_size, per_device, processes)
    except ValueError as error:
        raise UserError(str(error)) from None
    # The batch of a recipe is global: another number of processes changes accumulation, never the gradient of a step.
    steps = accumulation_steps(global_batch_size, micro_batch, processes)
    return {"per_device_train_batch_size": micro_batch, "gradient_accumulation_steps": steps}


def sft_trainer(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, examples: Dataset, settings: SFTSettings, *,
    arguments: dict[str, Any], callbacks: list[TrainerCallback], lora: LoraSettings | None = None,
) -> SFTTrainer:  # fmt: skip
    """Returns TRL's SFTTrainer over token ids and labels; with `lora` only new adapters are trained.

    Where the model can, its rows have no padding: `PaddingFreeTrainer`, for which the model is made to share prefixes.
    """
    config = SFTConfig(
        **arguments, max_length=settings.max_length, packing=settings.packing, packing_strategy=settings.packing_strategy,
        # TRL prepares rows to pack them alone, and leaves the labels that they bring.
        dataset_kwargs={"skip_prepare_dataset": not settings.packing}, loss_type="nll", completion_only_loss=True,
        train_sampling_strategy="group_by_length" if settings.group_by_length else "random",
    )  # fmt: skip
    kind = SFTTrainer
    if can_string_together(model, settings.max_length):
        kind = PaddingFreeTrainer
        leave_out_unread(prefix_shared(model))
    return kind(
        model=model if lora is None else adapted(model, lora, config.seed, config), args=config,
        train_dataset=examples, processing_class=tokenizer, callbacks=[*callbacks, ShowSteps()],
    )  # fmt: skip
