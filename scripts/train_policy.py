"""pairs.jsonl + logprobs/ -> policy/: `train_policy.py runs/<run>/iter<N>`; resumes from its last checkpoint when killed."""

import math

import handbook_ext.core.interrupt  # noqa: F401 - first, since torch takes seconds

import torch
from transformers import TrainingArguments

from handbook_ext.core.console import tell
from handbook_ext.core.errors import UserError, run_main, stage_folder
from handbook_ext.core.jsonl import read_rows
from handbook_ext.core.records import PreferencePair
from handbook_ext.core.stage import Stage
from handbook_ext.graph.stages import TrainStage
from handbook_ext.objectives.objective import Objective
from handbook_ext.policies.adapters import adapted, save_adapted
from handbook_ext.policies.encoding import encode_pairs
from handbook_ext.policies.launch import begin
from handbook_ext.policies.source import base_of, policy_of
from handbook_ext.reports.health import files_of, read_health, summary_line
from handbook_ext.selection.log_prob_store import reference_sums
from handbook_ext.training.checkpoints import resume_point
from handbook_ext.training.kept import KeepPolicies, steps_to_keep
from handbook_ext.training.plan_loader import plan_for
from handbook_ext.training.scoring import open_as_trained
from handbook_ext.training.shown_steps import ShowSteps
from handbook_ext.training.supervised import optimizer_arguments
from handbook_ext.training.trainer import PreferenceTrainer, save_policy


def main(argv: list[str]) -> None:
    """Trains one iteration; the reference log-probs come from the score store, so no reference model is loaded."""
    stage = Stage.open(stage_folder(argv), TrainStage)
    launch = begin()
    settings, model, train = stage.settings, stage.settings.model, stage.settings.train
    source = policy_of(stage, launch)
    if launch.finished(stage):
        return
    launch.train_in(train.bf16)
    arguments = TrainingArguments(
        **optimizer_arguments(train, stage.workspace / launch.checkpoints, launch.processes, settings.seed)
    )
    encoder = source.encoder(settings.limits.model_dump(), stage.run)
    tokenizer, pairs = encoder.tokenizer, read_rows(stage.input("pairs"), PreferencePair)
    rows_in = len(pairs)
    with launch.main_first():
        encoded = encode_pairs(pairs, encoder, explore=train.alpha > 0)
    del pairs  # Their texts take many times the memory of their tokens, which lie in a mapped file.
    if train.alpha > 0 and not encoded.notes["explored"]:
        raise UserError(f"{stage.input('pairs')}: no pair has an explored sample, but train.alpha is {train.alpha}; set it to 0")
    if train.needs_reference:
        encoded = encoded.with_reference(reference_sums(stage.input("log_probs"), source.sha256), source.sha256)
    plan = plan_for(
        encoded.lengths, train.global_batch_size, per_device=train.per_device_train_batch_size,
        tokens=train.micro_batch_tokens, epochs=train.epochs, seed=settings.seed, processes=launch.processes,
    )  # fmt: skip
    arguments.gradient_accumulation_steps = plan.per_step // launch.processes
    keep = steps_to_keep(train.kept, math.ceil(train.num_train_epochs * plan.steps))
    policy = open_as_trained(source, launch, torch_compile=train.torch_compile, liger=train.liger)
    trainer = PreferenceTrainer(
        policy if model.lora is None else adapted(policy, model.lora, settings.seed, arguments),
        arguments, encoded.pairs, plan, Objective.from_settings(train.model_dump()),
        pad_id=tokenizer.pad_token_id, head_chunk=train.head_chunk, tolerance=settings.tolerance,
    )  # fmt: skip
    trainer.add_callback(ShowSteps())
    trainer.add_callback(kept := KeepPolicies(trainer, tokenizer, keep))
    trainer.train(resume_from_checkpoint=resume_point(stage.workspace, launch))
    if model.lora is None:
        policy.to(getattr(torch, model.dtype))
        save_policy(trainer, tokenizer, stage.out)
    else:
        save_adapted(
            trainer, tokenizer, stage.out, base_of(source, stage.artifact),
            lambda: source.load(dtype=launch.training_dtype(model)),
        )  # fmt: skip
    if launch.main:
        kept.publish(stage.out)
        stage.publish(
            {"in": rows_in, "out": len(encoded.pairs), "dropped": dict(encoded.dropped)},
            start=source.sha256, notes=dict(encoded.notes), steps=trainer.state.global_step, processes=launch.processes,
            micro_batch=plan.micro_batch_size, micro_batches=plan.per_step,
            **({"kept": keep} if keep else {}),
        )  # fmt: skip
        folder = stage.artifact.parent
        tell(
            f"trained {folder}: {trainer.state.global_step} optimizer steps on {len(encoded.pairs)} pairs in batches of "
            f"{train.global_batch_size}"
        )
        tell(f"health of {folder}: {summary_line(read_health(files_of(folder)))}")
    launch.wait()


if __name__ == "__main__":
    run_main(main)
