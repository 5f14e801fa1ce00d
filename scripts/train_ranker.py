"""Offline pairs -> a reward model, for recipes whose ranker names none: `train_ranker.py runs/<run>`."""

import shutil
import sys

from handbook_ext.core.errors import run_main, stage_folder
from handbook_ext.core.jsonl import read_rows
from handbook_ext.core.records import OfflinePair
from handbook_ext.core.stage import Stage
from handbook_ext.graph.stages import RankerStage
from handbook_ext.policies.launch import begin
from handbook_ext.policies.source import policy_of
from handbook_ext.training.supervised import fit_arguments, reward_trainer
from handbook_ext.training.trainer import MarkComplete, last_complete_checkpoint, save_policy

BARELY = 0.55  # of the training pairs right: hardly more than a coin


def main(argv: list[str]) -> None:
    """Fits a Bradley-Terry classifier on the body of the policy that starts the loop, publishes ranker/model."""
    launch = begin()
    stage = Stage.open(stage_folder(argv), RankerStage)
    fit, seed = stage.settings.fit, stage.settings.seed
    source = policy_of(stage)
    if launch.finished(stage):
        return
    checkpoints = stage.workspace / launch.checkpoints
    tokenizer = source.load_tokenizer()
    pairs = read_rows(stage.input("rows"), OfflinePair)
    trainer = reward_trainer(
        source.location, tokenizer, pairs, settings=source.model, trained_here=source.trained_here, seed=seed,
        max_length=stage.settings.max_length, arguments=fit_arguments(fit, checkpoints, launch.processes, seed),
        callbacks=[MarkComplete()],
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
