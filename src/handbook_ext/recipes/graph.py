"""What determines each stage of a run: its part of the recipe, and what the iterations before it left."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from handbook_ext.core.artifacts import sha256_of
from handbook_ext.recipes.iteration import Iteration
from handbook_ext.recipes.run import Run
from handbook_ext.recipes.settings import Recipe
from handbook_ext.selection.ensemble import ensemble

Settings = dict[str, Any]

EVALUATION_FORMAT = 2  # Of eval.json; an older one is made again.


def stage_settings(run: Run) -> dict[str, Settings]:
    """Returns, for each settings file of a run by its path in the run's folder, what determines that stage."""
    base = run.settings.model_dump()
    same = {"recipe": run.recipe, "seed": run.settings.seed}
    needs = sorted({need for each in run.iterations for need in each.needs})
    stages: dict[str, Settings] = {"data/data.yaml": {"stage": "data", **same, "needs": needs, "data": base["data"]}}
    if run.settings.sft is not None:
        kept = {name: base["data"][name] for name in ("long_prompts", "empty_completions")}
        stages["sft/sft.yaml"] = {"stage": "sft", **same, "model": base["model"], **kept, "sft": base["sft"]}
    if run.trains_reward_model:
        fit = {name: base["rank"][name] for name in ("max_length", "fit")}
        body = {"policy_from": None if run.start == "start" else run.start, "model": base["model"]}
        stages["ranker/ranker.yaml"] = {"stage": "ranker", **same, **body, "rank": fit}
    start = {**same, "iteration": run.start, "policy_from": None if run.start == "start" else run.start}
    stages[f"{run.start}/evaluate.yaml"] = _evaluation(start, run.settings, run)
    for each in run.iterations:
        stages.update(_iteration_stages(run, each))
    stages["report.yaml"] = {
        "stage": "report", **same, "iterations": [run.start, *(each.name for each in run.iterations)],
        "report": base["report"],
    }  # fmt: skip
    for settings in stages.values():
        template = settings.get("model", {}).get("chat_template")
        if template is not None and Path(template).is_file():
            settings["template_sha256"] = sha256_of(Path(template))
    return stages


def _iteration_stages(run: Run, iteration: Iteration) -> dict[str, Settings]:
    """Returns the settings files of one iteration."""
    whole = iteration.settings.model_dump()
    same = {"recipe": run.recipe, "seed": run.settings.seed, "iteration": iteration.name}
    after = {**same, "policy_from": iteration.policy_from}
    model, portion, limits = whole["model"], _portion(run, iteration), _limits(iteration.settings)
    stages: dict[str, Settings] = {}
    if iteration.generates:
        stages["generate"] = {
            **after, "portion": portion, "model": model, "generate": whole["generate"], "limits": limits,
        }  # fmt: skip
    if iteration.ranks:
        self_judged = {"policy_from": iteration.policy_from} if whole["rank"]["ranker"] == "self" else {}
        rubric = whole["rank"]["rubric"]
        if rubric is not None and Path(rubric).is_file():
            self_judged["rubric_sha256"] = sha256_of(Path(rubric))
        stages["rank"] = {**same, **self_judged, "model": model, "rank": whole["rank"]}
    review = _review(run, iteration) if iteration.settings.select.rule == "sera" else {}
    stages["select"] = {**after, "reads": iteration.made_from, "portion": portion, "select": whole["select"], **review}
    if iteration.has_log_probs:
        stages["score"] = {**after, "model": model, "score": whole["score"], "limits": limits, **_plan(run, iteration)}
    stages["train"] = {**after, "model": model, "train": whole["train"], "limits": limits}
    if iteration.health_limited:
        reads = ["pairs.jsonl", "policy"]
        reads += ["completions.jsonl"] * iteration.generates + ["rankings.jsonl"] * iteration.ranks
        stages["health"] = {**same, "reads": [*reads, *["eval.json"] * (whole["health"]["max_kl"] is not None)]}
        stages["health"]["health"] = whole["health"]
    files = {f"{iteration.name}/{name}.yaml": {"stage": name, **values} for name, values in stages.items()}
    own = {**same, "policy_from": iteration.name}
    if iteration.settings.evaluate.implicit_reward:
        own["first"] = None if run.start == "start" else run.start
    return {**files, f"{iteration.name}/evaluate.yaml": _evaluation(own, iteration.settings, run)}


def _review(run: Run, iteration: Iteration) -> Settings:
    """Returns what selection by margins reads: the measure, the terms of the ensemble, and the stores of the run so far."""
    select, measure = iteration.settings.select, iteration.settings.train.reward_form
    policies = [run.start, *(each.name for each in run.iterations)]
    policies = policies[: policies.index(iteration.name)]
    by_margin = select.bootstrap > 0 or (select.keep > 0 and select.keep_by == "margin")
    terms = []
    if by_margin:
        terms = ensemble(policies, gamma=select.gamma, against=select.margin_reference, with_reference=measure.reference)
    earlier = [each.name for each in run.iterations if each.has_log_probs and each.name in policies]
    return {
        "measure": {"reference": measure.reference, "length_normalized": measure.length_normalized},
        "terms": [{"weight": t.weight, "policy": t.policy, "reference": t.reference} for t in terms],
        "stores": [*earlier, iteration.name] if iteration.scores_before_selection else [],
    }  # fmt: skip


def _plan(run: Run, iteration: Iteration) -> Settings:
    """Returns what is scored: training's own batches, or before a review the texts that each policy must score."""
    train = iteration.settings.train
    sizes = {"per_device_train_batch_size": train.per_device_train_batch_size, "head_chunk": train.head_chunk}
    sizes["bf16"] = train.bf16
    if not iteration.scores_before_selection:
        return {"plan": {"global_batch_size": train.global_batch_size, **sizes, "explore": train.alpha > 0}}
    select, review = iteration.settings.select, _review(run, iteration)
    offline, samples = ["offline"] * (select.keep > 0), ["samples"] * (select.bootstrap > 0)
    texts = {iteration.policy_from or run.start: [*offline, *samples]}
    for term in review["terms"]:
        for policy in filter(None, (term["policy"], term["reference"])):
            texts.setdefault(policy, [*(offline if select.keep_by == "margin" else []), *samples])
    portion = _portion(run, iteration)
    return {"sizes": sizes, "portion": portion, "texts": texts, "stores": review["stores"][:-1]}


def _evaluation(head: Settings, settings: Recipe, run: Run) -> Settings:
    """Returns the settings of an evaluation; one judge marks all policies of a run, whoever labels in an iteration."""
    sections = {"model": settings.model.model_dump(), "rank": run.settings.rank.model_dump()}
    sections["evaluate"] = settings.evaluate.model_dump()
    if settings.data.dataset == "tiny_world":
        sections["rank"]["ranker"] = "oracle"  # Whoever labels the pairs, answers are measured by the true reward.
    elif run.settings.rank.ranker == "self":
        sections["rank"]["ranker"] = "reward_model"  # rank.model, or one that is fitted: no policy marks its own exam.
    return {"stage": "evaluate", "format": EVALUATION_FORMAT, **head, **sections, "limits": _limits(settings)}


def _limits(settings: Recipe) -> Settings:
    """Returns how many tokens there may be, and what becomes of a prompt that leaves no room."""
    train = settings.train
    return {
        "max_length": train.max_length, "max_prompt_length": train.max_prompt_length,
        "long_prompts": settings.data.long_prompts,
    }  # fmt: skip


def _portion(run: Run, iteration: Iteration) -> Settings:
    """Returns which of how many equal consecutive parts of the data the iteration uses, counted from 0."""
    return {"index": iteration.index, "of": run.settings.data.portions}
