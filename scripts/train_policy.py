"""pairs.jsonl + logprobs/ -> policy/: `train_policy.py runs/<run>/iter<N>`; goes on from its last checkpoint when killed."""

import os
import shutil
import sys

import torch
from transformers import TrainingArguments

from handbook_ext.core.errors import UserError, run_main, stage_folder
from handbook_ext.core.records import PreferencePair, read_rows
from handbook_ext.core.stage import Stage
from handbook_ext.objectives.batching import BatchPlan
from handbook_ext.objectives.objective import Objective
from handbook_ext.policies.adapters import ADAPTER, adapted, save_adapted
from handbook_ext.policies.chat import ChatEncoder
from handbook_ext.policies.encoding import encode_pairs
from handbook_ext.policies.launch import begin
from handbook_ext.policies.models import external_checkpoint_hashes, load_tokenizer, policy_hash, policy_source
from handbook_ext.recipes.settings import ModelSettings, TrainSettings
from handbook_ext.recipes.writing import load_stage
from handbook_ext.reports.health import read_health, told
from handbook_ext.selection.log_prob_store import reference_sums
from handbook_ext.training.scoring import open_as_trained
from handbook_ext.training.supervised import optimizer_arguments
from handbook_ext.training.trainer import PreferenceTrainer, last_complete_checkpoint, save_policy


def main(argv: list[str]) -> None:
    """Trains one iteration; the reference log-probs come from the score store, so no reference model is loaded."""
    folder = stage_folder(argv)
    run = folder.parent
    launch = begin()
    settings = load_stage(folder / "train.yaml")
    model, train = ModelSettings(**settings["model"]), TrainSettings(**settings["train"])
    source, artifact = policy_source(model, run, settings["policy_from"])
    inputs = [
        folder / "pairs.jsonl",
        *([folder / "logprobs"] if train.needs_reference else []),
        *([artifact] if artifact else []),
    ]
    stage = Stage(folder / "policy", settings, inputs)
    if artifact is None:
        stage.external = external_checkpoint_hashes(source, model)
    if launch.finished(stage):
        return
    checkpoints = stage.workspace / "checkpoints"
    arguments = TrainingArguments(**optimizer_arguments(train, checkpoints, launch.processes, settings["seed"]))
    tokenizer = load_tokenizer(source, model, trained_here=artifact is not None)
    pairs = read_rows(folder / "pairs.jsonl", PreferencePair)
    encoded = encode_pairs(pairs, ChatEncoder(tokenizer, **settings["limits"]), explore=train.alpha > 0)
    if train.alpha > 0 and not encoded.notes["explored"]:
        raise UserError(f"{folder}/pairs.jsonl: no pair has an explored sample, but train.alpha is {train.alpha}; set it to 0")
    name = policy_hash(source, model)
    if train.needs_reference:
        encoded = encoded.with_reference(reference_sums(folder / "logprobs", name), name)
    plan = BatchPlan(encoded.lengths, train.global_batch_size, train.per_device_train_batch_size, settings["seed"])
    policy = open_as_trained(source, model, launch, trained_here=artifact is not None)
    trainer = PreferenceTrainer(
        policy if model.lora is None else adapted(policy, model.lora, settings["seed"], arguments),
        arguments, encoded.pairs, plan,
        Objective(
            train.loss_type, train.beta, train.alpha, train.alpha_scale, train.explore_form, train.label_smoothing,
            train.ipo_log_prob, train.gamma_beta_ratio,
        ),
        pad_id=tokenizer.pad_token_id, head_chunk=train.head_chunk,
        tolerance=tolerated(load_stage(folder / "score.yaml")["score"], train.bf16) if train.needs_reference else None,
    )  # fmt: skip
    trainer.train(resume_from_checkpoint=last_complete_checkpoint(checkpoints))
    if model.lora is None:
        policy.to(getattr(torch, model.dtype))
        save_policy(trainer, tokenizer, stage.out)
    else:
        base = source if artifact is None else os.path.relpath(artifact, stage.artifact / ADAPTER)
        save_adapted(trainer, tokenizer, stage.out, base)
    if launch.main:
        shutil.rmtree(checkpoints, ignore_errors=True)
        stage.publish(
            {"in": len(pairs), "out": len(encoded.pairs), "dropped": dict(encoded.dropped)},
            policy=policy_hash(str(stage.out), model), start=name, notes=dict(encoded.notes),
            steps=trainer.state.global_step, processes=launch.processes,
        )  # fmt: skip
        sys.stderr.write(f"health of {folder}: {told(read_health(folder))}\n")
    launch.wait()


def tolerated(score: dict[str, float | None], bf16: bool) -> float:
    """Returns the nats per token by which the first batch may differ from the store; bf16 rounds by batch shape."""
    stated = score["tolerance"]
    return stated if stated is not None else 2e-2 if bf16 else 1e-3


if __name__ == "__main__":
    run_main(main)
