"""pairs.jsonl + the policy that starts the iteration -> logprobs/, the score store: `score_completions.py runs/<run>/iter<N>`."""

from functools import partial

from handbook_ext.core.errors import run_main, stage_folder
from handbook_ext.core.records import PreferencePair, read_rows
from handbook_ext.core.shards import fill_shards
from handbook_ext.core.stage import Stage
from handbook_ext.objectives.batching import BatchPlan
from handbook_ext.policies.chat import ChatEncoder
from handbook_ext.policies.encoding import encode_pairs
from handbook_ext.policies.launch import begin
from handbook_ext.policies.models import external_checkpoint_hashes, load_tokenizer, policy_hash, policy_source
from handbook_ext.recipes.settings import ModelSettings
from handbook_ext.recipes.writing import load_stage
from handbook_ext.training.scoring import open_as_trained, score_shard, store_batches


def main(argv: list[str]) -> None:
    """Scores every completion that training will meet, once, under the policy that training starts from."""
    folder = stage_folder(argv)
    run = folder.parent
    launch = begin()
    settings = load_stage(folder / "score.yaml")
    model, sizes = ModelSettings(**settings["model"]), settings["plan"]
    source, artifact = policy_source(model, run, settings["policy_from"])
    stage = Stage(folder / "logprobs", settings, [folder / "pairs.jsonl", *([artifact] if artifact else [])])
    if artifact is None:
        stage.external = external_checkpoint_hashes(source, model)
    if launch.finished(stage):
        return
    tokenizer = load_tokenizer(source, model, trained_here=artifact is not None)
    policy = open_as_trained(source, model, launch, trained_here=artifact is not None).to(launch.device)
    pairs = read_rows(folder / "pairs.jsonl", PreferencePair)
    encoded = encode_pairs(pairs, ChatEncoder(tokenizer, **settings["limits"]), explore=sizes["explore"])
    plan = BatchPlan(encoded.lengths, sizes["global_batch_size"], sizes["per_device_train_batch_size"], settings["seed"])
    name = policy_hash(source, model)
    work = partial(score_shard, policy, encoded, policy_name=name, pad_id=tokenizer.pad_token_id, head_chunk=sizes["head_chunk"])
    with launch.precision(sizes["bf16"]):
        fill_shards(
            stage.out, store_batches(plan), work, rank=launch.rank, processes=launch.processes,
            progress=launch.progress("score", "shard"),
        )  # fmt: skip
    launch.wait()
    if launch.main:
        stage.publish(
            {"in": len(pairs), "out": len(encoded.pairs), "dropped": dict(encoded.dropped)},
            policy=name, completions=sum(map(len, encoded.ids)), notes=dict(encoded.notes),
        )  # fmt: skip
    launch.wait()


if __name__ == "__main__":
    run_main(main)
