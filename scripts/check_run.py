"""Rows, schedules and tokens of a run, before a stage loads a policy -> check.json: `check_run.py runs/<run>`."""

from pathlib import Path

from handbook_ext.core.artifacts import WEIGHTS, checkpoint_files
from handbook_ext.core.console import say, tell
from handbook_ext.core.errors import run_main, stage_folder
from handbook_ext.core.jsonl import read_rows, write_json
from handbook_ext.core.records import OfflinePair
from handbook_ext.core.stage import Stage
from handbook_ext.graph.stages import CheckStage
from handbook_ext.planning.context import context_notes
from handbook_ext.planning.first_lines import Steps, steps_lines
from handbook_ext.planning.schedule import notes_of, refuse_idle, schedules_of
from handbook_ext.planning.tokens import checked_tokens
from handbook_ext.policies.models import template_hashes

SKIPPED = "tokens: not looked at, since the policy is built from scratch, and SFT makes its tokenizer"


def main(argv: list[str]) -> None:
    """Refuses a run in which a training could not learn, or whose stages would see different tokens."""
    stage = Stage.open(stage_folder(argv), CheckStage)
    settings = stage.settings
    # Not the weights, which decide no token.
    for folder in (settings.model.name_or_path, *(rank.model for rank in settings.rankers)):
        files = checkpoint_files(Path(folder)) if folder is not None and Path(folder).is_dir() else []
        stage.external |= {str(path): stage.hash_of(path) for path in files if path.suffix not in WEIGHTS}
    stage.external |= template_hashes(settings.model, stage.hash_of)
    if stage.finished():
        return
    rows = read_rows(stage.input("train"), OfflinePair)
    roles = [role for role in settings.inputs if role != "policy"]
    counts = {role: sum(1 for _ in stage.input(role).open(encoding="utf-8")) for role in roles}
    schedules = schedules_of(settings, rows, counts.get("sft", 0))
    refuse_idle(schedules)
    from_scratch = settings.model.name_or_path is None
    fetched = next(iter(stage.inputs("policy")), None)
    long = context_notes(settings, fetched)
    cuts = [] if from_scratch else checked_tokens(settings, rows, fetched)
    notes, told = [*notes_of(schedules), *long], [SKIPPED] if from_scratch else [cut.line for cut in cuts]
    steps = [Steps.of_record(each.record()) for each in schedules if each.section == "train"]
    portion = next(iter(settings.iterations.values())).portion
    for note in notes:
        say(f"note: {note}")
    for line in [*steps_lines(steps, portion.of, portion.most), *told]:
        tell(f"check: {line}")
    held = ", ".join(f"{count:,} {name}" for name, count in counts.items())
    lines = [f"rows: {held}", *(each.line for each in schedules), *told, *(f"note: {note}" for note in notes)]
    result = {
        "rows": counts, "schedules": [each.record() for each in schedules],
        "truncated": None if from_scratch else [cut.record() for cut in cuts], "lines": lines,
    }  # fmt: skip
    write_json(stage.out, result, indent=1)
    stage.publish({"in": len(rows), "out": len(rows)})


if __name__ == "__main__":
    run_main(main)
