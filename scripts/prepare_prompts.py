"""A public prompt set -> prompts.jsonl, with what training has seen: `prepare_prompts.py runs/<run>/prompts/<set>`."""

from pathlib import Path

from handbook_ext.core.console import say
from handbook_ext.core.errors import UserError, run_main, stage_folder
from handbook_ext.core.jsonl import read_rows, write_rows
from handbook_ext.core.records import Demonstration, OfflinePair
from handbook_ext.core.stage import Stage
from handbook_ext.data.prompt_sets import held_out_prompts, marked, read_prompt_set
from handbook_ext.graph.stages_benchmarks import PromptsStage
from handbook_ext.recipes.settings_benchmarks import HELD_OUT


def main(argv: list[str]) -> None:
    """Reads the set with its references and stored outputs, and compares its prompts with those of training."""
    stage = Stage.open(stage_folder(argv), PromptsStage)
    settings = stage.settings
    places = [settings.source, settings.references, *settings.outputs.values()]
    stage.external = {place: stage.hash_of(Path(place)) for place in places if place is not None and Path(place).is_file()}
    if stage.finished():
        return
    if settings.source == HELD_OUT:
        prompts, known = held_out_prompts(read_rows(stage.input("test"), OfflinePair), settings.rows)
    else:
        prompts, known = read_prompt_set(
            settings.source, rows=settings.rows, references=settings.references, outputs=settings.outputs
        )
    training = [row.prompt for row in read_rows(stage.input("train"), OfflinePair)]
    training += [row.prompt for path in stage.inputs("sft") for row in read_rows(path, Demonstration)]
    prompts = marked(prompts, training)
    seen = [prompt.prompt_id for prompt in prompts if prompt.seen]
    if seen:
        what = f"{len(seen)} of the {len(prompts)} prompts of {settings.set} are among the training prompts, such as {seen[0]!r}"
        if settings.contaminated == "refuse":
            raise UserError(
                f"{what}: what is measured on them is no evaluation; train on other data, evaluate on another set, or set "
                "benchmarks.contaminated: mark, which goes on and marks every value"
            )
        say(f"note: {what}; every value measured on the set is marked as contaminated")
    write_rows(stage.out, prompts)
    stage.publish({"in": len(prompts), "out": len(prompts)}, of=known, seen=len(seen))


if __name__ == "__main__":
    run_main(main)
