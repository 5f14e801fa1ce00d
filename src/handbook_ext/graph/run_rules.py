"""The graph of a run: each stage once, with its settings, its inputs and its script. Make and the stages both read it from here.

`run_rules` lists the stages of a run in an order in which they can run. What a rule reads is named by the artifact, as a path
in the run's folder; the settings file of the stage holds the same path, seen from where the file lies.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from handbook_ext.core.errors import UserError
from handbook_ext.graph.rule import CHECK, StageRule, whole_of
from handbook_ext.graph.rules_benchmarks import benchmark_rules
from handbook_ext.graph.rules_iteration import (
    generate_rule,
    health_rule,
    rank_rule,
    score_candidates_rule,
    score_pairs_rule,
    select_rule,
    train_rule,
)
from handbook_ext.graph.rules_run import (
    check_rule,
    checkpoint_rule,
    data_rule,
    evaluate_rule,
    judge_rule,
    ranker_rule,
    report_rule,
    sft_rule,
)
from handbook_ext.recipes.iteration import Iteration
from handbook_ext.recipes.run import Run

__all__ = ["StageRule", "checked", "run_rules"]


def run_rules(run: Run) -> list[StageRule]:
    """Returns the stages of a run, each behind those that it needs; raises UserError where one reads what no stage makes."""
    rules = [data_rule(run)]
    if run.settings.model.package is not None:
        rules.append(checkpoint_rule(run))
    rules.append(check_rule(run))
    if run.settings.sft is not None:
        rules.append(sft_rule(run))
    if run.trains_reward_model:
        rules.append(ranker_rule(run))
    if run.judged_apart:
        rules.append(judge_rule(run))
    rules.append(evaluate_rule(run, run.start, run.settings))
    for each in run.iterations:
        stages: list[tuple[bool, Callable[[Run, Iteration], StageRule]]] = [
            (each.needs.samples, generate_rule),
            (each.needs.rankings, rank_rule),
            (each.needs.log_probs, score_candidates_rule),
            (True, select_rule),
            (each.has_log_probs and not each.needs.log_probs, score_pairs_rule),
            (True, train_rule),
        ]
        rules += [make(run, each) for wanted, make in stages if wanted]
        rules += [evaluate_rule(run, policy, each.settings) for policy in (*each.kept, each.name)]
        rules += [health_rule(run, each)] if each.health_limited else []
    rules += benchmark_rules(run)
    rules.append(report_rule(run))
    # What the check finds is no input of a training: made anew, it would start none again.
    return checked([replace(rule, after=(CHECK, *rule.after)) if rule.on_device else rule for rule in rules])


def checked(rules: Sequence[StageRule]) -> list[StageRule]:
    """Returns the rules; raises UserError where one needs an artifact that no rule before it makes, or two make the same."""
    made: set[str] = set()
    for rule in rules:
        for name in [*rule.inputs, *rule.after]:
            if whole_of(name) not in made:
                raise UserError(
                    f"stage {rule.settings.stage} in {rule.folder or 'the run'} needs {name}, which no stage before makes"
                )
        if rule.artifact in made:
            raise UserError(f"two stages make {rule.artifact}")
        made.add(rule.artifact)
    return list(rules)
