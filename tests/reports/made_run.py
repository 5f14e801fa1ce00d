"""A small finished run with true manifests: data, samples, verdicts and stores are made up, pairs are selected by the stage."""

from __future__ import annotations

import json
import os
import runpy
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import yaml

from handbook_ext.core.artifacts import manifest_path
from handbook_ext.core.jsonl import Row, write_rows
from handbook_ext.core.records import Completion, OfflinePair, assistant, user
from handbook_ext.core.stage import Stage
from handbook_ext.core.stage_settings import StageSettings
from handbook_ext.judging.ranker import Verdict, candidates_of, ranking
from handbook_ext.selection.log_prob_store import store_row
from tests.recipe_folder import ROOT

SELECT = {
    "explore": True, "explore_as_chosen": "keep", "keep": 0.5, "keep_by": "margin", "bootstrap": 0.5, "gamma": 0.0,
    "margin_reference": "previous", "rejected_rank": 1,
}  # fmt: skip


def publish(artifact: Path, stage: str, inputs: Iterable[Path] = (), **parts: Any) -> Path:
    """Publishes an artifact as a stage does: `rows` of a file or `files` of a folder; settings, `external`, and other facts."""
    roles = {f"input{number}": os.path.relpath(path, artifact.parent) for number, path in enumerate(inputs)}
    settings = StageSettings(stage=stage, inputs=roles, seed=parts.pop("seed", 1))
    made = Stage(artifact, settings, settings.model_dump() | parts.pop("settings", {}))
    made.external |= parts.pop("external", {})
    assert not made.finished()
    files: dict[str, Sequence[Row | dict[str, Any]]] = parts.pop("files", {})
    if files:
        made.out.mkdir()
        for name, rows in files.items():
            write_rows(made.out / name, rows)
    else:
        write_rows(made.out, parts.pop("rows"))
    made.publish(parts.pop("counts", {"in": 1, "out": 1}), **parts)
    return artifact


def offline(number: int, **columns: Any) -> OfflinePair:
    """Row `number` of ten, of prompt p<number>, whose chosen is the longer text."""
    about = {
        "score_chosen": 2.0 + number,
        "score_rejected": 1.0,
        "raw_row": number,
        "raw_rows": 10,
        "source": f"made row {number}",
    }
    prompt = user(f"Question {number}?")
    return OfflinePair.of(f"p{number}", prompt, assistant(f"good {number} yes"), assistant(f"bad {number}"), **(about | columns))


def sample(row: OfflinePair, number: int, text: str, **columns: Any) -> Completion:
    """A sample of a row's prompt."""
    about = {"seed": 40 + number, "prompt_tokens": 2, "completion_tokens": 5, "finish_reason": "stop"}
    return Completion.of(row.prompt_id, row.prompt, text, sample=number, **(about | columns))


def make_data(run: Path, rows: Sequence[OfflinePair]) -> Path:
    """The run's rows, with one held-out prompt."""
    held_out = offline(0).renamed("held0")
    return publish(run / "data" / "rows", "data", files={"train.jsonl": rows, "test.jsonl": [held_out]}) / "train.jsonl"


def make_samples(folder: Path, rows: Path, samples: Sequence[Completion], policy: str = "hash of sft") -> Path:
    """An iteration's samples."""
    settings = {"policy": "sft", "generate": {"temperature": 0.7, "top_p": 0.9, "num_completions": 2}}
    about = {"rows": samples, "settings": settings, "policy": policy}
    return publish(folder / "completions.jsonl", "generate", [rows], **about)


def make_rankings(
    folder: Path, rows: Path, samples: Sequence[Completion], offline_rows: Sequence[OfflinePair], scores: dict[str, list[Any]]
) -> Path:
    """An iteration's rankings, from the scores of each prompt's candidates; None is a failed verdict."""
    found = []
    for row in offline_rows:
        among = candidates_of([one for one in samples if one.prompt_id == row.prompt_id], row)
        verdicts = [Verdict(0.0, failed=True) if score is None else Verdict(score) for score in scores[row.prompt_id]]
        found.append(ranking(row.prompt_id, row.prompt, list(zip(among, verdicts, strict=True))))
    inputs = [folder / "completions.jsonl", rows]
    return publish(folder / "rankings.jsonl", "rank", inputs, rows=found, settings={"rank": {"ranker": "oracle", "model": None}})


def make_store(folder: Path, log_probs: dict[str, dict[str, float]], policy: str, external: dict[str, str]) -> Path:
    """An iteration's score store: log-probs (nats) over five tokens by policy hash and completion id."""
    rows = [store_row(name, completion, total, 5) for name, found in log_probs.items() for completion, total in found.items()]
    about = {"files": {"shard-000000.jsonl": rows}, "external": external, "policy": external.get(policy, policy)}
    return publish(folder / "logprobs", "score", settings={"policy": policy}, **about)


def select(
    folder: Path, rule: str, inputs: dict[str, Any], *, policy: str = "sft", portion: int = 0, of: int = 1, **more: Any
) -> Path:
    """An iteration's pairs, by the stage itself; `more` are settings of select.yaml or of its section."""
    section = {"rule": rule} | SELECT | {key: more.pop(key) for key in list(more) if key in SELECT}
    settings = {
        "stage": "select", "recipe": "mine-run", "overrides": [], "seed": 1, "inputs": inputs, "iteration": folder.name,
        "policy": policy, "portion": {"index": portion, "of": of, "most": None}, "select": section, **more,
    }  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "select.yaml").write_text(yaml.safe_dump(settings))
    runpy.run_path(str(ROOT / "scripts" / "select_pairs.py"))["main"]([str(folder)])
    return folder / "pairs.jsonl"


def make_policy(folder: Path, *, trained: int | None = None, steps: int = 2, batch: int = 2, **about: Any) -> Path:
    """An iteration's policy, trained on its pairs; of these `trained` were left after encoding."""
    pairs = folder / "pairs.jsonl"
    count = json.loads(manifest_path(pairs).read_text())["counts"]["out"]
    left = count if trained is None else trained
    counts = {"in": count, "out": left, "dropped": {"prompt too long": count - left}}
    log = {"log_history": [{"step": 1, "loss": 0.7, "rewards/margins": 0.1}, {"step": 2, "loss": 0.5, "rewards/margins": 0.3}]}
    settings = {"train": {"global_batch_size": batch, "num_train_epochs": 1.0}}
    facts = {"counts": counts, "steps": steps, "start": "hash of sft"} | about
    policy = publish(folder / "policy", "train", [pairs], files={"weights.jsonl": [{}]}, settings=settings, **facts)
    (policy / "trainer_state.json").write_text(json.dumps(log))
    return policy


ROWS = [offline(number, swapped=number == 1) for number in range(4)]


def make_judged_run(run: Path) -> Path:
    """A run of one iteration by SELM's rule A: p1 is won by the data, p2 by a sample, p3 is a draw, p0's first verdict failed."""
    rows, folder = make_data(run, ROWS), run / "iter1"
    samples = [sample(row, number, f"sample {number} of {row.prompt_id}") for row in ROWS for number in range(2)]
    make_samples(folder, rows, samples)
    scores = {"p0": [None, 0.4, 0.2, 0.3], "p1": [0.5, 0.1, 0.9, 0.1], "p2": [0.3, 0.8, 0.2, 0.1], "p3": [0.5] * 4}
    make_rankings(folder, rows, samples, ROWS, scores)
    select(folder, "best_and_worst", {"rows": "../data/rows/train.jsonl", "rankings": "rankings.jsonl"})
    make_policy(folder)
    return run


def make_sera_run(run: Path) -> Path:
    """A run whose iter2 selects by SeRA: of four offline pairs two are kept by margin, of three own pairs two are added.

    Margins of the offline pairs are 4, 1, 3, 2 nats; own ones 6, 5, 1, and p3's samples are equal.
    """
    rows, folder = make_data(run, ROWS), run / "iter2"
    texts = {row.prompt_id: ["same", "same"] if row is ROWS[3] else ["one", "other"] for row in ROWS}
    samples = [sample(row, number, text) for row in ROWS for number, text in enumerate(texts[row.prompt_id])]
    make_samples(folder, rows, samples, policy="h1")
    rewards = {row.chosen_id: value for row, value in zip(ROWS, (4.0, 1.0, 3.0, 2.0), strict=True)}
    rewards |= dict.fromkeys((row.rejected_id for row in ROWS), 0.0)
    # The first samples of p0, p1, p2, p3; the others have 0, but where the two are one text.
    rewards |= {each.completion_id: 0.0 for each in samples[1::2]}
    rewards |= {each.completion_id: value for each, value in zip(samples[::2], (6.0, -5.0, 1.0, 7.0), strict=True)}
    # An implicit reward is the log-ratio of iter1 to sft.
    log_probs = {"h0": dict.fromkeys(rewards, -9.0), "h1": {name: value - 9.0 for name, value in rewards.items()}}
    make_store(folder, log_probs, "iter1", {"iter1": "h1", "sft": "h0"})
    inputs = {"rows": "../data/rows/train.jsonl", "completions": "completions.jsonl", "log_probs": ["logprobs"]}
    terms = [{"weight": 1.0, "policy": "iter1", "reference": "sft"}]
    form = {"reference": True, "length_normalized": False}
    select(folder, "sera", inputs, policy="iter1", explore=False, reward_form=form, terms=terms)
    make_policy(folder, start="h1")
    return run
