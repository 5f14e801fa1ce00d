"""Offline pairs and samples -> logprobs/, the score store, before they are selected: `score_candidates.py runs/<run>/iter<N>`."""

from collections import defaultdict
from functools import partial
from pathlib import Path

from handbook_ext.core.errors import run_main, stage_folder
from handbook_ext.core.integrity import verified
from handbook_ext.core.jsonl import read_rows
from handbook_ext.core.records import Completion, OfflinePair
from handbook_ext.core.shards import batched, fill_shards, forget_other_shards
from handbook_ext.core.stage import Stage
from handbook_ext.graph.batch_sizes import BatchSizes
from handbook_ext.graph.stages import ScoreCandidatesStage
from handbook_ext.policies.launch import Launch, begin
from handbook_ext.policies.source import PolicySource, named_policy, policy_of
from handbook_ext.selection.log_prob_store import read_stores
from handbook_ext.training.scoring import (
    MICRO_BATCHES_PER_SHARD,
    EncodedGroups,
    TextGroup,
    encode_groups,
    open_as_trained,
    score_groups,
)


def main(argv: list[str]) -> None:
    """Scores under each policy what the margins need, but nothing that it has scored in this run before."""
    stage = Stage.open(stage_folder(argv), ScoreCandidatesStage)
    launch = begin()
    settings = stage.settings
    source = policy_of(stage, launch)
    # Earlier policies are identified by hash; their weights load only if the store misses a completion.
    policies = {name: named_policy(stage, launch, name) for name in settings.texts}
    stage.external |= {name: policy.sha256 for name, policy in policies.items()}
    if launch.finished(stage):
        return
    launch.first_alone(lambda: forget_other_shards(stage.out, [launch.training_dtype(settings.model), launch.sharded]))
    offline = settings.portion.rows_of(read_rows(stage.input("rows"), OfflinePair))
    samples = [row for path in stage.inputs("completions") for row in read_rows(path, Completion)]
    groups = {kind: text_groups(offline, samples, kind) for kind in ("offline", "samples")}
    encoder = source.encoder(settings.limits.model_dump(), stage.run)
    known, scored, stored, too_long, prompts, first = read_stores(stage.inputs("log_probs")), {}, {}, 0, set(), 0
    for name, kinds in settings.texts.items():
        wanted = joined([group for kind in kinds for group in groups[kind]])
        new = [group.without(known.under(policies[name].sha256)) for group in wanted]
        with launch.main_first():
            encoded = encode_groups(new, encoder)
        prompts |= {group.prompt_id for group in wanted}
        scored[name], too_long = sum(len(group.texts) for group in new), max(too_long, encoded.too_long)
        stored[name] = sum(len(group.texts) for group in wanted) - scored[name]
        batches = encoded.batches(settings.sizes.per_device_train_batch_size, settings.sizes.micro_batch_tokens)
        shards = batched(batches, MICRO_BATCHES_PER_SHARD)
        if shards:
            score_under(policies[name], encoded, shards, first, stage.out, name=name, sizes=settings.sizes, launch=launch)
        launch.wait()
        first += len(shards)
    if launch.main:
        stage.out.mkdir(exist_ok=True)
        stage.publish(
            {"in": len(prompts), "out": len(prompts) - too_long, "dropped": {"prompt too long": too_long}},
            policy=source.sha256, scored=scored, already_stored=stored,
        )  # fmt: skip
    launch.wait()


def score_under(
    source: PolicySource, encoded: EncodedGroups, shards: list[list[list[int]]], first: int, folder: Path, *,
    name: str, sizes: BatchSizes, launch: Launch,
) -> None:  # fmt: skip
    """Fills the shards of a folder, from number `first` on, with log-probs under one policy, whose files are checked first."""
    if source.artifact is not None:
        launch.first_alone(lambda: verified(source.artifact))
    policy = open_as_trained(source, launch, torch_compile=sizes.torch_compile, liger=sizes.liger).to(launch.device)
    pad_id = source.load_tokenizer().pad_token_id
    work = partial(score_groups, policy, encoded, policy_name=source.sha256, pad_id=pad_id, head_chunk=sizes.head_chunk)
    with launch.precision(sizes.bf16):
        fill_shards(
            folder, shards, work, rank=launch.rank, processes=launch.processes, first=first,
            progress=launch.progress(f"score by {name}", "shards"),
        )  # fmt: skip


def text_groups(offline: list[OfflinePair], samples: list[Completion], kind: str) -> list[TextGroup]:
    """Returns the prompts with their offline answers, or with their samples."""
    groups = {pair.prompt_id: TextGroup(pair.prompt_id, pair.prompt) for pair in offline}
    if kind == "offline":
        for pair in offline:
            groups[pair.prompt_id].add(pair.chosen_answer)
            groups[pair.prompt_id].add(pair.rejected_answer)
    for row in samples if kind == "samples" else []:
        groups[row.prompt_id].add(row.answer)
    return [group for group in groups.values() if group.texts]


def joined(groups: list[TextGroup]) -> list[TextGroup]:
    """Returns one group per prompt, which shares the prompt among all its texts."""
    texts = defaultdict(dict)
    prompts = {group.prompt_id: group.prompt for group in groups}
    for group in groups:
        texts[group.prompt_id] |= group.texts
    return [TextGroup(name, prompt, texts[name]) for name, prompt in prompts.items()]


if __name__ == "__main__":
    run_main(main)
