"""Policy + held-out prompts -> eval.json: `evaluate_policy.py runs/<run>/iter<N>` (or runs/<run>/sft, runs/<run>/start)."""

import json
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

from handbook_ext.chat import ChatEncoder
from handbook_ext.errors import run_main
from handbook_ext.generation import Job, answered, open_policy
from handbook_ext.launching import begin
from handbook_ext.models import policy_hash, policy_source
from handbook_ext.rankers import fitted_ranker, make_ranker
from handbook_ext.recipes import load_stage
from handbook_ext.records import OfflinePair, derived_seed, read_rows
from handbook_ext.runs import Stage
from handbook_ext.settings import EvaluateSettings, ModelSettings, RankSettings
from handbook_ext.shards import batched, fill_shards, read_shards


def main(argv: list[str]) -> None:
    """Samples each held-out prompt once per temperature and has the ranker judge the answers."""
    folder = Path(argv[0])
    run = folder.parent
    launch = begin()
    settings = load_stage(folder / "evaluate.yaml")
    model, evaluate = ModelSettings(**settings["model"]), EvaluateSettings(**settings["evaluate"])
    rank = RankSettings(**settings["rank"])
    source, artifact = policy_source(model, run, settings["policy_from"])
    fitted = fitted_ranker(run, rank)
    rows_file = run / "data" / "rows" / "test.jsonl"
    stage = Stage(folder / "eval.json", settings, [rows_file, *filter(None, (artifact, fitted))])
    if artifact is None:
        stage.external = {"policy": policy_hash(source, model)}
    if launch.finished(stage):
        return
    ranker = make_ranker(
        rank.ranker, str(fitted) if fitted else rank.model, device=launch.device, batch_size=rank.batch_size,
        max_length=rank.max_length, revision=rank.revision,
    )  # fmt: skip
    policy, tokenizer = open_policy(source, model, own=artifact is not None, device=launch.device)
    encoder = ChatEncoder(tokenizer, **settings["limits"])
    rows = read_rows(rows_file, OfflinePair)[: evaluate.prompts]
    encoded = [(row, encoder.prompt_ids(row.prompt, row.source)) for row in rows]
    decodings: dict[str, Any] = {}
    for temperature in evaluate.temperatures:
        jobs = [
            Job(row.prompt_id, 0, row.prompt, ids, derived_seed(settings["seed"], "evaluate", temperature, row.prompt_id))
            for row, ids in encoded
            if ids is not None
        ]
        batches = batched(sorted(jobs, key=lambda job: len(job.prompt_ids)), evaluate.batch_size)
        shards = stage.workspace / f"temperature-{temperature:g}"
        answer = partial(
            answered, policy, tokenizer, temperature=temperature, top_p=evaluate.top_p,
            max_new_tokens=evaluate.max_new_tokens, end_ids=encoder.end_ids(),
        )  # fmt: skip
        fill_shards(
            shards, batches, answer, rank=launch.rank, processes=launch.processes,
            progress=launch.progress(f"evaluate at temperature {temperature:g}", "batch"),
        )  # fmt: skip
        launch.wait()
        if launch.main:
            found = {row["prompt_id"]: row for row in read_shards(shards, len(batches))}
            answers = [(row, found[row.prompt_id]) for row, ids in encoded if ids is not None]
            verdicts = ranker.score([(row.prompt, answer["text"]) for row, answer in answers])
            judged = [
                {
                    "prompt_id": row.prompt_id, "reward": verdict.score, "tokens": answer["completion_tokens"],
                    "finish_reason": answer["finish_reason"], "text": answer["text"],
                }
                for (row, answer), verdict in zip(answers, verdicts, strict=True)
            ]  # fmt: skip
            decodings[decoding_name(temperature)] = {
                "temperature": temperature, "mean_reward": fmean(row["reward"] for row in judged),
                "mean_tokens": fmean(row["tokens"] for row in judged), "rows": judged,
            }  # fmt: skip
    if launch.main:
        told = {
            "policy": {"name": settings["iteration"], "sha256": policy_hash(source, model)},
            "recipe": settings["recipe"], "seed": settings["seed"], "ranker": rank.ranker, "decodings": decodings,
        }  # fmt: skip
        stage.out.write_text(json.dumps(told, indent=1, ensure_ascii=False))
        long_prompts = sum(ids is None for _, ids in encoded)
        stage.publish({"in": len(rows), "out": len(rows) - long_prompts, "dropped": {"prompt too long": long_prompts}})
    launch.wait()


def decoding_name(temperature: float) -> str:
    """Returns what the report calls a decoding."""
    return "greedy" if temperature == 0 else "sampled" if temperature == 0.7 else f"sampled at {temperature:g}"


if __name__ == "__main__":
    run_main(main)
