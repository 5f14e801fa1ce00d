"""completions.jsonl + offline answers -> rankings.jsonl, by the recipe's ranker: `rank_completions.py runs/<run>/iter<N>`."""

from collections import defaultdict
from pathlib import Path

from handbook_ext.errors import run_main
from handbook_ext.launching import begin
from handbook_ext.rankers import Ranker, candidates_of, fitted_ranker, make_ranker, ranking
from handbook_ext.recipes import load_stage
from handbook_ext.records import Completion, OfflinePair, Ranking, read_rows, write_rows
from handbook_ext.runs import Stage
from handbook_ext.settings import RankSettings
from handbook_ext.shards import batched, fill_shards, read_shards

PROMPTS_PER_SHARD = 64


def main(argv: list[str]) -> None:
    """Judges the samples of each prompt together with its offline chosen and rejected answers."""
    folder = Path(argv[0])
    run = folder.parent
    launch = begin()
    settings = load_stage(folder / "rank.yaml")
    rank = RankSettings(**settings["rank"])
    fitted = fitted_ranker(run, rank)
    rows_file = run / "data" / "rows" / "train.jsonl"
    inputs = [folder / "completions.jsonl", rows_file, *([fitted] if fitted else [])]
    stage = Stage(folder / "rankings.jsonl", settings, inputs)
    if launch.finished(stage):
        return
    ranker = make_ranker(
        rank.ranker, str(fitted) if fitted else rank.model, device=launch.device, batch_size=rank.batch_size,
        max_length=rank.max_length, revision=rank.revision,
    )  # fmt: skip
    samples: dict[str, list[Completion]] = defaultdict(list)
    for row in read_rows(folder / "completions.jsonl", Completion):
        samples[row.prompt_id].append(row)
    offline = {row.prompt_id: row for row in read_rows(rows_file, OfflinePair)}
    batches = batched(list(samples.values()), PROMPTS_PER_SHARD)
    shards = stage.workspace / "shards"
    fill_shards(
        shards, batches, lambda batch: judged(batch, offline, ranker), rank=launch.rank, processes=launch.processes,
        progress=launch.progress("rank", "batch"),
    )  # fmt: skip
    launch.wait()
    if launch.main:
        rows = list(read_shards(shards, len(batches)))
        write_rows(stage.out, rows)
        stage.publish(
            {"in": len(samples), "out": len(rows)},
            ties=sum(row["ties"] for row in rows),
            truncated=sum(candidate["truncated"] for row in rows for candidate in row["candidates"]),
        )
    launch.wait()


def judged(batch: list[list[Completion]], offline: dict[str, OfflinePair], ranker: Ranker) -> list[Ranking]:
    """Returns the rankings of a batch of prompts, whose candidates are judged in one call."""
    candidates = [candidates_of(samples, offline[samples[0].prompt_id]) for samples in batch]
    prompts = [samples[0] for samples in batch]
    verdicts = iter(
        ranker.score([(first.prompt, text) for first, texts in zip(prompts, candidates, strict=True) for *_, text in texts])
    )
    return [
        ranking(first.prompt_id, first.prompt, [(*candidate, next(verdicts)) for candidate in texts])
        for first, texts in zip(prompts, candidates, strict=True)
    ]


if __name__ == "__main__":
    run_main(main)
