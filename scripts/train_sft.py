"""Demonstrations -> the SFT policy: `train_sft.py runs/<run>`; resumes from its last checkpoint."""

import handbook_ext.core.interrupt  # noqa: F401 - first, since torch takes seconds

import torch

from handbook_ext.core.errors import run_main, stage_folder
from handbook_ext.core.jsonl import read_rows
from handbook_ext.core.records import Demonstration
from handbook_ext.core.stage import Stage
from handbook_ext.graph.stages import SFTStage
from handbook_ext.planning.space import weights_in
from handbook_ext.policies.adapters import save_adapted
from handbook_ext.policies.chat import ChatEncoder
from handbook_ext.policies.launch import begin
from handbook_ext.policies.models import build_policy, template_hashes, train_tokenizer
from handbook_ext.policies.source import base_of, policy_of
from handbook_ext.training.checkpoints import MarkComplete, resume_point
from handbook_ext.training.sft_examples import examples_once, sft_examples
from handbook_ext.training.supervised import optimizer_arguments, sft_trainer
from handbook_ext.training.trainer import save_policy


def main(argv: list[str]) -> None:
    """Builds or loads the policy, fine-tunes it with TRL, publishes sft/policy."""
    stage = Stage.open(stage_folder(argv), SFTStage)
    launch = begin()
    sft, model, seed = stage.settings.sft, stage.settings.model, stage.settings.seed
    source = policy_of(stage, launch) if model.name_or_path is not None else None
    if source is None or source.artifact is None:  # A fetched one was saved with its template.
        stage.external |= launch.first_alone(lambda: template_hashes(model, stage.hash_of))
    if launch.finished(stage):
        return
    launch.train_in(sft.bf16)
    arguments = optimizer_arguments(sft, stage.workspace / launch.checkpoints, launch.processes, seed)
    rows = read_rows(stage.input("rows"), Demonstration)
    limits = {"max_length": sft.max_length, "long_prompts": stage.settings.long_prompts}
    limits["special_tokens"] = stage.settings.special_tokens
    if source is None:
        # Behind a role header each message begins a line, and its first word is another token than inside a sentence.
        texts = ("\n" + message["content"] for row in rows for message in [*row.prompt, *row.completion])
        tokenizer = train_tokenizer(texts, model)
        policy = build_policy(model, tokenizer, seed)
        encoder = ChatEncoder(tokenizer, **limits)
        model = model.model_copy(update={"lora": None})  # Adapters on random weights that stay as they are learn little.
    else:
        encoder, policy = source.encoder(limits), source.load(dtype=launch.training_dtype(model))
        tokenizer = encoder.tokenizer
    with launch.main_first():
        examples, counts = examples_once(stage.workspace, lambda: sft_examples(rows, encoder, sft))
    trainer = sft_trainer(policy, tokenizer, examples, sft, arguments=arguments, callbacks=[MarkComplete()], lora=model.lora)
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
        stage.publish(
            {"in": len(rows), "out": counts["rows"], "dropped": {"prompt too long": counts["dropped"]}},
            completions_cut=counts["cut"], answers_left_out=counts["answers_left_out"],
            weights=weights_in(stage.out.glob("*.safetensors")),
        )  # fmt: skip
    launch.wait()


if __name__ == "__main__":
    run_main(main)
