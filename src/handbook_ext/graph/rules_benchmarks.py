"""The rules of evaluation on public prompt sets: the prompts once per run, then answers and grades of each policy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from handbook_ext.core.artifacts import START
from handbook_ext.core.errors import UserError
from handbook_ext.graph import stages_benchmarks as files
from handbook_ext.graph.rule import (
    ROWS,
    StageRule,
    about,
    checkpoint_of,
    file_of,
    folder_files,
    part_of,
    policy_artifact,
    seen_from,
)
from handbook_ext.graph.stages import Limits
from handbook_ext.recipes.found_files import check_set
from handbook_ext.recipes.run import Run
from handbook_ext.recipes.settings import EngineSettings, ModelSettings
from handbook_ext.recipes.settings_benchmarks import HARNESS, HELD_OUT, START_ANSWERS, DecodingSettings
from handbook_ext.recipes.yaml_tree import nearest

PROMPTS = "prompts"
RELEASED = "released-"
"""What the folder of a released checkpoint begins with, before the policy that it stands beside."""


def asked_for(run: Run, sets: Sequence[str], *, released: bool = False, all_sets: bool = False) -> Run:
    """Returns a run with the prompt sets that it is to be evaluated on; a UserError where its recipe has them not."""
    benchmarks = run.settings.benchmarks
    where = f"{run.tree.where(('benchmarks',))}: recipe {run.recipe}"
    if all_sets and not benchmarks.evaluations:
        raise UserError(f"{where} has no prompt set to evaluate on; state them in benchmarks.sets (recipes/README.md)")
    for name in sets:
        if name not in benchmarks.evaluations:
            there = "benchmarks.harness" if name == HARNESS else "benchmarks.sets"
            raise UserError(
                f"SETS: {where} has no prompt set '{name}'{nearest(name, benchmarks.evaluations)}; it has: "
                f"{', '.join(benchmarks.evaluations) or 'none'}; state it in {there}, or leave it out"
            )
    if released and not benchmarks.released:
        raise UserError(
            f"CHECKPOINTS: {where} names no released checkpoint; state them in benchmarks.checkpoints, or leave it out"
        )
    chosen = benchmarks.evaluations if all_sets else tuple(sets)
    for name in chosen:
        check_set(benchmarks, name, run.tree)
    return replace(run, sets=chosen, released=released)


def unused_sets(run: Run) -> list[str]:
    """Returns a line for each prompt set of the recipe that was not asked for, and whose files are missing."""
    found = []
    for name in run.settings.benchmarks.evaluations:
        if name not in run.sets:
            try:
                check_set(run.settings.benchmarks, name, run.tree)
            except UserError as error:
                found.append(f"{error}; only SETS={name} and {run.recipe}-eval need it")
    return found


def evaluated_policies(run: Run) -> list[str]:
    """Returns the folders of the policies that the sets of a run are answered by: its own, or the released ones."""
    if run.released:
        return [f"{RELEASED}{name}" for name in run.settings.benchmarks.released]
    return run.policies


def benchmark_rules(run: Run) -> list[StageRule]:
    """Returns the rules for the sets that a run is asked for; with released checkpoints, these behind the run's own policies."""
    rules = []
    # The start first: others are compared with its answers.
    policies = [*run.policies, *(evaluated_policies(run) if run.released else [])]
    for name in run.sets:
        if name == HARNESS:
            rules += [harness_rule(run, policy) for policy in policies]
        else:
            rules.append(prompts_rule(run, name))
            rules += [answer_rule(run, policy, name) for policy in policies]
            rules += [grade_rule(run, policy, name) for policy in policies]
    return rules


def prompts_rule(run: Run, name: str) -> StageRule:
    """Returns the rule that reads a prompt set."""
    benchmarks, chosen = run.settings.benchmarks, run.settings.benchmarks.prompt_set(name)
    folder = f"{PROMPTS}/{name}"
    inputs = seen_from(
        folder, train=f"{ROWS}/train.jsonl", sft=f"{ROWS}/sft.jsonl" if run.settings.sft is not None else None,
        test=f"{ROWS}/test.jsonl" if chosen.source == HELD_OUT else None,
    )  # fmt: skip
    settings = files.PromptsStage(
        stage="prompts", **about(run), inputs=inputs, set=name, source=chosen.source, rows=chosen.rows,
        references=chosen.references, outputs=chosen.outputs, contaminated=benchmarks.contaminated,
    )  # fmt: skip
    local = [Path(each) for source in (chosen.source, chosen.references, *chosen.outputs.values()) for each in file_of(source)]
    return StageRule(folder, settings, "prepare_prompts.py", launcher="plain", external=tuple(local))


def answer_rule(run: Run, policy: str, name: str) -> StageRule:
    """Returns the rule by which a policy answers a prompt set."""
    chosen, settings = run.settings.benchmarks.prompt_set(name), run.settings
    folder = f"{policy}/{name}"
    checkpoint, model, external = _loaded(run, policy)
    inputs = seen_from(
        folder, prompts=f"{PROMPTS}/{name}/prompts.jsonl",
        policy=None if checkpoint is not None else policy_artifact(run, policy),
    )  # fmt: skip
    limits = Limits(
        max_length=chosen.max_prompt_length + chosen.max_new_tokens, max_prompt_length=chosen.max_prompt_length,
        long_prompts="truncate", special_tokens=settings.data.special_tokens,
    )  # fmt: skip
    stage = files.AnswerStage(
        stage="answer", **about(run), inputs=inputs, iteration=policy, policy=policy, checkpoint=checkpoint, model=model,
        limits=limits, set=name, decoding=part_of(DecodingSettings, chosen), engine=part_of(EngineSettings, settings.generate),
    )  # fmt: skip
    return StageRule(folder, stage, "answer_prompts.py", launcher="per_device", external=external)


def grade_rule(run: Run, policy: str, name: str) -> StageRule:
    """Returns the rule that grades a policy's answers to a prompt set."""
    benchmarks, chosen = run.settings.benchmarks, run.settings.benchmarks.prompt_set(name)
    folder = f"{policy}/{name}"
    with_start = policy != run.start and ("pairwise" in chosen.measures or chosen.baseline == START_ANSWERS)
    inputs = seen_from(
        folder, prompts=f"{PROMPTS}/{name}/prompts.jsonl", answers=f"{folder}/answers.jsonl",
        start_answers=f"{run.start}/{name}/answers.jsonl" if with_start else None,
    )  # fmt: skip
    stage = files.GradeStage(
        stage="grade", **about(run), inputs=inputs, policy=policy, set=name, checkpoint=_released(run, policy),
        decoding=part_of(DecodingSettings, chosen), measures=chosen.measures, outputs=[*chosen.outputs],
        baseline=chosen.baseline, length_control=chosen.length_control, judge=benchmarks.grader(name),
        judge_runs=chosen.judge_runs,
    )  # fmt: skip
    return StageRule(folder, stage, "grade_answers.py", launcher="plain", external=file_of(chosen.length_control))


def harness_rule(run: Run, policy: str) -> StageRule:
    """Returns the rule that runs a policy on tasks of lm-evaluation-harness; raises UserError for vLLM without a GPU."""
    harness, folder = run.settings.benchmarks.harness, f"{policy}/{HARNESS}"
    if harness is None:
        raise KeyError(HARNESS)
    if harness.engine == "vllm" and run.launch.on_cpu:
        raise UserError(
            f"benchmarks.harness.engine: lm-eval uses vLLM on GPUs alone, and launch {run.launch.name} has none; set engine: "
            "transformers, or give LAUNCH=gpu"
        )
    checkpoint, model, external = _loaded(run, policy)
    engine = part_of(EngineSettings, run.settings.generate).model_copy(update={"engine": harness.engine})
    stage = files.HarnessStage(
        stage="harness", **about(run), policy=policy, checkpoint=checkpoint, model=model, harness=harness, engine=engine,
        inputs=seen_from(folder, policy=None if checkpoint is not None else policy_artifact(run, policy)),
    )  # fmt: skip
    outside = (*external, *harness.include_files)
    return StageRule(folder, stage, "run_harness.py", launcher="per_device", external=outside)


def _loaded(run: Run, policy: str) -> tuple[str | None, ModelSettings, tuple[Path, ...]]:
    """Returns the released checkpoint that a folder stands for, or None; how it is loaded; its files outside the run."""
    model, checkpoint = run.settings.model, _released(run, policy)
    if checkpoint is None:
        return None, model, checkpoint_of(run, policy)
    released = run.settings.benchmarks.released[policy.removeprefix(RELEASED)]
    changes = {"name_or_path": released.name_or_path, "revision": released.revision, "package": None, "architecture": None}
    return checkpoint, model.model_copy(update={**changes, "lora": None}), folder_files(checkpoint)


def _released(run: Run, policy: str) -> str | None:
    """Returns the released checkpoint that a folder stands for; None for a policy of the run, START among them."""
    if policy == START or not policy.startswith(RELEASED):
        return None
    return run.settings.benchmarks.released[policy.removeprefix(RELEASED)].name_or_path
