"""Policy + prompts -> completions.jsonl: `generate_completions.py runs/<run>/iter<N>`; keeps its finished shards."""

from functools import partial

from handbook_ext.core.errors import UserError, run_main, stage_folder
from handbook_ext.core.records import OfflinePair, derived_seed, read_rows, write_rows
from handbook_ext.core.shards import batched, fill_shards, read_shards
from handbook_ext.core.stage import Stage
from handbook_ext.policies.chat import ChatEncoder
from handbook_ext.policies.launch import begin
from handbook_ext.policies.models import external_checkpoint_hashes, policy_hash, policy_source
from handbook_ext.recipes.settings import ENGINES_HERE, GenerateSettings, ModelSettings
from handbook_ext.recipes.writing import load_stage
from handbook_ext.sampling.generation import Job, generate_batch, open_policy
from handbook_ext.selection.rules import portion


def main(argv: list[str]) -> None:
    """Samples `num_completions` answers to every prompt of the iteration's portion."""
    folder = stage_folder(argv)
    run = folder.parent
    launch = begin()
    settings = load_stage(folder / "generate.yaml")
    model, generate = ModelSettings(**settings["model"]), GenerateSettings(**settings["generate"])
    if generate.engine not in ENGINES_HERE:
        raise UserError(f"generate.engine: {generate.engine!r} is not part of this version; it has: {', '.join(ENGINES_HERE)}")
    source, artifact = policy_source(model, run, settings["policy_from"])
    rows_file = run / "data" / "rows" / "train.jsonl"
    stage = Stage(folder / "completions.jsonl", settings, [rows_file, *([artifact] if artifact else [])])
    if artifact is None:
        stage.external = external_checkpoint_hashes(source, model)
    if launch.finished(stage):
        return
    policy, tokenizer = open_policy(source, model, trained_here=artifact is not None, device=launch.device)
    encoder = ChatEncoder(tokenizer, **settings["limits"])
    rows = portion(read_rows(rows_file, OfflinePair), **settings["portion"])
    jobs, long_prompts = [], 0
    for row in rows:
        ids = encoder.prompt_ids(row.prompt, row.source)
        long_prompts += ids is None
        for sample in range(generate.num_completions if ids else 0):
            seed = derived_seed(settings["seed"], settings["iteration"], row.prompt_id, sample)
            jobs.append(Job(row.prompt_id, sample, row.prompt, ids or [], seed))
    jobs.sort(key=lambda job: (len(job.prompt_ids), job.prompt_id, job.sample))
    batches = batched(jobs, generate.batch_size)
    answer = partial(
        generate_batch, policy, tokenizer, temperature=generate.temperature, top_p=generate.top_p,
        max_new_tokens=generate.max_new_tokens, end_ids=encoder.end_ids(),
    )  # fmt: skip
    shards = stage.workspace / "shards"
    fill_shards(
        shards, batches, answer, rank=launch.rank, processes=launch.processes,
        progress=launch.progress("generate", "batch"),
    )  # fmt: skip
    launch.wait()
    if launch.main:
        order = {row.prompt_id: place for place, row in enumerate(rows)}
        found = sorted(read_shards(shards, len(batches)), key=lambda row: (order[row["prompt_id"]], row["sample"]))
        write_rows(stage.out, found)
        wanted = len(rows) * generate.num_completions
        stage.publish(
            {"in": wanted, "out": len(found), "dropped": {"prompt too long": long_prompts * generate.num_completions}},
            policy=policy_hash(source, model), prompts_cut=encoder.cut_prompts,
        )  # fmt: skip
    launch.wait()


if __name__ == "__main__":
    run_main(main)
