"""One training pair through every iteration of a run: what it was made of, why it was kept or dropped, and who trained on it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from handbook_ext.core.artifacts import finished_manifest
from handbook_ext.core.errors import UserError
from handbook_ext.core.integrity import verified
from handbook_ext.core.jsonl import iter_jsonl
from handbook_ext.core.records import OfflinePair
from handbook_ext.graph.rule import ROWS
from handbook_ext.recipes.yaml_tree import nearest
from handbook_ext.reports.decisions import Selection, decision
from handbook_ext.reports.evaluations import Json
from handbook_ext.reports.stored_rewards import policy_names, rewards_by_term, stored_log_probs
from handbook_ext.reports.trails import Trail, candidates, read_trails, rows_about, why_it_won
from handbook_ext.reports.trained_steps import training_of

SHORTEST = 3  # Letters of an id whose beginning is looked for.
MOST = 2000  # Ids that are compared with one that is not there.


def explain_pair(run: Path, pair: str) -> Json:
    """Returns the story of a training pair, by its prompt id or a beginning of it that no other has.

    An iteration that never read the prompt has one line in `elsewhere` instead. Raises UserError for an id that is not there.
    """
    prompt_id = full_id(run, pair)
    names, stories, elsewhere = policy_names(run), [], []
    for folder in iterations_of(run):
        if finished_manifest(folder / "pairs.jsonl") is None:
            elsewhere.append(f"{folder.name}: its pairs are not made yet")
            continue
        selection = Selection.of(folder)
        trail = read_trails(folder, [prompt_id])[prompt_id]
        if not trail.pairs and (trail.offline is None or not selection.given(trail.offline)):
            portion = selection.settings.portion
            elsewhere.append(f"{folder.name}: selects from another part of the data ({portion.index + 1} of {portion.of})")
            continue
        stories.append(_iteration(folder, selection, trail, names))
    return {"run": str(run), "prompt_id": prompt_id, **_data(run, prompt_id), "iterations": stories, "elsewhere": elsewhere}


def full_id(run: Path, given: str) -> str:
    """Returns the prompt id of the training data that is, or alone begins with, what is given.

    Raises UserError where there is none, or more than one; it says where ids are found.
    """
    rows = run / ROWS / "train.jsonl"
    if not given:
        raise UserError(
            f"no pair is named; give its prompt id, such as PAIR=<the prompt_id of a line of {run}/iter1/pairs.jsonl>"
        )
    if not rows.is_file():
        raise UserError(f"{rows} is not there; give the folder of a run that has begun, such as runs/tiny-selm")
    names = list(dict.fromkeys(_ids(rows)))
    if given in names:
        return given
    alike = [name for name in names if name.startswith(given)] if len(given) >= SHORTEST else []
    if len(alike) == 1:
        return alike[0]
    if alike:
        shown = ", ".join(alike[:5]) + (", ..." if len(alike) > 5 else "")
        raise UserError(f"'{given}' begins {len(alike)} prompt ids of {rows}: {shown}; give more of the one that is meant")
    test = run / ROWS / "test.jsonl"
    if test.is_file() and given in _ids(test):
        raise UserError(f"'{given}' is a held-out prompt ({test}): nothing trains on it; the report shows its answers")
    near = nearest(given, _alike(given, names))
    where = f"ids are the column prompt_id of {rows} and of iter<N>/pairs.jsonl, and stand beside the report's training pairs"
    raise UserError(f"no prompt of {rows} has the id '{given}'{near}; {where}")


def _alike(given: str, names: Sequence[str]) -> list[str]:
    """Returns the ids that begin or end as what is given, of like length first: all of a large data set take half a minute."""
    found = [name for name in names if name.startswith(given[:SHORTEST]) or name.endswith(given[-SHORTEST:])]
    return sorted(found, key=lambda name: abs(len(name) - len(given)))[:MOST]


def _ids(path: Path) -> Iterator[str]:
    """Yields the prompt ids of a file of rows."""
    return (str(row["prompt_id"]) for _, row in iter_jsonl(path))


def iterations_of(run: Path) -> list[Path]:
    """Returns the folders of a run's iterations, in their order."""
    found = [path for path in run.glob("iter*") if re.fullmatch(r"iter\d+", path.name) and path.is_dir()]
    return sorted(found, key=lambda path: int(path.name[4:]))


def _data(run: Path, prompt_id: str) -> Json:
    """Returns what the data say of a prompt: its messages, where it came from, whether its label was swapped."""
    (row,) = [row for _, row in rows_about(run / ROWS / "train.jsonl", OfflinePair, [prompt_id])[prompt_id]][:1]
    return {"prompt": row.prompt, "source": row.source, "swapped": row.swapped}


def _iteration(folder: Path, selection: Selection, trail: Trail, names: dict[str, str]) -> Json:
    """Returns what one iteration did with a prompt."""
    among = candidates(trail)
    labels = {each["completion_id"]: each["label"] for each in among}
    stores = {*selection.files.get("log_probs", []), (folder / "logprobs").resolve()}
    log_probs = stored_log_probs(sorted(stores), labels)
    rewards = rewards_by_term(selection.settings.model_dump(), labels, log_probs, names)
    among = [each | {"implicit": rewards.get(each["completion_id"], {}).get("value")} for each in among]
    return {
        "iteration": folder.name,
        "starts_from": trail.starts_from,
        "rule": trail.rule,
        "notes": _notes(folder, trail),
        "candidates": among,
        "ties": None if trail.ranking is None else trail.ranking.ties,
        "disagreements": None if trail.ranking is None else trail.ranking.disagreements,
        "log_probs": [
            {"completion_id": name, "policy": names.get(policy, policy[:12]), "total": one.total, "tokens": one.tokens}
            for policy, found in log_probs.items()
            for name, one in found.items()
        ],
        "terms": [{"label": labels[name], **reward} for name, reward in rewards.items()],
        "unit": selection.unit,
        "kept": [why_it_won(trail, pair, among) for _, pair in trail.pairs],
        "decision": decision(selection, trail),
        "training": training_of(folder, [number for number, _ in trail.pairs]),
    }


def _notes(folder: Path, trail: Trail) -> list[str]:
    """Returns what is to be known of an iteration's files: a stale one, and who sampled and judged."""
    notes = []
    try:
        verified(folder / "pairs.jsonl")
    except UserError as error:
        notes.append(f"note: {error}")
    for name, verb in (("completions", "sampled"), ("rankings", "judged")):
        manifest = finished_manifest(folder / f"{name}.jsonl")
        if manifest is None or not (trail.samples if name == "completions" else trail.ranking):
            continue
        if name == "rankings":
            rank = manifest["settings"].get("rank", {})
            notes.append(" ".join([verb, "by", *filter(None, (rank.get("ranker"), rank.get("model")))]))
        else:
            how = manifest["settings"].get("generate", {})
            about = f"temperature {how.get('temperature')}, top_p {how.get('top_p')}, {how.get('num_completions')} samples"
            notes.append(f"{verb} by {trail.starts_from} (policy {str(manifest.get('policy'))[:12]}), {about}")
    return notes
