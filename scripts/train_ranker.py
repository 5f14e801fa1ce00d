"""Offline pairs -> a reward model, for recipes whose ranker names none: `train_ranker.py runs/<run>`, or runs/<run>/judge.

The second is the judge of evaluation that labels no pair, fitted to the other half of the pairs (`evaluate.judge: apart`).
"""

import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from handbook_ext.core.errors import run_main, stage_folder
from handbook_ext.core.jsonl import read_rows
from handbook_ext.core.records import OfflinePair
from handbook_ext.core.stage import Stage
from handbook_ext.graph.stages import JudgeStage, RankerStage
from handbook_ext.judging.rankers import RewardModel
from handbook_ext.policies.fetching import fetched
from handbook_ext.policies.launch import begin
from handbook_ext.policies.source import PolicySource, policy_of
from handbook_ext.training.encoders import body_trainer, open_body
from handbook_ext.training.held_out import agreement, agreement_line, split_by_prompt
from handbook_ext.training.supervised import fit_arguments, reward_trainer
from handbook_ext.training.trainer import MarkComplete, last_complete_checkpoint, save_policy

BARELY = 0.55  # of the training pairs right: hardly more than a coin
JUDGED = 32  # texts judged together


def main(argv: list[str]) -> None:
    """Fits a Bradley-Terry classifier on the body of the first policy, or of `rank.fit.model`; publishes model/."""
    launch = begin()
    folder = stage_folder(argv)
    stage = Stage.open(folder, JudgeStage if (folder / JudgeStage.file).is_file() else RankerStage)
    fit, seed = stage.settings.fit, stage.settings.seed
    source = policy_of(stage) if fit.model is None else None
    if fit.model is not None and Path(fit.model).is_dir():
        stage.external["rank.fit.model"] = stage.hash_of(Path(fit.model))
    if launch.finished(stage):
        return
    checkpoints = stage.workspace / launch.checkpoints
    rows = read_rows(stage.input("rows"), OfflinePair)
    pairs, dropped = part_of(rows, stage.settings.part, seed)
    pairs, held_out = split_by_prompt(pairs, fit.test_share, seed=seed, purpose="held out of the ranker")
    trainer, tokenizer, origin = open_trainer(stage, source, pairs, fit_arguments(fit, checkpoints, launch.processes, seed))
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
        facts = {"held_out": measured(stage, held_out, launch.device)} if held_out else {}
        dropped |= {"held out": len(held_out)} if held_out else {}
        stage.publish(
            {"in": len(rows), "out": kept, "dropped": {"longer than rank.max_length": len(pairs) - kept, **dropped}},
            training_accuracy=last[-1]["accuracy"] if last else None, **origin, **facts,
        )  # fmt: skip
    launch.wait()


def part_of(rows: list[OfflinePair], part: str, seed: int) -> tuple[list[OfflinePair], dict[str, int]]:
    """Returns the pairs that a reward model is fitted to, and how many are the other one's."""
    if part == "all":
        return rows, {}
    labels, judge = split_by_prompt(rows, 0.5, seed=seed, purpose="judge")
    ours, theirs = (labels, judge) if part == "labels" else (judge, labels)
    return ours, {"the judge's half" if part == "labels" else "the labelling ranker's half": len(theirs)}


def open_trainer(
    stage: Stage[RankerStage], source: PolicySource | None, pairs: list[OfflinePair], arguments: dict[str, Any]
) -> tuple[Any, Any, dict[str, str]]:
    """Returns the trainer, the tokenizer, and for the manifest where a body is from that is not the policy's."""
    fit, max_length = stage.settings.fit, stage.settings.fit.max_length or stage.settings.max_length
    common: dict[str, Any] = {"max_length": max_length, "arguments": arguments, "callbacks": [MarkComplete()]}
    if source is not None:
        tokenizer = source.load_tokenizer()
        trainer = reward_trainer(
            source.location, tokenizer, pairs, settings=source.model, trained_here=source.trained_here, seed=stage.settings.seed,
            **common,
        )  # fmt: skip
        return trainer, tokenizer, {}
    with tempfile.TemporaryDirectory() as folder:
        found = fetched(str(fit.model), None, fit.package, Path(folder))
        longest = max(max_length, stage.settings.max_length)
        model, tokenizer = open_body(str(found.path), max_length=longest, seed=stage.settings.seed)
    return body_trainer(model, tokenizer, pairs, **common), tokenizer, {"source": found.source}


def measured(stage: Stage[RankerStage], pairs: list[OfflinePair], device: torch.device) -> dict[str, Any]:
    """Returns how often the new reward model, and the longer answer, is right on held-out pairs; says it on stderr as well."""
    ranker = RewardModel(str(stage.out), device=device, batch_size=JUDGED, max_length=stage.settings.max_length)
    chosen, rejected = (
        ranker.score([(pair.prompt, getattr(pair, f"{side}_answer").text) for pair in pairs]) for side in ("chosen", "rejected")
    )
    found = agreement(pairs, [ours.score - theirs.score for ours, theirs in zip(chosen, rejected, strict=True)])
    sys.stderr.write(f"{stage.name}: {agreement_line(found)}\n")
    return found


if __name__ == "__main__":
    run_main(main)
