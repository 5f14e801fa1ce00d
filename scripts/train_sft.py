"""Demonstrations -> the SFT policy: `train_sft.py runs/<run>`; goes on from its last checkpoint when killed."""

import shutil

import torch

from handbook_ext.core.errors import run_main, stage_folder
from handbook_ext.core.records import Demonstration, read_rows
from handbook_ext.core.stage import Stage
from handbook_ext.policies.adapters import save_adapted
from handbook_ext.policies.chat import ChatEncoder
from handbook_ext.policies.launch import begin
from handbook_ext.policies.models import (
    build_policy,
    external_checkpoint_hashes,
    load_policy,
    load_tokenizer,
    policy_hash,
    train_tokenizer,
)
from handbook_ext.recipes.settings import ModelSettings, SFTSettings
from handbook_ext.recipes.writing import load_stage
from handbook_ext.training.supervised import optimizer_arguments, sft_trainer
from handbook_ext.training.trainer import MarkComplete, last_complete_checkpoint, save_policy


def main(argv: list[str]) -> None:
    """Builds or loads the policy, fine-tunes it with TRL, publishes sft/policy."""
    run = stage_folder(argv)
    launch = begin()
    settings = load_stage(run / "sft" / "sft.yaml")
    sft, model = SFTSettings(**settings["sft"]), ModelSettings(**settings["model"])
    rows_file = run / "data" / "rows" / "sft.jsonl"
    stage = Stage(run / "sft" / "policy", settings, [rows_file])
    if model.name_or_path is not None:
        stage.external = external_checkpoint_hashes(model.name_or_path, model)
    if launch.finished(stage):
        return
    checkpoints = stage.workspace / "checkpoints"
    arguments = optimizer_arguments(sft, checkpoints, launch.processes, settings["seed"])
    rows = read_rows(rows_file, Demonstration)
    if model.name_or_path is None:
        # Behind a role header each message begins a line, and its first word is another token than inside a sentence.
        texts = ("\n" + message["content"] for row in rows for message in [*row.prompt, *row.completion])
        tokenizer = train_tokenizer(texts, model)
        policy = build_policy(model, tokenizer, settings["seed"])
        model = model.model_copy(update={"lora": None})  # Adapters on random weights that stay as they are learn little.
    else:
        tokenizer = load_tokenizer(model.name_or_path, model, trained_here=False)
        weights = model.model_copy(update={"dtype": launch.training_dtype(model)})
        policy = load_policy(model.name_or_path, weights, trained_here=False)
    encoder = ChatEncoder(tokenizer, sft.max_length, long_prompts=settings["long_prompts"])
    trainer, dropped = sft_trainer(
        policy, tokenizer, rows, sft, arguments=arguments, encoder=encoder, callbacks=[MarkComplete()], lora=model.lora
    )
    trainer.train(resume_from_checkpoint=last_complete_checkpoint(checkpoints))
    if model.lora is None:
        policy.to(getattr(torch, model.dtype))
        save_policy(trainer, tokenizer, stage.out)
    else:
        save_adapted(trainer, tokenizer, stage.out, model.name_or_path)
    if launch.main:
        shutil.rmtree(checkpoints, ignore_errors=True)
        stage.publish(
            {"in": len(rows), "out": len(rows) - dropped, "dropped": {"prompt too long": dropped}},
            policy=policy_hash(str(stage.out), model), completions_cut=encoder.cut_completions,
            weights=sum(parameter.numel() for parameter in policy.parameters()),
        )  # fmt: skip
    launch.wait()


if __name__ == "__main__":
    run_main(main)
