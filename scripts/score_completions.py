"""pairs.jsonl + the policy that starts the iteration -> logprobs/, the score store: `score_completions.py runs/<run>/iter<N>`."""

from functools import partial

from handbook_ext.core.errors import run_main, stage_folder
from handbook_ext.core.jsonl import read_rows
from handbook_ext.core.records import PreferencePair
from handbook_ext.core.shards import fill_shards, forget_other_shards
from handbook_ext.core.stage import Stage
from handbook_ext.graph.stages import ScorePairsStage
from handbook_ext.policies.encoding import encode_pairs
from handbook_ext.policies.launch import begin
from handbook_ext.policies.source import policy_of
from handbook_ext.training.plan_loader import plan_for
from handbook_ext.training.scoring import open_as_trained, score_shard, store_batches


def main(argv: list[str]) -> None:
    """Scores every completion that training will meet, once, under the policy that training starts from."""
    stage = Stage.open(stage_folder(argv), ScorePairsStage)
    launch = begin()
    settings, sizes = stage.settings, stage.settings.sizes
    source = policy_of(stage, launch)
    if launch.finished(stage):
        return
    encoder = source.encoder(settings.limits.model_dump(), stage.run)
    pad_id = encoder.tokenizer.pad_token_id
    pairs = read_rows(stage.input("pairs"), PreferencePair)
    with launch.main_first():
        encoded = encode_pairs(pairs, encoder, explore=settings.explore)
    policy = open_as_trained(source, launch, torch_compile=sizes.torch_compile, liger=sizes.liger).to(launch.device)
    plan = plan_for(
        encoded.lengths, settings.global_batch_size, per_device=sizes.per_device_train_batch_size,
        tokens=sizes.micro_batch_tokens, epochs=sizes.epochs, seed=settings.seed, processes=launch.processes,
    )  # fmt: skip
    work = partial(score_shard, policy, encoded, policy_name=source.sha256, pad_id=pad_id, head_chunk=sizes.head_chunk)
    batches = store_batches(plan)
    cut = [[slot.index for slot in batch] for shard in batches for batch in shard]
    launch.first_alone(lambda: forget_other_shards(stage.out, [launch.training_dtype(settings.model), launch.sharded, *cut]))
    with launch.precision(sizes.bf16):
        fill_shards(
            stage.out, batches, work, rank=launch.rank, processes=launch.processes,
            progress=launch.progress("score", "shards"),
        )  # fmt: skip
    launch.wait()
    if launch.main:
        stage.publish(
            {"in": len(pairs), "out": len(encoded.pairs), "dropped": dict(encoded.dropped)},
            policy=source.sha256, completions=sum(map(len, encoded.ids)), notes=dict(encoded.notes),
        )  # fmt: skip
    launch.wait()


if __name__ == "__main__":
    run_main(main)
