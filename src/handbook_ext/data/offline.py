"""Demonstrations and offline preference pairs from a hub data set, local files or the tiny world, in one form."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import datasets

from handbook_ext.core.errors import UserError
from handbook_ext.core.jsonl import uncollected
from handbook_ext.core.records import Demonstration, OfflinePair, assistant, content_id, derived_seed, user
from handbook_ext.data.files import rows_of
from handbook_ext.data.raw_places import CountedRows, distinct_ids, golden, numbered
from handbook_ext.data.row_checks import RawRow, Rules
from handbook_ext.data.rubric import TINY_RUBRIC, render
from handbook_ext.data.schemas import form_of, read_demonstrations, read_pairs
from handbook_ext.data.tiny_writers import PairRow, World, WorldData, world_data
from handbook_ext.recipes.settings import DATA_SUFFIXES, DataSettings

T = TypeVar("T")

SFT_SPLIT = "train_sft"  # of HuggingFaceH4/ultrachat_200k


@dataclass
class OfflineData:
    """Demonstrations, training pairs and held-out pairs; `read` rows are `kept`, or `dropped` for a counted reason.

    `left_out` counts what was cut from kept rows: answers without a score, turns after the last answer.
    """

    demonstrations: list[Demonstration] = field(default_factory=list)
    train: list[OfflinePair] = field(default_factory=list)
    test: list[OfflinePair] = field(default_factory=list)
    read: int = 0
    kept: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    left_out: Counter[str] = field(default_factory=Counter)


def load_offline_data(data: DataSettings, seed: int) -> OfflineData:
    """Returns the rows that the recipe names; raises UserError, with file, line and remedy, for the first unusable one.

    With `prompts: demonstrations` the training rows are the demonstrations, whose completion is both chosen and rejected.
    """
    in_world = data.dataset == "tiny_world" and not data.train.endswith(DATA_SUFFIXES)
    _refuse_contradictions(data, in_world)
    with uncollected():
        loaded = _tiny_world(data, seed) if in_world else _read(data, seed)
        # Held-out pairs keep their labels: evaluation is against the true ones.
        loaded.train = flipped(loaded.train, data.flip_rate, seed)
    return loaded


def flipped(pairs: list[OfflinePair], rate: float, seed: int) -> list[OfflinePair]:
    """Returns the pairs with round(rate * n) of them, chosen by seed, swapped and marked; ids and scores follow their texts."""
    # A fixed number: a coin for each pair would vary the rate itself from seed to seed.
    chosen = set(random.Random(derived_seed("flip", seed)).sample(range(len(pairs)), round(rate * len(pairs))))
    return [
        pair.model_copy(
            update={
                "chosen": pair.rejected, "rejected": pair.chosen, "swapped": True,
                "chosen_id": pair.rejected_id, "rejected_id": pair.chosen_id,
                "score_chosen": pair.score_rejected, "score_rejected": pair.score_chosen,
            }
        )
        if index in chosen
        else pair
        for index, pair in enumerate(pairs)
    ]  # fmt: skip


def _refuse_contradictions(data: DataSettings, in_world: bool) -> None:
    """Raises UserError for a setting that has no effect on these data."""
    if in_world and data.form not in ("auto", "pairs"):
        raise UserError(f"data.form: tiny_world has preference pairs, not the form {data.form}; remove data.form")
    if in_world and (data.sft or data.sft_dataset):
        raise UserError("data.sft: tiny_world makes its own demonstrations; remove data.sft and data.sft_dataset")
    if not in_world and (data.judge_rows or data.answers != 2):
        name = "judge_rows" if data.judge_rows else "answers"
        raise UserError(f"data.{name}: only the dataset tiny_world is made to order; remove data.{name}")
    if data.sft and not data.sft_dataset and not data.sft.endswith(DATA_SUFFIXES):
        kinds = ", ".join(DATA_SUFFIXES)
        raise UserError(f"data.sft: {data.sft!r} is no {kinds} file; give one, or name its data set as data.sft_dataset")
    if data.prompts == "demonstrations" and data.flip_rate > 0:
        raise UserError("data.flip_rate: demonstrations have no rejected answer to swap; set it to 0, or prompts: preferences")


def _read(data: DataSettings, seed: int) -> OfflineData:
    """Returns what files and hub data sets hold; demonstrations that the recipe does not name are the chosen answers."""
    rules = Rules(seed, data.ties, data.empty_completions == "drop")
    loaded = OfflineData()
    stated = data.sft is not None or data.sft_dataset is not None
    if not (stated and data.prompts == "demonstrations"):
        loaded.train = _pairs(data, "train", rules, loaded)
    loaded.test = _pairs(data, "test", rules, loaded)
    if stated:
        loaded.demonstrations = _demonstrations(data, rules, loaded)
    else:
        loaded.demonstrations = [
            Demonstration(
                prompt_id=pair.prompt_id, prompt=pair.prompt, completion=pair.chosen, source=pair.source,
                raw_row=pair.raw_row, raw_rows=pair.raw_rows,
            )
            for pair in loaded.train[: data.sft_rows]
        ]  # fmt: skip
    if data.prompts == "demonstrations":
        loaded.train = golden(loaded.demonstrations, data.train_rows)
    return loaded


def _pairs(data: DataSettings, name: str, rules: Rules, loaded: OfflineData) -> list[OfflinePair]:
    """Returns the pairs of the train or the test rows, counted."""
    split, limit = (data.train, data.train_rows) if name == "train" else (data.test, data.test_rows)
    raw = CountedRows(_raw_rows("dataset", data.dataset, split, limit, data.config_name, data.revision))
    pairs = numbered(read_pairs(raw, data.form, rules, loaded.dropped, loaded.left_out), raw)
    return _some(distinct_ids(pairs), f"{name}: {split}", raw, loaded)


def _demonstrations(data: DataSettings, rules: Rules, loaded: OfflineData) -> list[Demonstration]:
    """Returns the demonstrations that the recipe names, counted."""
    revision = data.revision if data.sft_dataset == data.dataset else None
    split = data.sft or SFT_SPLIT
    raw = CountedRows(_raw_rows("sft_dataset", data.sft_dataset, split, data.sft_rows, None, revision))
    made = numbered(read_demonstrations(raw, rules, loaded.dropped, loaded.left_out), raw)
    return _some(made, f"sft: {split}", raw, loaded)


def _some(kept: list[T], name: str, raw: CountedRows, loaded: OfflineData) -> list[T]:
    """Returns the rows, counted as read and as kept; a UserError when there is none."""
    loaded.read += raw.count
    if not raw.count:
        raise UserError(f"data.{name} has no row")
    if not kept:
        raise UserError(f"data.{name}: no usable row is left of {loaded.read} read; dropped: {dict(loaded.dropped) or 'none'}")
    loaded.kept += len(kept)
    return kept


def form_of_rows(data: DataSettings) -> str:
    """Returns the schema of the training rows by the first of them."""
    _, row = next(iter(_raw_rows("dataset", data.dataset, data.train, 1, data.config_name, data.revision)))
    return form_of(row)


def _tiny_world(data: DataSettings, seed: int) -> OfflineData:
    """Returns the embedded world's rows; the SFT policy, the judge, the pairs and the test prompts share no prompt."""
    as_golden = data.prompts == "demonstrations"
    world = world_data(
        seed=seed, sft=data.sft_rows or 8000, train=0 if as_golden else data.train_rows or 4000, test=data.test_rows or 300,
        flip_rate=0.0, answers=data.answers, judge=data.judge_rows,
        world=World(best_closings=data.best_closings, longer_better=data.longer_better),
    )  # fmt: skip
    demonstrations = [
        Demonstration(
            prompt_id=content_id(row["prompt"]), prompt=user(row["prompt"]), completion=assistant(row["answer"]),
            source=f"tiny_world:{row['writer']}", raw_row=number, raw_rows=len(world.sft),
        )
        for number, row in enumerate(world.sft)
    ]  # fmt: skip
    train = golden(demonstrations, data.train_rows) if as_golden else _world_pairs("train", world.train)
    test = _world_pairs("test", world.test)
    made = len(train) + len(test)
    return OfflineData(demonstrations + _judgements(world), train, test, read=made, kept=made)


def _world_pairs(name: str, rows: list[PairRow]) -> list[OfflinePair]:
    """Returns the tiny world's rows in the form of all pairs."""
    return distinct_ids(
        OfflinePair.of(
            content_id(user(row["prompt"])), user(row["prompt"]), assistant(row["chosen"]), assistant(row["rejected"]),
            score_chosen=row["score_chosen"], score_rejected=row["score_rejected"], answers=row["answers"],
            source=f"tiny_world {name} row {number}", raw_row=number - 1, raw_rows=len(rows),
        )
        for number, row in enumerate(rows, 1)
    )  # fmt: skip


def _judgements(world: WorldData) -> list[Demonstration]:
    """Returns demonstrations of judging: the tiny rubric's question about an answer, and its points."""
    asked = [(user(render(row["prompt"], row["answer"], TINY_RUBRIC)), row["points"]) for row in world.judge]
    return [
        Demonstration(
            prompt_id=content_id(prompt), prompt=prompt, completion=assistant(f"Score: {points}"), source="tiny_world:judge"
        )
        for prompt, points in asked
    ]


def _raw_rows(
    key: str, dataset: str | None, split: str, limit: int | None, config_name: str | None, revision: str | None
) -> Iterator[tuple[str, RawRow]]:
    """Yields rows, each behind its file and line or its split and row number; `key` is the setting that names the data."""
    if split.endswith(DATA_SUFFIXES):
        rows: Iterable[tuple[str, RawRow]] = rows_of(Path(split))
    elif dataset is None:
        kinds = ", ".join(DATA_SUFFIXES)
        raise UserError(
            f"data: {split!r} is no {kinds} file, and data.{key} names no data set that has it as a split; name one of both"
        )
    else:
        try:
            table = datasets.load_dataset(dataset, config_name, split=split, revision=revision)
        except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
            raise UserError(
                f"data.{key}: cannot load {dataset!r} split {split!r} ({error}); check name and network, or give local files "
                f"as {'data.train and data.test' if key == 'dataset' else 'data.sft'}"
            ) from None
        rows = ((f"{dataset} {split} row {i}", row) for i, row in enumerate(table, 1))
    # Cut while reading, so that a bad row after the limit stops nothing.
    for count, row in enumerate(rows):
        if limit is not None and count == limit:
            return
        yield row
