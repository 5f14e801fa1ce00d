"""A run of which every stage is done, each artifact a few letters: for what looks at artifacts and reads none."""

from __future__ import annotations

from pathlib import Path

from handbook_ext.core.stage import Stage
from handbook_ext.graph.makefile import write_run
from handbook_ext.graph.run_rules import StageRule, run_rules
from handbook_ext.recipes.run import Run
from tests.recipe_folder import mine

RECIPE = "rank: {ranker: reward_model}\nhealth: {max_length_gap: 9}\n"
FOLDER = Path("runs/mine-selm")


def make(run: Run, rule: StageRule, text: str = "1") -> None:
    """Makes the artifact of a rule as its stage would, with a text for content."""
    write_run(run, FOLDER.parent)
    stage = Stage.open(FOLDER / rule.folder, type(rule.settings))
    assert not stage.finished()
    if stage.artifact.suffix:
        stage.out.write_text(text)
    else:
        stage.out.mkdir()
        for name in ("train.jsonl", "test.jsonl", "sft.jsonl", "model.safetensors", "config.json"):
            (stage.out / name).write_text(text)
    stage.publish({"in": 0, "out": 0})


def finished_run(recipe: str = RECIPE) -> Run:
    """The run of a recipe in the working folder."""
    run = mine(recipe)
    for rule in run_rules(run):
        make(run, rule)
    return run
