"""Policy + held-out pairs -> eval.json: `evaluate_policy.py runs/<run>/iter<N>` (or runs/<run>/sft, runs/<run>/start)."""

import json
from functools import partial
from pathlib import Path
from typing import Any

from handbook_ext.core.console import tell
from handbook_ext.core.errors import run_main, stage_folder
from handbook_ext.core.jsonl import read_rows
from handbook_ext.core.records import OfflinePair
from handbook_ext.core.stage import Stage
from handbook_ext.evaluation.decoding import (
    HeldOutJudge,
    Prompts,
    decoding_name,
    held_out_completions,
    judged_decoding,
    sample_held_out,
)
from handbook_ext.evaluation.implicit_reward import held_out_sums, implicit_rewards
from handbook_ext.evaluation.implicit_summary import UNBIASED_AT, summarised
from handbook_ext.graph.stages import EvaluateStage
from handbook_ext.judging.rankers import Bench, external_ranker_hashes, open_ranker, ranker_id
from handbook_ext.policies.chat import ChatEncoder
from handbook_ext.policies.launch import Launch, begin
from handbook_ext.policies.source import PolicySource, policy_of
from handbook_ext.recipes.parts import RANKERS
from handbook_ext.sampling.engine import engine_facts, open_engine, shards_of


def main(argv: list[str]) -> None:
    """Samples each held-out prompt once per temperature, has the ranker judge the answers, and measures implicit rewards."""
    stage = Stage.open(stage_folder(argv), EvaluateStage)
    launch = begin()
    settings, evaluate, rank = stage.settings, stage.settings.evaluate, stage.settings.rank
    source = policy_of(stage, launch)
    initial = policy_of(stage, launch, "initial_policy") if settings.initial_policy is not None else None
    fitted = next(iter(stage.inputs("ranker")), None)
    stage.external |= launch.first_alone(lambda: external_ranker_hashes(rank, stage.hash_of))
    if launch.finished(stage):
        return
    encoder = source.encoder(settings.limits.model_dump())
    rows = read_rows(stage.input("rows"), OfflinePair)[: evaluate.prompts]
    encoded = encoder.prompts([(row.prompt, row.source) for row in rows])
    prompts = [(row, ids) for row, ids in zip(rows, encoded, strict=True) if ids is not None]
    sampled = sample_all(stage, source, encoder, prompts, launch)
    judge = open_judge(stage, launch, fitted)
    labelled_by = next(iter(stage.inputs("labeller")), None)
    labeller = None if labelled_by is None else open_judge(stage, launch, labelled_by)
    decodings = {
        decoding_name(temperature): judged_decoding(prompts, answers, judge, temperature, labeller)
        for temperature, answers in sampled.items()
    }
    result: dict[str, Any] = {
        "policy": {"name": settings.policy, "sha256": source.sha256}, "seed": settings.seed, "ranker": rank.ranker,
        "judge": ranker_id(rank, fitted, stage.external), "decodings": decodings,
    }  # fmt: skip
    if labelled_by is not None:
        result["labeller"] = ranker_id(rank, labelled_by, stage.external)
    if initial is not None:
        completions = held_out_completions([row for row, _ in prompts], decodings, judge)
        ours, theirs = (
            held_out_sums(each, completions, encoder, launch, stage.workspace, name)
            for each, name in ((source, "the policy"), (initial, "its initial policy"))
        )
        summary = summarised(implicit_rewards(completions, ours, theirs))
        result["implicit"] = {"initial_policy": settings.initial_policy, **summary}
    if launch.main:
        stage.out.write_text(json.dumps(result, indent=1, ensure_ascii=False), encoding="utf-8")
        stage.publish(
            {"in": len(rows), "out": len(prompts), "dropped": {"prompt too long": len(rows) - len(prompts)}},
            engine=engine_facts(settings.engine.engine),
            **judge.facts(),
        )
        if initial is not None:
            tell(
                f"evaluate: {stage.artifact.parent} has a mean log-ratio of {result['implicit']['kl']:.3g} nats per answer to "
                f"{settings.initial_policy}, on answers sampled at temperature {max(settings.evaluate.temperatures):g}: "
                f"{UNBIASED_AT}"
            )
    launch.wait()


def open_judge(stage: Stage[EvaluateStage], launch: Launch, fitted: Path | None) -> HeldOutJudge:
    """Returns the recipe's ranker, or one that the run has fitted, for all processes to judge with; an endpoint for the first."""
    rank, alone = stage.settings.rank, not RANKERS[stage.settings.rank.ranker].on_device
    bench = Bench(launch.device, stage.run, fitted, asker=f"{stage.settings.policy} evaluate")
    ranker = open_ranker(rank, bench) if launch.main or not alone else None
    return HeldOutJudge(ranker, launch, stage.workspace, alone)


def sample_all(
    stage: Stage[EvaluateStage], source: PolicySource, encoder: ChatEncoder, prompts: Prompts, launch: Launch
) -> dict[float, list[dict[str, Any]]]:
    """Returns the rows of the completions by temperature, in every process; the engine has left the device by then."""
    settings, evaluate = stage.settings, stage.settings.evaluate
    longest = max((len(ids) for _, ids in prompts), default=0) + evaluate.max_new_tokens
    with open_engine(
        settings.engine, source, encoder, batch_size=evaluate.batch_size, longest=longest, launch=launch,
        workspace=stage.workspace,
    ) as engine:  # fmt: skip
        return {
            temperature: sample_held_out(
                prompts,
                partial(engine.answer, temperature=temperature, top_p=evaluate.top_p, max_new_tokens=evaluate.max_new_tokens),
                stage.workspace, launch, temperature=temperature, seed=settings.seed,
                cut=partial(shards_of, settings.engine, batch_size=evaluate.batch_size, max_new_tokens=evaluate.max_new_tokens),
            )
            for temperature in evaluate.temperatures
        }  # fmt: skip


if __name__ == "__main__":
    run_main(main)
