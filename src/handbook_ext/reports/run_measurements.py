"""What SeRA's tables 5 and 6 measure on a run's own files: how judges agree, how long they take, which replies are unreadable.

The folders are those of an iteration. A file that is not there raises FileNotFoundError with its name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from handbook_ext.core.artifacts import json_object, manifest_path
from handbook_ext.core.errors import UserError
from handbook_ext.core.jsonl import read_rows
from handbook_ext.core.records import Completion, PreferencePair, Ranking
from handbook_ext.objectives.metrics import hierarchical_interval
from handbook_ext.reports.measurements import Measurement, wilson_interval
from handbook_ext.selection.judged import best_and_worst

Choices = Mapping[str, tuple[str, str]]
"""By prompt id, the ids of the completions that a judge takes for the better and the worse one."""
HOUR = 3600.0


def chosen_pairs(folder: Path) -> Choices:
    """Returns the pairs of own samples that an iteration trained on."""
    pairs = read_rows(_there(folder / "pairs.jsonl"), PreferencePair)
    own = [pair for pair in pairs if pair.chosen_origin == pair.rejected_origin == "on_policy"]
    return {pair.prompt_id: (pair.chosen_id, pair.rejected_id) for pair in own}


def ranked_pairs(folder: Path) -> Choices:
    """Returns the best and the worst candidate of each prompt that an iteration's ranker told apart."""
    found = {}
    for ranking in read_rows(_there(folder / "rankings.jsonl"), Ranking):
        best, worst = best_and_worst(ranking)
        if best.completion_id != worst.completion_id:
            found[ranking.prompt_id] = (best.completion_id, worst.completion_id)
    return found


def jaccard_of_pairs(ours: Choices, theirs: Choices) -> tuple[float, list[bool]]:
    """Returns the Jaccard similarity of two sets of pairs on the prompts that both have, and whether each such pair is the same.

    Over n prompts with s equal pairs it is s / (2 n - s): each judge has one pair for each prompt. Raises ValueError where the
    two share no prompt.
    """
    same = [ours[name] == theirs[name] for name in sorted(ours.keys() & theirs.keys())]
    if not same:
        raise ValueError("the two judges have no prompt in common")
    return sum(same) / (2 * len(same) - sum(same)), same


def agreement(folder: Path, against: Path | None) -> Measurement:
    """Returns the Jaccard similarity, in %, of an iteration's pairs with those of another judge on the same samples.

    Its interval is Wilson's, of the share of equal pairs. Raises UserError where the two did not judge the same samples.
    """
    if against is None:
        raise UserError("an agreement needs the recipe of another judge: name it as `against` of the column")
    ours, theirs = (
        ranked_pairs(each) if (each / "rankings.jsonl").is_file() else chosen_pairs(each) for each in (folder, against)
    )
    samples = [
        {row.completion_id for row in read_rows(_there(each / "completions.jsonl"), Completion)} for each in (folder, against)
    ]
    if samples[0] != samples[1]:
        common = len(samples[0] & samples[1])
        raise UserError(
            f"{folder} and {against} judged other samples ({common} of {len(samples[0] | samples[1])} in common): their policies "
            "differ; make both from one, which runs in one folder share under HANDBOOK_SHARE=1"
        )
    try:
        value, same = jaccard_of_pairs(ours, theirs)
    except ValueError as error:
        raise UserError(f"{folder} and {against}: {error}") from None
    # s / (2 n - s) rises with s / n, so the ends of the one are those of the other.
    low, high = (100 * end / (2 - end) for end in wilson_interval(sum(same), len(same)))
    return Measurement(100 * value, low, high, way="wilson", n=len(same), prompts=len(same), of=len(same))


def annotation_hours(folder: Path, against: Path | None = None) -> Measurement:
    """Returns the hours that marking an iteration's samples took: those of the ranker's stage, or of the scores of margins.

    Seconds of the stage's last start: what a killed one had done before does not count. Scores are of offline answers as well.
    """
    stages = [folder / "rankings.jsonl", folder / "logprobs"]
    manifest = next((found for each in stages if (found := json_object(manifest_path(each))) is not None), None)
    if manifest is None:
        raise FileNotFoundError(2, "no manifest", str(manifest_path(stages[0])))
    if manifest.get("shared_from"):
        raise UserError(f"{folder}: its marks were taken over from {manifest['shared_from']}, so its seconds say nothing")
    hours = float(manifest["seconds"]) / HOUR
    return Measurement(hours, hours, hours, way="none", n=int(manifest["counts"]["out"]))


def unreadable(folder: Path, against: Path | None = None) -> Measurement:
    """Returns the share of candidates, in %, to which an iteration's judge gave no readable verdict."""
    rankings = list(read_rows(_there(folder / "rankings.jsonl"), Ranking))
    failed = [np.array([each.failed for each in ranking.candidates], dtype=float).mean() for ranking in rankings]
    if not failed:
        raise UserError(f"{folder / 'rankings.jsonl'} is empty")
    share = hierarchical_interval([np.array(failed)])
    return Measurement(
        100 * share.value, 100 * share.low, 100 * share.high, way="bootstrap", n=len(failed), prompts=len(failed), of=len(failed)
    )


MEASURED_ON_RUNS: dict[str, Callable[[Path, Path | None], Measurement]] = {
    "agreement": agreement, "annotation_hours": annotation_hours, "unreadable": unreadable,
}  # fmt: skip


def _there(path: Path) -> Path:
    """Returns a path; raises FileNotFoundError where nothing is."""
    if not path.is_file():
        raise FileNotFoundError(2, "no such file", str(path))
    return path
