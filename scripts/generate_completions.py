"""Policy + prompts -> completions.jsonl: `generate_completions.py runs/<run>/iter<N>`; keeps its finished shards."""

from functools import partial

from handbook_ext.core.errors import run_main, stage_folder
from handbook_ext.core.jsonl import read_rows, write_rows
from handbook_ext.core.records import OfflinePair
from handbook_ext.core.shards import fill_shards, read_shards
from handbook_ext.core.stage import Stage
from handbook_ext.graph.stages import GenerateStage
from handbook_ext.policies.launch import begin
from handbook_ext.policies.source import policy_of
from handbook_ext.sampling.engine import engine_facts, open_engine, shards_of
from handbook_ext.sampling.generation import jobs_of


def main(argv: list[str]) -> None:
    """Samples `num_completions` answers to every prompt of the iteration's portion."""
    stage = Stage.open(stage_folder(argv), GenerateStage)
    launch = begin()
    settings, generate = stage.settings, stage.settings.generate
    source = policy_of(stage, launch)
    if launch.finished(stage):
        return
    encoder = source.encoder(settings.limits.model_dump())
    rows = settings.portion.rows_of(read_rows(stage.input("rows"), OfflinePair))
    jobs, long_prompts = jobs_of(
        rows, encoder, samples=generate.num_completions, seed=settings.seed, iteration=settings.iteration
    )
    batches = shards_of(generate, jobs, batch_size=generate.batch_size, max_new_tokens=generate.max_new_tokens)
    with open_engine(
        generate, source, encoder, batch_size=generate.batch_size, launch=launch, workspace=stage.workspace,
        longest=max((len(job.prompt_ids) for job in jobs), default=0) + generate.max_new_tokens,
    ) as engine:  # fmt: skip
        answer = partial(
            engine.answer, temperature=generate.temperature, top_p=generate.top_p, max_new_tokens=generate.max_new_tokens
        )
        shards = stage.workspace / "shards"
        fill_shards(
            shards, batches, answer, rank=launch.rank, processes=launch.processes,
            progress=launch.progress("generate", "batches"),
        )  # fmt: skip
    launch.wait()
    if launch.main:
        order = {row.prompt_id: index for index, row in enumerate(rows)}
        found = sorted(read_shards(shards, len(batches)), key=lambda row: (order[row["prompt_id"]], row["sample"]))
        write_rows(stage.out, found)
        wanted = len(rows) * generate.num_completions
        stage.publish(
            {"in": wanted, "out": len(found), "dropped": {"prompt too long": long_prompts * generate.num_completions}},
            policy=source.sha256, prompts_cut=encoder.cut_prompts, engine=engine_facts(generate.engine),
            cut_off=sum(row["finish_reason"] == "length" for row in found),
        )  # fmt: skip
    launch.wait()


if __name__ == "__main__":
    run_main(main)
