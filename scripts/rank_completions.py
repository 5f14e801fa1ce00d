"""completions.jsonl + offline answers -> rankings.jsonl, by the recipe's ranker: `rank_completions.py runs/<run>/iter<N>`."""

from collections import defaultdict

from handbook_ext.core.errors import run_main, stage_folder
from handbook_ext.core.jsonl import read_rows, write_rows
from handbook_ext.core.records import Completion, OfflinePair, Ranking
from handbook_ext.core.shards import batched, fill_shards, read_shards
from handbook_ext.core.stage import Stage
from handbook_ext.graph.stages import RankStage
from handbook_ext.judging.ranker import CandidateSet, Ranker, candidates_of, ranking
from handbook_ext.judging.rankers import Bench, external_ranker_hashes, open_ranker, refuse_unfit
from handbook_ext.policies.launch import begin
from handbook_ext.policies.source import policy_of

PROMPTS_PER_SHARD = 64


def main(argv: list[str]) -> None:
    """Judges the samples of each prompt, by default together with its offline chosen and rejected answers."""
    stage = Stage.open(stage_folder(argv), RankStage)
    launch = begin()
    rank = stage.settings.rank
    stage.external |= launch.first_alone(lambda: external_ranker_hashes(rank, stage.hash_of))
    judge = policy_of(stage, launch) if rank.ranker == "self" else None
    fitted = next(iter(stage.inputs("ranker")), None)
    if launch.finished(stage):
        return
    refuse_unfit(rank, fitted)
    ranker = open_ranker(rank, Bench(launch.device, stage.run, fitted, judge, asker=f"{stage.settings.iteration} rank"))
    samples: dict[str, list[Completion]] = defaultdict(list)
    for row in read_rows(stage.input("completions"), Completion):
        samples[row.prompt_id].append(row)
    offline: dict[str, OfflinePair] = {}
    if rank.candidates == "all":
        offline = {row.prompt_id: row for row in read_rows(stage.input("rows"), OfflinePair)}
    batches = batched(list(samples.values()), PROMPTS_PER_SHARD)
    shards = stage.workspace / "shards"
    fill_shards(
        shards, batches, lambda batch: judged(batch, offline, ranker), rank=launch.rank, processes=launch.processes,
        progress=launch.progress("rank", "batches"),
    )  # fmt: skip
    launch.wait()
    if launch.main:
        rows = list(read_shards(shards, len(batches)))
        write_rows(stage.out, rows)
        stage.publish(
            {"in": len(samples), "out": len(rows)},
            ties=sum(row["ties"] for row in rows),
            truncated=sum(candidate["truncated"] for row in rows for candidate in row["candidates"]),
            failed=sum(candidate["failed"] for row in rows for candidate in row["candidates"]),
            disagreements=sum(row["disagreements"] for row in rows),
            **ranker.facts(),
        )
    launch.wait()


def judged(batch: list[list[Completion]], offline: dict[str, OfflinePair], ranker: Ranker) -> list[Ranking]:
    """Returns the rankings of a batch of prompts, whose candidates are judged in one call."""
    candidates = [candidates_of(samples, offline.get(samples[0].prompt_id)) for samples in batch]
    prompts = [samples[0] for samples in batch]
    sets = [CandidateSet(first.prompt, [each.text for each in texts]) for first, texts in zip(prompts, candidates, strict=True)]
    return [
        ranking(first.prompt_id, first.prompt, list(zip(texts, verdicts, strict=True)))
        for first, texts, verdicts in zip(prompts, candidates, ranker.judge(sets), strict=True)
    ]


if __name__ == "__main__":
    run_main(main)
