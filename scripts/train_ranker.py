"""Offline pairs -> a reward model, for recipes whose ranker names none: `train_ranker.py runs/<run>`, or runs/<run>/judge.

The second is the judge of evaluation that labels no pair, fitted to the other half of the pairs (`evaluate.judge: apart`).
"""

import shutil
from pathlib import Path
from typing import Any

import handbook_ext.core.interrupt  # noqa: F401 - first, since torch takes seconds

import torch

from handbook_ext.core.console import say, tell
from handbook_ext.core.errors import run_main, stage_folder
from handbook_ext.core.jsonl import read_rows
from handbook_ext.core.records import OfflinePair, derived_seed
from handbook_ext.core.stage import Stage
from handbook_ext.graph.stages import JudgeStage, RankerStage
from handbook_ext.judging.reward_model import RewardModel
from handbook_ext.policies.fetching import fetched
from handbook_ext.policies.launch import Launch, begin
from handbook_ext.policies.source import PolicySource, policy_of
from handbook_ext.training.checkpoints import MarkComplete, resume_point
from handbook_ext.training.held_out import agreement, agreement_line, fitted_and_held_out
from handbook_ext.training.reward_models import open_body, policy_body, reward_trainer
from handbook_ext.training.supervised import fit_arguments
from handbook_ext.training.trainer import save_policy

BARELY = 0.55  # of the training pairs right: hardly more than a coin
JUDGED = 32  # texts judged together


def main(argv: list[str]) -> None:
    """Fits a Bradley-Terry classifier on the body of the first policy, or of `rank.fit.model`; publishes model/."""
    folder = stage_folder(argv)
    stage = Stage.open(folder, JudgeStage if (folder / JudgeStage.file).is_file() else RankerStage)
    launch = begin()
    fit, seed = stage.settings.fit, stage.settings.seed
    source = policy_of(stage, launch) if fit.model is None else None
    if fit.model is not None and Path(fit.model).is_dir():
        stage.external["rank.fit.model"] = launch.first_alone(lambda: stage.hash_of(Path(fit.model)))
    if launch.finished(stage):
        return
    launch.train_in(fit.bf16)
    rows = read_rows(stage.input("rows"), OfflinePair)
    pairs, held_out = fitted_and_held_out(rows, stage.settings.part, fit.test_share, seed=seed)
    # A head and an order of their own: two reward models that differ in half of the pairs alone would err alike.
    own_seed = seed if stage.settings.part != "judge" else derived_seed(seed, "judge") % 2**31
    model, tokenizer, origin = open_model(stage, source, launch, own_seed)
    trainer = reward_trainer(
        model, tokenizer, pairs, max_length=fit.max_length or stage.settings.max_length, callbacks=[MarkComplete()],
        arguments=fit_arguments(fit, stage.workspace / launch.checkpoints, launch.processes, own_seed),
    )  # fmt: skip
    trainer.train(resume_from_checkpoint=resume_point(stage.workspace, launch))
    save_policy(trainer, tokenizer, stage.out)
    if launch.main:
        last = [row for row in trainer.state.log_history if "accuracy" in row]
        if last and last[-1]["accuracy"] < BARELY:
            say(
                f"note: the reward model gets {last[-1]['accuracy']:.2f} of its own training pairs right at the end; judge its "
                "rankings with care, or raise rank.fit"
            )
        facts = {"held_out": measured(stage, held_out, launch.device)} if held_out else {}
        dropped = {"the other reward model's half": len(rows) - len(pairs) - len(held_out), "held out": len(held_out)}
        stage.publish(
            {"in": len(rows), "out": len(pairs), "dropped": {reason: count for reason, count in dropped.items() if count}},
            training_accuracy=last[-1]["accuracy"] if last else None, **origin, **facts,
        )  # fmt: skip
    launch.wait()


def open_model(
    stage: Stage[RankerStage], source: PolicySource | None, launch: Launch, seed: int
) -> tuple[Any, Any, dict[str, str]]:
    """Returns the classifier, its tokenizer, and for the manifest where a body is from that is not the policy's."""
    settings = stage.settings
    if source is not None:
        return *policy_body(source, seed=seed), {}
    body = stage.workspace / "body"
    if launch.main:
        shutil.rmtree(body, ignore_errors=True)
        body.mkdir()
    # Fetched by one process, read by all.
    found = launch.told(fetched(str(settings.fit.model), None, settings.fit.package, body) if launch.main else None)
    longest = max(settings.fit.max_length or 0, settings.max_length)
    return *open_body(str(found.path), max_length=longest, seed=seed), {"source": found.source}


def measured(stage: Stage[RankerStage], pairs: list[OfflinePair], device: torch.device) -> dict[str, Any]:
    """Returns how often the new reward model, and the longer answer, is right on held-out pairs; says it on stderr as well."""
    ranker = RewardModel(str(stage.out), device=device, batch_size=JUDGED, max_length=stage.settings.max_length)
    chosen, rejected = (
        ranker.score([(pair.prompt, getattr(pair, f"{side}_answer").text) for pair in pairs]) for side in ("chosen", "rejected")
    )
    found = agreement(pairs, [ours.score - theirs.score for ours, theirs in zip(chosen, rejected, strict=True)])
    tell(f"{stage.name}: {agreement_line(found)}")
    return found


if __name__ == "__main__":
    run_main(main)
