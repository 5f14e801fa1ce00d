"""The rules of one iteration: generate, rank, score, select, train, and the check of its health."""

from __future__ import annotations

from typing import Any

from handbook_ext.graph import stages as files
from handbook_ext.graph.batch_sizes import BatchSizes
from handbook_ext.graph.rule import (
    ROWS,
    StageRule,
    about,
    checkpoint_of,
    health_of,
    limits_of,
    policy_artifact,
    portion_of,
    ranker_artifact,
    ranker_files,
    seen_from,
)
from handbook_ext.recipes.iteration import Iteration
from handbook_ext.recipes.parts import RANKERS
from handbook_ext.recipes.run import Run
from handbook_ext.selection.ensemble import ensemble

TOLERANCE, TOLERANCE_BF16 = 1e-3, 2e-2  # Nats per token; bf16 rounds by the shape of a batch.


def generate_rule(run: Run, each: Iteration) -> StageRule:
    """Returns the rule that samples from the policy that starts the iteration."""
    inputs = seen_from(each.name, rows=f"{ROWS}/train.jsonl", policy=policy_artifact(run, each.starts_from))
    settings = files.GenerateStage(
        stage="generate", **about(run, each), inputs=inputs, portion=portion_of(run, each), model=each.settings.model,
        generate=each.settings.generate, limits=limits_of(each.settings),
    )  # fmt: skip
    return StageRule(
        each.name, settings, "generate_completions.py", launcher="per_device", after=health_of(run, each.starts_from),
        external=checkpoint_of(run, each.starts_from),
    )  # fmt: skip


def rank_rule(run: Run, each: Iteration) -> StageRule:
    """Returns the rule that judges the samples."""
    rank = each.settings.rank
    judge = policy_artifact(run, each.starts_from) if rank.ranker == "self" else None
    inputs = seen_from(
        each.name,
        completions=f"{each.name}/completions.jsonl",
        rows=f"{ROWS}/train.jsonl",
        ranker=ranker_artifact(rank),
        policy=judge,
    )
    settings = files.RankStage(
        stage="rank", **about(run, each), inputs=inputs, model=each.settings.model, rank=rank,
    )  # fmt: skip
    asked = checkpoint_of(run, each.starts_from) if rank.ranker == "self" else ()
    return StageRule(
        each.name, settings, "rank_completions.py", launcher="per_device" if RANKERS[rank.ranker].on_device else "plain",
        external=(*ranker_files(rank), *asked),
    )  # fmt: skip


def score_candidates_rule(run: Run, each: Iteration) -> StageRule:
    """Returns the rule that scores what selection compares, under each policy whose margins it needs.

    Earlier policies are identified by hash; their weights load only if the store misses a completion.
    """
    needs = each.needs
    texts = {each.starts_from: _kinds(offline=needs.offline_log_probs, samples=needs.sample_log_probs)}
    for term in _terms(run, each):
        for policy in filter(None, (term["policy"], term["reference"])):
            texts.setdefault(policy, _kinds(offline=needs.offline_margins, samples=needs.sample_margins))
    completions = f"{each.name}/completions.jsonl" if needs.sample_log_probs else None
    inputs = seen_from(
        each.name, rows=f"{ROWS}/train.jsonl", completions=completions, policy=policy_artifact(run, each.starts_from),
        log_probs=_stores(run, each),
    )  # fmt: skip
    settings = files.ScoreCandidatesStage(
        stage="score", **about(run, each), inputs=inputs, model=each.settings.model, score=each.settings.score,
        limits=limits_of(each.settings), portion=portion_of(run, each), sizes=_sizes(each), texts=texts,
    )  # fmt: skip
    return StageRule(
        each.name, settings, "score_candidates.py", after=health_of(run, each.starts_from), external=checkpoint_of(run, *texts)
    )  # fmt: skip


def score_pairs_rule(run: Run, each: Iteration) -> StageRule:
    """Returns the rule that scores the pairs of training."""
    inputs = seen_from(each.name, pairs=f"{each.name}/pairs.jsonl", policy=policy_artifact(run, each.starts_from))
    train = each.settings.train
    settings = files.ScorePairsStage(
        stage="score", **about(run, each), inputs=inputs, model=each.settings.model, score=each.settings.score,
        limits=limits_of(each.settings), global_batch_size=train.global_batch_size, sizes=_sizes(each), explore=train.alpha > 0,
    )  # fmt: skip
    external = checkpoint_of(run, each.starts_from)
    return StageRule(each.name, settings, "score_completions.py", after=health_of(run, each.starts_from), external=external)


def select_rule(run: Run, each: Iteration) -> StageRule:
    """Returns the rule that makes the pairs: from judged samples, from samples, from log-probs, or from the data alone."""
    needs = each.needs
    stores = [*_stores(run, each), f"{each.name}/logprobs"] if needs.log_probs else []
    # A ranking holds the texts of the samples that it judged; where log-probs choose among them, it judges what they chose.
    sampled = needs.samples and (needs.sample_log_probs or not needs.rankings)
    inputs = seen_from(
        each.name, rows=f"{ROWS}/train.jsonl", rankings=f"{each.name}/rankings.jsonl" if needs.rankings else None,
        completions=f"{each.name}/completions.jsonl" if sampled else None, log_probs=stores,
    )  # fmt: skip
    form = each.settings.train.reward_form
    margins: dict[str, Any] = {}
    if needs.log_probs:
        margins = {"reward_form": {"reference": form.reference, "length_normalized": form.length_normalized}}
        margins["terms"] = _terms(run, each)
    settings = files.SelectStage(
        stage="select", **about(run, each), inputs=inputs, portion=portion_of(run, each), select=each.settings.select, **margins
    )  # fmt: skip
    return StageRule(each.name, settings, "select_pairs.py", launcher="plain")


def train_rule(run: Run, each: Iteration) -> StageRule:
    """Returns the rule that trains the iteration's policy."""
    train = each.settings.train
    inputs = seen_from(
        each.name, pairs=f"{each.name}/pairs.jsonl", log_probs=f"{each.name}/logprobs" if train.needs_reference else None,
        policy=policy_artifact(run, each.starts_from),
    )  # fmt: skip
    tolerance = each.settings.score.tolerance
    if tolerance is None:
        # Frozen weights under adapters keep the type that they were loaded in (policies.launch.training_dtype).
        bf16 = train.bf16 or (each.settings.model.lora is not None and each.settings.model.dtype == "bfloat16")
        tolerance = TOLERANCE_BF16 if bf16 else TOLERANCE
    settings = files.TrainStage(
        stage="train", **about(run, each), inputs=inputs, model=each.settings.model, train=train, limits=limits_of(each.settings),
        tolerance=tolerance if train.needs_reference else None,
    )  # fmt: skip
    return StageRule(
        each.name, settings, "train_policy.py", after=health_of(run, each.starts_from),
        external=checkpoint_of(run, each.starts_from),
    )  # fmt: skip


def health_rule(run: Run, each: Iteration) -> StageRule:
    """Returns the rule that stops a run whose iteration exceeds a limit of the recipe."""
    needs, health = each.needs, each.settings.health
    inputs = seen_from(
        each.name, pairs=f"{each.name}/pairs.jsonl", policy=policy_artifact(run, each.name),
        evaluation=f"{each.name}/eval.json" if health.max_kl is not None else None,
        completions=f"{each.name}/completions.jsonl" if needs.samples else None,
        rankings=f"{each.name}/rankings.jsonl" if needs.rankings else None,
    )  # fmt: skip
    trained = about(run) | {"iteration": each.name, "policy": each.name}
    settings = files.HealthStage(stage="health", **trained, inputs=inputs, health=health)
    return StageRule(each.name, settings, "check_health.py", launcher="plain")


def _stores(run: Run, each: Iteration) -> list[str]:
    """Returns the score stores of the iterations before."""
    names = [other.name for other in run.iterations]
    return [f"{other.name}/logprobs" for other in run.iterations[: names.index(each.name)] if other.has_log_probs]


def _terms(run: Run, each: Iteration) -> list[dict[str, Any]]:
    """Returns the terms of the ensemble whose margins select (SeRA, Eq. 7); none where no margins do."""
    if not each.needs.margins:
        return []
    policies = [run.start, *(other.name for other in run.iterations)]
    select = each.settings.select
    terms = ensemble(
        policies[: policies.index(each.name)], gamma=select.gamma, against=select.margin_reference,
        with_reference=each.settings.train.reward_form.reference,
    )  # fmt: skip
    return [{"weight": term.weight, "policy": term.policy, "reference": term.reference} for term in terms]


def _kinds(*, offline: bool, samples: bool) -> list[str]:
    """Returns the kinds of texts to score."""
    return ["offline"] * offline + ["samples"] * samples


def _sizes(each: Iteration) -> BatchSizes:
    """Returns the shapes in which log-probs are computed: those of training."""
    train = each.settings.train
    return BatchSizes(
        per_device_train_batch_size=train.per_device_train_batch_size, micro_batch_tokens=train.micro_batch_tokens,
        epochs=1 if train.micro_batch_tokens is None else train.epochs, head_chunk=train.head_chunk, bf16=train.bf16,
        torch_compile=train.torch_compile, liger=train.liger,
    )  # fmt: skip
