"""Trains a small policy for some steps under whatever launches this script: `train_small.py OUT MICRO`.

Pairs differ in length by much, and the LM head has more weights than DeepSpeed keeps whole on each process, so that processes
which called it as often as their own pairs need would wait for each other for ever. Writes the log and the policy.
"""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM, TrainingArguments

from handbook_ext.objectives.batching import BatchPlan
from handbook_ext.objectives.objective import Objective
from handbook_ext.policies.forward import prefix_shared
from handbook_ext.policies.launch import begin
from handbook_ext.policies.packing import EncodedPair
from handbook_ext.policies.saving import save_whole
from handbook_ext.training.supervised import batch_arguments
from handbook_ext.training.trainer import PreferenceTrainer

GLOBAL_BATCH, CHUNK, VOCABULARY = 4, 8, 4000


def pairs_of(count: int) -> list[EncodedPair]:
    """Pairs whose completions have 2 to 40 tokens, the reference log-probs made up."""
    draw = random.Random(5)

    def ids(low: int, high: int) -> list[int]:
        return [draw.randrange(1, VOCABULARY) for _ in range(draw.randint(low, high))]

    return [
        EncodedPair(ids(3, 12), ids(2, 40), ids(2, 40), ids(2, 40), (draw.uniform(-40, -20), draw.uniform(-40, -20), -30.0))
        for _ in range(count)
    ]


def main(out: Path, micro: int) -> None:
    """Trains and writes."""
    launch = begin()
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        "llama", vocab_size=VOCABULARY, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, tie_word_embeddings=False, max_position_embeddings=256,
    )  # fmt: skip
    # Before the arguments, which would shard it while its weights are drawn.
    model = AutoModelForCausalLM.from_config(config)
    arguments = TrainingArguments(
        str(out / "checkpoints"), **batch_arguments(GLOBAL_BATCH, micro, launch.processes), max_steps=6, logging_steps=1,
        learning_rate=1e-2, optim="sgd", max_grad_norm=1e9, lr_scheduler_type="constant", save_strategy="no",
        report_to="none", use_cpu=True, dataloader_pin_memory=False, disable_tqdm=True, gradient_checkpointing=True,
    )  # fmt: skip
    pairs = pairs_of(16)
    plan = BatchPlan([len(pair) for pair in pairs], GLOBAL_BATCH, micro, seed=3)
    trainer = PreferenceTrainer(
        prefix_shared(model), arguments, pairs, plan, Objective(beta=0.3, alpha=0.2), pad_id=0, head_chunk=CHUNK
    )
    trainer.train()
    save_whole(trainer, out / "policy")
    if launch.main:
        losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
        (out / "log.json").write_text(json.dumps({"losses": losses, "processes": launch.processes, "sharded": launch.sharded}))
    launch.wait()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
