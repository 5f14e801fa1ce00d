"""Policy + held-out pairs -> eval.json: `evaluate_policy.py runs/<run>/iter<N>` (or runs/<run>/sft, runs/<run>/start)."""

import json
import sys
from collections.abc import Callable
from functools import partial
from statistics import fmean
from typing import Any

from handbook_ext.recipes.writing import load_stage

from handbook_ext.core.errors import run_main, stage_folder
from handbook_ext.core.records import Answer, OfflinePair, assistant, derived_seed, read_rows
from handbook_ext.core.shards import batched, fill_shards, read_shards
from handbook_ext.core.stage import Stage
from handbook_ext.evaluation.implicit_reward import ScoredCompletion, implicit_rewards, summarised
from handbook_ext.judging.rankers import Ranker, external_ranker_hashes, fitted_ranker, open_ranker, ranker_id
from handbook_ext.policies.chat import ChatEncoder
from handbook_ext.policies.launch import Launch, begin
from handbook_ext.policies.models import external_checkpoint_hashes, policy_hash, policy_source
from handbook_ext.recipes.settings import EvaluateSettings, ModelSettings, RankSettings
from handbook_ext.sampling.generation import Job, generate_batch, open_policy

Prompts = list[tuple[OfflinePair, list[int]]]


def main(argv: list[str]) -> None:
    """Samples each held-out prompt once per temperature, has the ranker judge the answers, and measures implicit rewards."""
    folder = stage_folder(argv)
    run = folder.parent
    launch = begin()
    settings = load_stage(folder / "evaluate.yaml")
    model, evaluate = ModelSettings(**settings["model"]), EvaluateSettings(**settings["evaluate"])
    rank = RankSettings(**settings["rank"])
    source, artifact = policy_source(model, run, settings["policy_from"])
    first, first_artifact = policy_source(model, run, settings["first"]) if "first" in settings else (source, None)
    rows_file = run / "data" / "rows" / "test.jsonl"
    stage = Stage(
        folder / "eval.json", settings, [rows_file, *filter(None, (artifact, first_artifact, fitted_ranker(run, rank)))],
        external=external_ranker_hashes(rank),
    )  # fmt: skip
    if artifact is None or ("first" in settings and first_artifact is None):
        stage.external |= external_checkpoint_hashes(first, model)
    if launch.finished(stage):
        return
    policy, tokenizer = open_policy(source, model, trained_here=artifact is not None, device=launch.device)
    encoder = ChatEncoder(tokenizer, **settings["limits"])
    rows = read_rows(rows_file, OfflinePair)[: evaluate.prompts]
    encoded = [(row, encoder.prompt_ids(row.prompt, row.source)) for row in rows]
    prompts = [(row, ids) for row, ids in encoded if ids is not None]
    ranker = open_ranker(run, rank, device=launch.device)
    answer = partial(
        generate_batch, policy, tokenizer, top_p=evaluate.top_p, max_new_tokens=evaluate.max_new_tokens, end_ids=encoder.end_ids()
    )  # fmt: skip
    decodings = {
        decoding_name(temperature): decode(stage, launch, prompts, temperature, partial(answer, temperature=temperature), ranker)
        for temperature in evaluate.temperatures
    }
    told = {
        "policy": {"name": settings["iteration"], "sha256": policy_hash(source, model)},
        "seed": settings["seed"], "ranker": rank.ranker, "judge": ranker_id(run, rank), "decodings": decodings,
    }  # fmt: skip
    if launch.main:
        if "first" in settings:
            base, _ = open_policy(first, model, trained_here=first_artifact is not None, device=launch.device)
            texts = implicit_texts([row for row, _ in prompts], decodings, ranker)
            told["implicit"] = {
                "first": settings["first"] or "start",
                **summarised(implicit_rewards(policy, base, texts, encoder)),
            }
        stage.out.write_text(json.dumps(told, indent=1, ensure_ascii=False))
        stage.publish({"in": len(rows), "out": len(prompts), "dropped": {"prompt too long": len(rows) - len(prompts)}})
        if "implicit" in told:
            kl = told["implicit"]["kl"]
            sys.stderr.write(f"evaluate: {folder} is an estimated {kl:.3g} nats per answer from {told['implicit']['first']}\n")
    launch.wait()


def decode(
    stage: Stage, launch: Launch, prompts: Prompts, temperature: float, answer: Callable[[list[Job]], Any], ranker: Ranker
) -> dict[str, Any]:
    """Returns the judged answers to all prompts at one temperature, on the first process; others get no rows."""
    seed = stage.settings["seed"]
    jobs = [
        Job(row.prompt_id, 0, row.prompt, ids, derived_seed(seed, "evaluate", temperature, row.prompt_id)) for row, ids in prompts
    ]
    size = stage.settings["evaluate"]["batch_size"]
    batches = batched(sorted(jobs, key=lambda job: len(job.prompt_ids)), size)
    shards = stage.workspace / f"temperature-{temperature:g}"
    fill_shards(
        shards, batches, answer, rank=launch.rank, processes=launch.processes,
        progress=launch.progress(f"evaluate at temperature {temperature:g}", "batch"),
    )  # fmt: skip
    launch.wait()
    if not launch.main:
        return {}
    found = {row["prompt_id"]: row for row in read_shards(shards, len(batches))}
    answers = [(row, found[row.prompt_id]) for row, _ in prompts]
    verdicts = ranker.score([(row.prompt, answer["text"]) for row, answer in answers])
    judged = [
        {
            "prompt_id": row.prompt_id, "reward": verdict.score, "tokens": answer["completion_tokens"],
            "finish_reason": answer["finish_reason"], "text": answer["text"], "completion_id": answer["completion_id"],
        }
        for (row, answer), verdict in zip(answers, verdicts, strict=True)
    ]  # fmt: skip
    means = {f"mean_{name}": fmean(row[name] for row in judged) for name in ("reward", "tokens")}
    return {"temperature": temperature, **means, "rows": judged}


def implicit_texts(rows: list[OfflinePair], decodings: dict[str, Any], ranker: Ranker) -> list[ScoredCompletion]:
    """Returns the held-out chosen and rejected answers, and the policy's own at the highest temperature, with rewards."""
    offline = [
        (row, side, answer) for row in rows for side, answer in (("chosen", row.chosen_answer), ("rejected", row.rejected_answer))
    ]
    verdicts = ranker.score([(row.prompt, answer.text) for row, _, answer in offline])
    texts = [
        ScoredCompletion(row.prompt_id, row.prompt, side, answer, verdict.score)
        for (row, side, answer), verdict in zip(offline, verdicts, strict=True)
    ]
    own = {row["prompt_id"]: row for row in max(decodings.values(), key=lambda each: each["temperature"])["rows"]}
    samples = [(row, own[row.prompt_id]) for row in rows]
    return texts + [
        ScoredCompletion(
            row.prompt_id,
            row.prompt,
            "sample",
            Answer(assistant(each["text"]), each["completion_id"], "on_policy"),
            each["reward"],
        )
        for row, each in samples
    ]


def decoding_name(temperature: float) -> str:
    """Returns what the report calls a decoding."""
    return "greedy" if temperature == 0 else "sampled" if temperature == 0.7 else f"sampled at {temperature:g}"


if __name__ == "__main__":
    run_main(main)
