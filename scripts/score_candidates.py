"""Offline pairs and samples -> logprobs/, the score store, before they are selected: `score_candidates.py runs/<run>/iter<N>`."""

from collections import defaultdict
from functools import partial

from handbook_ext.recipes.writing import load_stage

from handbook_ext.core.artifacts import verified
from handbook_ext.core.errors import run_main, stage_folder
from handbook_ext.core.records import Completion, OfflinePair, read_rows
from handbook_ext.core.shards import batched, fill_shards
from handbook_ext.core.stage import Stage
from handbook_ext.policies.chat import ChatEncoder
from handbook_ext.policies.launch import Launch, begin
from handbook_ext.policies.models import external_checkpoint_hashes, load_tokenizer, named_policy_hash, policy_source
from handbook_ext.recipes.settings import ModelSettings
from handbook_ext.selection.log_prob_store import read_stores
from handbook_ext.selection.rules import portion
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
    folder = stage_folder(argv)
    run = folder.parent
    launch = begin()
    settings = load_stage(folder / "score.yaml")
    model = ModelSettings(**settings["model"])
    source, artifact = policy_source(model, run, settings["policy_from"])
    rows_file = run / "data" / "rows" / "train.jsonl"
    stores = [run / name / "logprobs" for name in settings["stores"]]
    sampled = any("samples" in kinds for kinds in settings["texts"].values())
    completions = [folder / "completions.jsonl"] if sampled else []
    stage = Stage(folder / "logprobs", settings, [rows_file, *completions, *stores, *([artifact] if artifact else [])])
    # Of the policies before, only their names are needed where all they must score is stored already.
    stage.external = {name: named_policy_hash(run, name, model) for name in settings["texts"]}
    if "start" in settings["texts"]:
        stage.external |= external_checkpoint_hashes(str(model.name_or_path), model)
    if launch.finished(stage):
        return
    offline = portion(read_rows(rows_file, OfflinePair), **settings["portion"])
    samples = [row for path in completions for row in read_rows(path, Completion)]
    groups = {kind: text_groups(offline, samples, kind) for kind in ("offline", "samples")}
    encoder = ChatEncoder(load_tokenizer(source, model, trained_here=artifact is not None), **settings["limits"])
    known, scored, stored, too_long, first = read_stores(stores), {}, {}, 0, 0
    for name, kinds in settings["texts"].items():
        wanted = joined([group for kind in kinds for group in groups[kind]])
        new = [group.without(known.under(stage.external[name])) for group in wanted]
        encoded = encode_groups(new, encoder)
        scored[name], too_long = sum(len(group.texts) for group in new), max(too_long, encoded.too_long)
        stored[name] = sum(len(group.texts) for group in wanted) - scored[name]
        first += score_under(name, encoded, encoder.tokenizer.pad_token_id, first, stage=stage, model=model, launch=launch)
    if launch.main:
        stage.out.mkdir(exist_ok=True)
        total = len(groups["offline"]) + len(groups["samples"])
        stage.publish(
            {"in": total, "out": total - too_long, "dropped": {"prompt too long": too_long}},
            policy=stage.external[settings["policy_from"] or "start"], scored=scored, already_stored=stored,
        )  # fmt: skip
    launch.wait()


def score_under(
    name: str, encoded: EncodedGroups, pad_id: int, first: int, *, stage: Stage, model: ModelSettings, launch: Launch
) -> int:
    """Fills the shards from number `first` on with log-probs under one policy; returns how many shards they are.

    The policy is loaded only where something is to be scored, and its files are checked then.
    """
    sizes = stage.settings["sizes"]
    shards = batched(encoded.batches(sizes["per_device_train_batch_size"]), MICRO_BATCHES_PER_SHARD)
    if shards:
        source, artifact = policy_source(model, stage.artifact.parent.parent, None if name == "start" else name)
        if artifact is not None:
            verified(artifact)
        policy = open_as_trained(source, model, launch, trained_here=artifact is not None).to(launch.device)
        work = partial(
            score_groups, policy, encoded, policy_name=stage.external[name], pad_id=pad_id, head_chunk=sizes["head_chunk"]
        )
        with launch.precision(sizes["bf16"]):
            fill_shards(
                stage.out, shards, work, rank=launch.rank, processes=launch.processes, first=first,
                progress=launch.progress(f"score by {name}", "shard"),
            )  # fmt: skip
    launch.wait()
    return len(shards)


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
