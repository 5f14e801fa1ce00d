"""The steps that the benchmark times, on equal weights and pairs: ours, TRL's, SELM's official one, and scoring."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import MistralConfig, MistralForCausalLM, Trainer, TrainingArguments

from handbook_ext.bench.baselines import PAD_ID, official_selm_step, trl_trainer
from handbook_ext.bench.measuring import LengthDistribution, PairDistribution
from handbook_ext.objectives.batching import BatchPlan
from handbook_ext.objectives.objective import Objective
from handbook_ext.policies.forward import prefix_shared
from handbook_ext.policies.packing import EncodedPair
from handbook_ext.training.scoring import score_batch
from handbook_ext.training.trainer import PreferenceTrainer


@dataclass(frozen=True)
class Size:
    """Model, batch and objective of a benchmark; `pairs` is one optimizer step's global batch.

    beta is that of SELM's Zephyr runs; alpha is large, so that the gradient check would notice a wrong exploration term.
    """

    pairs: int = 32
    micro_batch: int = 8
    hidden: int = 320
    mlp: int = 768
    layers: int = 3
    heads: int = 2
    tied: bool = False
    head_chunk: int = 4096
    beta: float = 0.01
    alpha: float = 0.5
    distribution: PairDistribution = field(default_factory=PairDistribution)


QUICK = Size(
    pairs=8, micro_batch=4, hidden=64, mlp=128, layers=2, heads=1,
    distribution=PairDistribution(
        prompt=LengthDistribution(20, 0.85), completion=LengthDistribution(35, 0.8), max_length=192, vocabulary=256
    ),
)  # fmt: skip


OUR_WAYS = {"dpo_ours": ("dpo", False), "selm_ours": ("selm", False), "dpo_ours_bf16": ("dpo", True)}
TRL_WAYS: dict[str, dict[str, bool]] = {
    "dpo_trl": {}, "dpo_trl_precomputed": {"precompute_ref_log_probs": True}, "dpo_trl_bf16": {"bf16": True},
    "dpo_trl_precomputed_bf16": {"precompute_ref_log_probs": True, "bf16": True},
}  # fmt: skip
"""The settings in which TRL's trainer is timed; padding_free is not among them, since TRL 1.16 falls back to padding."""


class Steps:
    """The timed parts on shared weights and pairs: name -> function of the round that returns the loss (or 0)."""

    def __init__(self, size: Size, seed: int, folder: Path, only: Collection[str] = ()) -> None:
        """Builds reference, policy (the reference plus noise, as in mid-training), pairs, and the trainers, or `only` some."""
        self.size, self.seed = size, seed
        torch.manual_seed(seed)
        self.reference = build_model(size)
        policy = copy.deepcopy(self.reference)
        # Where the policy equals its reference, all log-ratios are 0 and so hide mistakes in the loss.
        with torch.no_grad():
            for weight in policy.parameters():
                weight.add_(torch.randn_like(weight) * 0.02 * weight.std(correction=0))
        self.trl_policy, self.padded_policy = copy.deepcopy(policy), copy.deepcopy(policy)
        self.scorer = prefix_shared(copy.deepcopy(self.reference))
        drawn = size.distribution.draw(size.pairs, seed)
        self.pairs = {"selm": drawn, "dpo": [replace(pair, explore=None) for pair in drawn]}
        self.plans = {kind: self._plan(pairs) for kind, pairs in self.pairs.items()}
        self.trainers: dict[str, Trainer] = {
            name: self._ours(kind, copy.deepcopy(policy), folder, bf16=bf16)
            for name, (kind, bf16) in OUR_WAYS.items()
            if not only or name in only
        }
        settings = {**common_arguments(size, folder), "beta": size.beta, "max_length": size.distribution.max_length}
        # Each of TRL's ways, live and with the reference's log-probs in the rows, in fp32 and under bf16 autocast.
        trl_reference = copy.deepcopy(self.reference)
        for name, more in TRL_WAYS.items():
            if not only or name in only:
                self.trainers[name] = trl_trainer(self.trl_policy, trl_reference, drawn, size.distribution, settings | more)
        # By the trainer's name; made once, since making a loader is no part of a step.
        self.loaders = {name: trainer.get_train_dataloader() for name, trainer in self.trainers.items()}
        self.parts: dict[str, Callable[[int], float]] = {name: partial(self._trainer_step, name) for name in self.trainers}
        if not only:
            self.parts |= {
                "dpo_scoring": lambda number: self._scoring("dpo"), "selm_scoring": lambda number: self._scoring("selm"),
                "dpo_trl_scoring": self._trl_scoring, "selm_official": self._official,
            }  # fmt: skip
        self.trained: dict[str, torch.nn.Module] = {
            **{name: trainer.model for name, trainer in self.trainers.items()}, "selm_official": self.padded_policy
        }  # fmt: skip

    def _plan(self, pairs: Sequence[EncodedPair]) -> BatchPlan:
        """Returns the plan of one optimizer step per epoch."""
        return BatchPlan([len(pair) for pair in pairs], self.size.pairs, self.size.micro_batch, self.seed)

    def _ours(self, kind: str, policy: MistralForCausalLM, folder: Path, *, bf16: bool = False) -> PreferenceTrainer:
        """Returns our trainer over pairs with the reference log-probs that scoring gives."""
        size = self.size
        stored = []
        for pair, values in zip(self.pairs[kind], self._scores(kind), strict=True):
            explored = values[pair.explore_index] if pair.explore is not None else 0.0
            stored.append(replace(pair, reference=(values[0], values[1], explored)))
        args = TrainingArguments(**common_arguments(size, folder) | {"bf16": bf16})
        objective = Objective(beta=size.beta, alpha=size.alpha if kind == "selm" else 0.0)
        trainer = PreferenceTrainer(
            prefix_shared(policy), args, stored, self.plans[kind], objective, pad_id=PAD_ID, head_chunk=size.head_chunk
        )
        trainer.current_gradient_accumulation_steps = args.gradient_accumulation_steps
        return trainer

    def _scores(self, kind: str) -> list[list[float]]:
        """Returns the reference's log-probs (nats) of every pair's completions, scored in the plan's micro-batches."""
        scores: dict[int, list[float]] = {}
        for batch in self.plans[kind].epoch(0):
            pairs = [self.pairs[kind][slot.index] for slot in batch]
            values = score_batch(self.scorer, pairs, pad_id=PAD_ID, head_chunk=self.size.head_chunk)
            scores |= zip((slot.index for slot in batch), values, strict=True)
        return [scores[index] for index in range(len(self.pairs[kind]))]

    def _scoring(self, kind: str) -> float:
        """Scores all pairs once; returns 0."""
        self._scores(kind)
        return 0.0

    def _trl_scoring(self, number: int) -> float:
        """Scores all pairs once as TRL's precomputation does, in the rows' order; returns 0."""
        trainer: Any = self.trainers["dpo_trl"]
        for start in range(0, self.size.pairs, self.size.micro_batch):
            rows = [trainer.train_dataset[index] for index in range(start, start + self.size.micro_batch)]
            trainer.compute_ref_log_probs(trainer.ref_model, trainer.data_collator(rows))
        return 0.0

    def _trainer_step(self, name: str, number: int) -> float:
        """Returns the loss of one step: its micro-batches collated in the order of epoch `number`, gradients accumulated."""
        trainer, loader = self.trainers[name], self.loaders[name]
        loader.set_epoch(number)
        trainer.model.zero_grad(set_to_none=True)
        # Trainer.train would have the accelerator wrap the model so; without bf16 it changes nothing.
        with trainer.accelerator.autocast():
            return sum(float(trainer.training_step(trainer.model, inputs)) for inputs in loader)

    def _official(self, number: int) -> float:
        """Returns the loss of SELM's official step, with the pairs in an order that the round's number determines."""
        pairs = random.Random(f"{self.seed} {number}").sample(self.pairs["selm"], self.size.pairs)
        return official_selm_step(
            self.padded_policy, self.reference, pairs, micro_batch_size=self.size.micro_batch, pad_id=PAD_ID,
            beta=self.size.beta, alpha=self.size.alpha,
        )  # fmt: skip


def build_model(size: Size) -> MistralForCausalLM:
    """Returns a Mistral model with random weights, in evaluation mode and fp32, with attention heads of 64 dimensions."""
    config = MistralConfig(
        vocab_size=size.distribution.vocabulary, hidden_size=size.hidden, intermediate_size=size.mlp, head_dim=64,
        num_hidden_layers=size.layers, num_attention_heads=size.heads, num_key_value_heads=1, sliding_window=None,
        max_position_embeddings=4 * size.distribution.max_length, pad_token_id=PAD_ID, eos_token_id=size.distribution.end_id,
        attn_implementation="sdpa", tie_word_embeddings=size.tied,
    )  # fmt: skip
    return MistralForCausalLM(config).eval()


def common_arguments(size: Size, folder: Path) -> dict[str, Any]:
    """Returns the training arguments that both trainers are given."""
    return {
        "output_dir": str(folder), "per_device_train_batch_size": size.micro_batch, "report_to": [], "use_cpu": True,
        "gradient_accumulation_steps": size.pairs // size.micro_batch, "bf16": False, "gradient_checkpointing": False,
    }  # fmt: skip
