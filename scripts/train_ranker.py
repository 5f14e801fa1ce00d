"""Offline pairs -> a reward model, for recipes whose ranker names none: `train_ranker.py runs/<run>`."""

import shutil
import sys

from handbook_ext.core.errors import run_main, stage_folder
from handbook_ext.core.records import OfflinePair, read_rows
from handbook_ext.core.stage import Stage
from handbook_ext.policies.launch import begin
from handbook_ext.policies.models import external_checkpoint_hashes, load_tokenizer, policy_source
from handbook_ext.recipes.settings import FitSettings, ModelSettings
from handbook_ext.recipes.writing import load_stage
from handbook_ext.training.supervised import fit_arguments, reward_trainer
from handbook_ext.training.trainer import MarkComplete, last_complete_checkpoint, save_policy

BARELY = 0.55  # of the training pairs right: hardly more than a coin


def main(argv: list[str]) -> None:
    """Fits a Bradley-Terry classifier on the body of the policy that starts the loop, publishes ranker/model."""
    run = stage_folder(argv)
    launch = begin()
    settings = load_stage(run / "ranker" / "ranker.yaml")
    model, fit = ModelSettings(**settings["model"]), FitSettings(**settings["rank"]["fit"])
    source, artifact = policy_source(model, run, settings["policy_from"])
    rows_file = run / "data" / "rows" / "train.jsonl"
    stage = Stage(run / "ranker" / "model", settings, [rows_file, *([artifact] if artifact else [])])
    if artifact is None:
        stage.external = external_checkpoint_hashes(source, model)
    if launch.finished(stage):
        return
    checkpoints = stage.workspace / "checkpoints"
    tokenizer = load_tokenizer(source, model, trained_here=artifact is not None)
    pairs = read_rows(rows_file, OfflinePair)
    trainer = reward_trainer(
        source, tokenizer, pairs, settings=model, trained_here=artifact is not None, seed=settings["seed"],
        max_length=settings["rank"]["max_length"],
        arguments=fit_arguments(fit, checkpoints, launch.processes, settings["seed"]), callbacks=[MarkComplete()],
    )  # fmt: skip
    kept = len(trainer.train_dataset)
    trainer.train(resume_from_checkpoint=last_complete_checkpoint(checkpoints))
    save_policy(trainer, tokenizer, stage.out)
    if launch.main:
        shutil.rmtree(checkpoints, ignore_errors=True)
        last = [row for row in trainer.state.log_history if "accuracy" in row]
        if last and last[-1]["accuracy"] < BARELY:
            sys.stderr.write(
                f"note: the reward model gets {last[-1]['accuracy']:.2f} of its own training pairs right at the end; judge its "
                "rankings with care, or raise rank.fit\n"
            )
        stage.publish(
            {"in": len(pairs), "out": kept, "dropped": {"longer than rank.max_length": len(pairs) - kept}},
            training_accuracy=last[-1]["accuracy"] if last else None,
        )
    launch.wait()


if __name__ == "__main__":
    run_main(main)
