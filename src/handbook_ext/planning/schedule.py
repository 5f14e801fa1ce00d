"""How often each training of a run steps, and at which learning rates, before it starts; a refusal where none could learn."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import TrainingArguments, get_scheduler

from handbook_ext.core.errors import UserError
from handbook_ext.core.records import OfflinePair
from handbook_ext.graph.stages import CheckStage
from handbook_ext.selection.rules import most_pairs
from handbook_ext.training.held_out import fitted_and_held_out
from handbook_ext.training.supervised import fit_arguments, optimizer_arguments

FEW = 5  # Optimizer steps of a positive rate, below which a policy hardly differs from the one it started from.
ENOUGH = 4  # Optimizer steps that a proposed batch makes: one of warm-up, and three that learn.


@dataclass(frozen=True)
class Schedule:
    """A training before it starts: `examples` at most, of how many `rows`, and the learning rate of each optimizer step."""

    name: str
    section: str
    rows: int
    examples: int
    global_batch_size: int
    warmup_steps: int
    rates: list[float]
    part_of: str = ""
    portions: int = 1

    @property
    def learning(self) -> int:
        """Returns how many steps have a positive rate."""
        return sum(rate > 0 for rate in self.rates)

    @property
    def line(self) -> str:
        """Returns the schedule in words."""
        what = "examples" if self.section == "sft" else "pairs"
        return (
            f"{self.name}: {self.rows:,} rows{self.part_of}, up to {self.examples:,} {what}, {_steps(len(self.rates))} of "
            f"{self.global_batch_size}, {self.warmup_steps:,} of warm-up, rate up to {max(self.rates, default=0):.3g}"
        )

    def rows_for(self, examples: int) -> int:
        """Returns how many rows of the data it takes for so many examples."""
        return self.portions * math.ceil(examples * max(1, self.rows) / max(1, self.examples))

    def record(self) -> dict[str, Any]:
        """Returns the schedule as check.json has it."""
        return {
            "training": self.name, "rows": self.rows, "examples": self.examples, "steps": len(self.rates),
            "global_batch_size": self.global_batch_size, "warmup_steps": self.warmup_steps, "learning_rates": self.rates,
        }  # fmt: skip


def schedules_of(settings: CheckStage, rows: list[OfflinePair], demonstrations: int) -> list[Schedule]:
    """Returns the schedule of each training of a run in their order: SFT, the reward models, each iteration.

    demonstrations: rows of SFT. Raises UserError where an iteration's portion of the rows is empty.
    """
    found = []
    if settings.sft is not None:
        arguments = optimizer_arguments(settings.sft, Path("unused"), 1, settings.seed)
        found.append(_schedule("sft", "sft", demonstrations, demonstrations, arguments))
    for name, part in settings.reward_models.items():
        arguments = fit_arguments(settings.fit, Path("unused"), 1, settings.seed)
        pairs, _ = fitted_and_held_out(rows, part, settings.fit.test_share, seed=settings.seed)
        found.append(_schedule(name, "rank.fit", len(rows), len(pairs), arguments))
    for name, each in settings.iterations.items():
        part, of = len(each.portion.rows_of(rows)), each.portion.of
        arguments = optimizer_arguments(each.train, Path("unused"), 1, settings.seed)
        whole = f" of {len(rows):,} in {of} portions" if of > 1 else ""
        found.append(_schedule(name, "train", part, most_pairs(part, each.select), arguments, whole, of))
    return found


def learning_rates(arguments: TrainingArguments, steps: int) -> tuple[int, list[float]]:
    """Returns the steps of warm-up, and the learning rate of each optimizer step as transformers computes it."""
    warmup = arguments.get_warmup_steps(steps)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=arguments.learning_rate)
    scheduler = get_scheduler(
        arguments.lr_scheduler_type, optimizer, num_warmup_steps=warmup, num_training_steps=steps,
        scheduler_specific_kwargs=arguments.lr_scheduler_kwargs or {},
    )  # fmt: skip
    rates = []
    for _ in range(steps):
        rates.append(float(scheduler.get_last_lr()[0]))
        optimizer.step()
        scheduler.step()
    return warmup, rates


def fitting_batch(examples: int) -> int | None:
    """Returns the largest power of two that makes ENOUGH optimizer steps of so many examples; None where 1 makes too few."""
    fitting = [1 << power for power in range(examples.bit_length()) if math.ceil(examples / (1 << power)) >= ENOUGH]
    return max(fitting, default=None)


def refuse_idle(schedules: Sequence[Schedule]) -> None:
    """Raises UserError, a message for each section, for trainings that could not learn what their recipe says.

    That is a batch of preference training that no iteration can fill once, and a rate that is 0 in every step: the policy would
    be trained on another batch than the recipe states, or stay as it is.
    """
    unfilled = [each for each in schedules if each.section == "train" and each.examples < each.global_batch_size]
    idle = [each for each in schedules if not each.learning and each not in unfilled]
    messages = [_idle([each for each in idle if each.section == name]) for name in dict.fromkeys(each.section for each in idle)]
    if unfilled:
        messages.append(_unfilled(unfilled))
    if messages:
        raise UserError(*messages)


def _unfilled(unfilled: Sequence[Schedule]) -> str:
    """Returns why the batch is too large for iterations, by the numbers of the smallest, and the numbers to set."""
    least = min(unfilled, key=lambda each: each.examples)
    batch = fitting_batch(least.examples)
    pairs = f"{least.examples:,} pair{'s' * (least.examples != 1)}"
    words = (
        f"{', '.join(each.name for each in unfilled)}: {least.rows:,} rows{least.part_of} make {pairs} at most, and one "
        f"optimizer step takes {least.global_batch_size} (train.global_batch_size); "
    )
    if batch is None:
        words += f"even batches of one pair would make fewer than {ENOUGH} steps: give {least.rows_for(ENOUGH):,} rows at least"
        return words + (", or fewer data.portions (and iterations)" if least.portions > 1 else "")
    words += (
        f"set train.global_batch_size and train.per_device_train_batch_size to {batch} "
        f"({_steps(math.ceil(least.examples / batch))})"
    )
    return (
        words
        + (", lower data.portions" if least.portions > 1 else "")
        + f", or give {least.rows_for(least.global_batch_size):,} rows"
    )


def _idle(idle: Sequence[Schedule]) -> str:
    """Returns why trainings of one section learn nothing, by the numbers of the first, and what would help."""
    first, names = idle[0], ", ".join(each.name for each in idle)
    batch = fitting_batch(first.examples) or 1
    smaller = f"a smaller {first.section}.global_batch_size, such as {batch} (and per_device_train_batch_size with it)"
    fewer = ", fewer data.portions" if first.part_of else ""
    more = " or more rows" if first.section == "rank.fit" else f", more rows, or no warm-up ({first.section}.warmup_ratio: 0)"
    return (
        f"{names}: nothing would be learned, since the learning rate is 0 in {_all(len(first.rates))}: {first.rows} "
        f"rows{first.part_of} make {first.examples} examples at most in batches of {first.section}.global_batch_size "
        f"{first.global_batch_size}, and warm-up takes {_steps(first.warmup_steps)}; give {smaller}{fewer}{more}"
    )


def notes_of(schedules: Sequence[Schedule]) -> list[str]:
    """Returns a line for the trainings whose rate is positive in few steps; none where all have enough."""
    few = [each for each in schedules if 0 < each.learning < FEW]
    if not few:
        return []
    told = ", ".join(f"{each.name} {each.learning}" for each in few)
    return [f"few optimizer steps have a learning rate above 0: {told}; a smaller global_batch_size or more rows give more"]


def _schedule(
    name: str, section: str, rows: int, examples: int, arguments: dict[str, Any], part_of: str = "", portions: int = 1
) -> Schedule:  # fmt: skip
    """Returns a training's schedule; its arguments are those of one process, since a global batch is one for every launch."""
    # Neither trackers nor the precision change a rate, and both may be missing where this runs.
    parsed = TrainingArguments(**(arguments | {"report_to": "none", "bf16": False}))
    batch = parsed.per_device_train_batch_size * parsed.gradient_accumulation_steps
    steps = math.ceil(parsed.num_train_epochs * math.ceil(examples / batch))
    warmup, rates = learning_rates(parsed, steps)
    return Schedule(name, section, rows, examples, batch, warmup, rates, part_of, portions)


def _steps(count: int) -> str:
    """Returns a number of optimizer steps in words."""
    return f"{count:,} optimizer step{'s' * (count != 1)}"


def _all(count: int) -> str:
    """Returns words for every one of so many steps."""
    return "its only optimizer step" if count == 1 else f"all of its {_steps(count)}"
