"""Preference optimisation on prefix-shared rows, without a reference model in memory."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer, TrainerCallback, TrainingArguments

from handbook_ext.core.errors import UserError
from handbook_ext.objectives.batching import BatchPlan
from handbook_ext.objectives.losses import implicit_reward, preference_accuracy
from handbook_ext.objectives.objective import Objective
from handbook_ext.policies.forward import pack_for, pair_logprobs
from handbook_ext.policies.loading import refuse_diverged
from handbook_ext.policies.packing import EncodedPair, PackedRows
from handbook_ext.policies.saving import save_whole
from handbook_ext.training.checkpoints import MarkComplete
from handbook_ext.training.from_rows import Rows, prepare
from handbook_ext.training.plan_loader import Pairs, PlanLoader, PlanSampler
from handbook_ext.training.reference_check import ReferenceCheck


@dataclass(frozen=True)
class PairBatch:
    """A micro-batch: rows, the reference log-probs (3, B), and each pair's weight in the step's mean, (B,).

    most: the most completion tokens that a process has in this round.
    """

    rows: PackedRows
    reference: Tensor
    weights: Tensor
    most: int


class PreferenceTrainer(Trainer):
    """transformers.Trainer over a batch plan; the loss of a step is the mean over its pairs for every launch."""

    def __init__(
        self, model: PreTrainedModel, args: TrainingArguments, pairs: Sequence[EncodedPair], plan: BatchPlan,
        objective: Objective, *, pad_id: int, head_chunk: int = 4096, tolerance: float | None = None,
        callbacks: Sequence[TrainerCallback] = (), **kwargs: Any,
    ) -> None:  # fmt: skip
        """Takes encoded pairs with reference log-probs, and a `prefix_shared` model.

        tolerance: nats per token by which the first step's pairs may differ from their reference log-probs; None skips the
        check.
        """
        self.pairs, self.plan, self.objective = pairs, plan, objective
        self.pad_id, self.head_chunk, self.tolerance = pad_id, head_chunk, tolerance
        self._check: ReferenceCheck | None = None
        super().__init__(model=model, args=args, train_dataset=Pairs(pairs), callbacks=[MarkComplete(), *callbacks], **kwargs)
        self._packed_for = model  # As given: a wrapper of a launch may hide its configuration.
        # Else Trainer assumes a loss summed over tokens, and does not divide by the accumulation steps, as compute_loss expects.
        self.model_accepts_loss_kwargs = False
        self._reset_metrics()

    @classmethod
    def from_rows(
        cls, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: Rows, objective: Objective,
        args: TrainingArguments, *, max_length: int = 1024, max_prompt_length: int | None = None,
        reference_model: PreTrainedModel | None = None, head_chunk: int = 4096, callbacks: Sequence[TrainerCallback] = (),
    ) -> Self:  # fmt: skip
        """Returns a trainer over preference rows as TRL's DPOTrainer takes them; `prepare` says what rows may hold.

        model: any causal language model of transformers, or one wrapped by peft; it is trained in place, dropout off.
        reference_model: None is the model as given. Its log-probs are computed here, once, so training holds no second model.
        args: pairs per step are per_device_train_batch_size x gradient_accumulation_steps x processes. max_length: tokens of
        prompt and completion, of which completions lose their end; a longer prompt is an error, or with max_prompt_length
        loses its beginning. Raises UserError, in one line, for what cannot be trained on.
        """
        limits = {"max_length": max_length, "max_prompt_length": max_prompt_length}
        ready = prepare(model, tokenizer, rows, objective, args, limits=limits, reference=reference_model, head_chunk=head_chunk)
        return cls(
            model, args, ready.pairs, ready.plan, objective, pad_id=ready.pad_id, head_chunk=head_chunk, callbacks=callbacks,
            processing_class=tokenizer,
        )  # fmt: skip

    def get_train_dataloader(self) -> DataLoader:
        """Returns this process's share of the plan: every process gets equally many micro-batches of each step."""
        sampler = PlanSampler(self.plan, self.pairs, self.args.process_index, self.args.world_size)
        return PlanLoader(self.train_dataset, batch_sampler=sampler, collate_fn=self._collate)

    def num_examples(self, dataloader: DataLoader) -> int:
        """Returns the pairs of an epoch, over all processes."""
        return len(self.pairs)

    def floating_point_ops(self, inputs: Any) -> int:
        """Returns 0: transformers' estimate knows neither shared prefixes nor completion-only heads."""
        return 0

    def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None) -> Tensor:
        """Returns this micro-batch's share of the step's mean, scaled against what Trainer and DDP divide by."""
        batch: PairBatch = inputs["batch"]
        device = self.args.device
        rows, reference, weights = batch.rows.to(device), batch.reference.to(device), batch.weights.to(device)
        # (S,), one value per distinct completion -> chosen, rejected, explore, (B,) each.
        logprobs = pair_logprobs(model(rows=rows, head_chunk=self.head_chunk, most=batch.most), rows)
        explored = (rows.explore >= 0).to(weights.dtype)
        if self.tolerance is not None and self.state.global_step == 0:
            self._check_reference(logprobs, reference, rows, weights)
        tokens = (rows.completion_tokens[rows.chosen], rows.completion_tokens[rows.rejected])
        losses = self.objective.losses(logprobs, reference, tokens, explored)
        self._collect(logprobs, reference, rows, weights, explored)
        # The weights sum to 1 over all micro-batches of a step on all processes. Trainer divides a micro-batch's loss by the
        # accumulation steps, and DDP averages gradients over processes: the two factors undo both.
        return (losses * weights).sum() * self.args.gradient_accumulation_steps * self.args.world_size

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Logs a line, with the metrics collected since the last one."""
        if "loss" in logs:
            logs = {**logs, **self._gathered_metrics()}
        super().log(logs, start_time)

    def _collate(self, slots: list[tuple[EncodedPair, float, int]]) -> dict[str, PairBatch]:
        """Returns the batch of a micro-batch's slots."""
        pairs = [pair for pair, _, _ in slots]
        return {
            "batch": PairBatch(
                rows=pack_for(self._packed_for, pairs, pad_id=self.pad_id),
                reference=torch.tensor([pair.reference for pair in pairs]).T.contiguous(),  # (B, 3) -> (3, B)
                weights=torch.tensor([weight for _, weight, _ in slots]),
                most=slots[0][2],
            )
        }

    @torch.no_grad()
    def _check_reference(
        self, logprobs: tuple[Tensor, Tensor, Tensor], reference: Tensor, rows: PackedRows, weights: Tensor
    ) -> None:
        """Raises UserError, on every process, when the first step's pairs have not the log-probs that the store holds."""
        if self._check is None:
            half = self.args.bf16 or self.args.fp16 or next(self.model.parameters()).dtype in (torch.bfloat16, torch.float16)
            self._check = ReferenceCheck(float(self.tolerance or 0), half)
            self._rounds_to_check = self.args.gradient_accumulation_steps
        present = torch.stack([rows.chosen, rows.rejected, rows.explore])  # (3, B), NO_COMPLETION where there is none
        tokens = torch.where(present >= 0, rows.completion_tokens[present.clamp(min=0)], 0)
        real = weights > 0  # Fillers repeat a pair.
        differences = torch.where(present >= 0, (torch.stack(logprobs) - reference).abs(), 0.0)
        self._check.add(differences[:, real], tokens[:, real])
        self._rounds_to_check -= 1
        if self._rounds_to_check:
            return
        # Over all processes: one that raised alone would leave the others waiting for it.
        numbers = torch.tensor([*self._check.totals.tolist(), self._check.worst], dtype=torch.float64)
        every = self.accelerator.gather(numbers.to("cpu" if self.args.use_cpu else self.args.device)).view(-1, 6).cpu()
        fault = self._check.fault(every[:, :5].sum(0), float(every[:, 5].max()))
        if fault is not None:
            raise UserError(fault)

    @torch.no_grad()
    def _collect(
        self, logprobs: tuple[Tensor, Tensor, Tensor], reference: Tensor, rows: PackedRows, weights: Tensor, explored: Tensor
    ) -> None:
        """Adds a micro-batch to the metrics: weighted sums and their weights."""
        detached = (logprobs[0].detach(), logprobs[1].detach(), logprobs[2].detach())
        tokens = (rows.completion_tokens[rows.chosen], rows.completion_tokens[rows.rejected])
        ratios = [*self.objective.rewards(detached, reference, tokens), detached[2] - reference[2]]
        rewards = [implicit_reward(ratio, beta=self.objective.beta) for ratio in ratios]
        # Sums and weights, not means: log lines span micro-batches and processes that hold different numbers of pairs.
        present = weights * explored
        for name, values, weight in (
            ("rewards/chosen", rewards[0], weights), ("rewards/rejected", rewards[1], weights),
            ("rewards/explore", rewards[2], present), ("rewards/margins", rewards[0] - rewards[1], weights),
            ("rewards/accuracies", preference_accuracy(ratios[0], ratios[1]), weights),
            ("logps/chosen", logprobs[0], weights), ("logps/rejected", logprobs[1], weights),
            ("logps/explore", logprobs[2], present),
            *([("logps/chosen_fall", reference[0] - detached[0], weights)] if self.objective.reward_form.reference else []),
            ("explore_is_chosen", (rows.explore == rows.chosen).float(), present),
        ):  # fmt: skip
            self._sums[name] += float((values * weight).sum())
            self._weights[name] += float(weight.sum())
        self._tokens += int((rows.pair >= 0).sum())
        self._positions += rows.pair.numel()

    def _gathered_metrics(self) -> dict[str, float]:
        """Returns the metrics over all processes and starts anew."""
        names = sorted(self._sums)  # One order on every process, since the vector is added up by position.
        numbers = [*(self._sums[n] for n in names), *(self._weights[n] for n in names), self._tokens, self._positions]
        local = torch.tensor(numbers, dtype=torch.float64, device="cpu" if self.args.use_cpu else self.args.device)
        total = self.accelerator.reduce(local, reduction="sum").tolist()
        sums, weights = total[: len(names)], total[len(names) : 2 * len(names)]
        metrics = {name: s / w for name, s, w in zip(names, sums, weights, strict=True) if w > 0}
        metrics["tokens_per_second"] = round(total[-2] / max(time.perf_counter() - self._since, 1e-9), 1)
        metrics["padding_share"] = round(1 - total[-2] / max(total[-1], 1), 4)
        self._reset_metrics()
        return metrics

    def _reset_metrics(self) -> None:
        """Starts an empty collection."""
        self._sums: dict[str, float] = defaultdict(float)
        self._weights: dict[str, float] = defaultdict(float)
        self._tokens = self._positions = 0
        self._since = time.perf_counter()


def save_policy(trainer: Trainer, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Writes a Hugging Face checkpoint and the training log; the first process writes, all must call.

    Raises UserError where a weight is no finite number.
    """
    save_whole(trainer, folder)
    if trainer.is_world_process_zero():
        refuse_diverged(folder)
        (folder / "training_args.bin").unlink(missing_ok=True)  # A pickle; the manifest holds the settings.
        tokenizer.save_pretrained(folder)
        trainer.state.save_to_json(str(folder / "trainer_state.json"))
