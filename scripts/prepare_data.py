"""Prompts and offline preference pairs of a run -> data/rows/{sft,train,test}.jsonl: `prepare_data.py runs/<run>`."""

from pathlib import Path

from handbook_ext.core.console import say
from handbook_ext.core.errors import run_main, stage_folder
from handbook_ext.core.jsonl import write_rows
from handbook_ext.core.records import content_id
from handbook_ext.core.stage import Stage
from handbook_ext.data.offline import load_offline_data
from handbook_ext.graph.stages import DataStage
from handbook_ext.selection.rules import portion, require


def main(argv: list[str]) -> None:
    """Reads the recipe's data once, checks every row, and writes it in the form that all stages read."""
    stage = Stage.open(stage_folder(argv), DataStage)
    data = stage.settings.data
    named = [name for name in (data.train, data.test, data.sft) if name is not None]
    stage.external = {name: stage.hash_of(Path(name)) for name in named if Path(name).is_file()}
    if stage.finished():
        return
    loaded = load_offline_data(data, stage.settings.seed)
    for need in stage.settings.needs:
        for row in loaded.train:
            require(row, need)  # Now, and not after a training.
    parts = [portion(loaded.train, index, data.portions, data.portion_rows) for index in range(data.portions)]  # Now as well.
    stage.out.mkdir(exist_ok=True)
    write_rows(stage.out / "sft.jsonl", loaded.demonstrations)
    write_rows(stage.out / "train.jsonl", loaded.train)
    write_rows(stage.out / "test.jsonl", loaded.test)
    seen = {content_id(row.prompt) for row in loaded.train} & {content_id(row.prompt) for row in loaded.test}
    if seen:
        say(f"note: {len(seen)} held-out prompts are also training prompts; results on them tell less")
    if loaded.dropped:
        reasons = ", ".join(f"{reason} {count}" for reason, count in loaded.dropped.most_common())
        say(f"note: {loaded.dropped.total()} of {loaded.read} rows were dropped: {reasons}")
    stage.publish(
        {"in": loaded.read, "out": loaded.kept, "dropped": dict(loaded.dropped)},
        rows={"sft": len(loaded.demonstrations), "train": len(loaded.train), "test": len(loaded.test)},
        swapped=[pair.prompt_id for pair in loaded.train if pair.swapped],
        unused=len(loaded.train) - sum(map(len, parts)),
        left_out=dict(loaded.left_out),
        held_out_prompts_in_train=len(seen),
    )


if __name__ == "__main__":
    run_main(main)
