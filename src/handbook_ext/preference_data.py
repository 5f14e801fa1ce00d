"""Offline preference pairs from a hub data set, local files or the tiny world, in one form."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets

from handbook_ext.errors import UserError
from handbook_ext.records import Demonstration, Messages, OfflinePair, assistant, content_id, derived_seed, iter_jsonl
from handbook_ext.settings import DataSettings
from handbook_ext.tiny_writers import world_data

FILE_SUFFIXES = (".jsonl", ".json", ".parquet")


@dataclass
class OfflineData:
    """Demonstrations, training pairs and held-out pairs, with the rows read and a count for every reason to drop."""

    demonstrations: list[Demonstration]
    train: list[OfflinePair]
    test: list[OfflinePair]
    read: int
    dropped: Counter[str] = field(default_factory=Counter)


def load_offline_data(data: DataSettings, seed: int) -> OfflineData:
    """Reads what the recipe names; a UserError gives file, line and remedy for the first row that cannot be used."""
    if data.dataset == "tiny_world" and not data.train.endswith(FILE_SUFFIXES):
        return _tiny_world(data, seed)
    dropped: Counter[str] = Counter()
    counts, parts = [], []
    for split, limit in ((data.train, data.train_rows), (data.test, data.test_rows)):
        rows = list(_raw_rows(data, split, limit))
        counts.append(len(rows))
        parts.append(_unique(_pairs(rows, data.empty_completions == "drop", dropped)))
    train, test = parts
    if not train or not test:
        raise UserError(f"data.{'train' if not train else 'test'}: no usable row is left ({dict(dropped)}); check the data")
    demonstrations = [
        Demonstration(prompt_id=pair.prompt_id, prompt=pair.prompt, completion=pair.chosen, source=pair.source)
        for pair in train[: data.sft_rows]
    ]
    return OfflineData(demonstrations, flipped(train, data.flip_rate, seed), test, sum(counts), dropped)


def flipped(pairs: list[OfflinePair], rate: float, seed: int) -> list[OfflinePair]:
    """Returns the pairs with round(rate * n) of them, chosen by seed, swapped and marked; scores follow their texts."""
    chosen = set(random.Random(derived_seed("flip", seed)).sample(range(len(pairs)), round(rate * len(pairs))))
    return [
        pair.model_copy(
            update={
                "chosen": pair.rejected, "rejected": pair.chosen, "swapped": True,
                "score_chosen": pair.score_rejected, "score_rejected": pair.score_chosen,
            }
        )
        if index in chosen
        else pair
        for index, pair in enumerate(pairs)
    ]  # fmt: skip


def _tiny_world(data: DataSettings, seed: int) -> OfflineData:
    """Returns the embedded world's rows; the SFT policy, the pairs and the test prompts share no prompt."""
    world = world_data(
        seed=seed, sft=data.sft_rows or 8000, train=data.train_rows or 4000, test=data.test_rows or 300, flip_rate=0.0
    )
    demonstrations = [
        Demonstration(
            prompt_id=content_id(row["prompt"]), prompt=_user(row["prompt"]), completion=assistant(row["answer"]),
            source=f"tiny_world:{row['writer']}",
        )
        for row in world.sft
    ]  # fmt: skip
    dropped: Counter[str] = Counter()
    train, test = (
        _unique(_pairs([(f"tiny_world {name} row {i}", row) for i, row in enumerate(rows, 1)], True, dropped))
        for name, rows in (("train", world.train), ("test", world.test))
    )
    read = len(world.train) + len(world.test)
    return OfflineData(demonstrations, flipped(train, data.flip_rate, seed), test, read, dropped)


def _raw_rows(data: DataSettings, split: str, limit: int | None) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields where each row stands, and the row, from a local file or a hub split."""
    if split.endswith(FILE_SUFFIXES):
        path = Path(split)
        if not path.is_file():
            raise UserError(f"data: {path} does not exist; give a .jsonl, .json or .parquet file")
        if path.suffix == ".parquet":
            table = datasets.Dataset.from_parquet(str(path), keep_in_memory=True)
            rows: Iterable[tuple[str, dict[str, Any]]] = ((f"{path}: row {i}", row) for i, row in enumerate(table, 1))
        else:
            rows = ((f"{path}:{number}", row) for number, row in iter_jsonl(path))
    else:
        try:
            table = datasets.load_dataset(data.dataset, data.config_name, split=split, revision=data.revision)
        except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
            raise UserError(
                f"data.dataset: cannot load {data.dataset!r} split {split!r} ({error}); check name and network, or give "
                "local files as data.train and data.test"
            ) from None
        rows = ((f"{data.dataset} {split} row {i}", row) for i, row in enumerate(table, 1))
    for count, row in enumerate(rows):
        if limit is not None and count == limit:
            return
        yield row


def _pairs(rows: Iterable[tuple[str, dict[str, Any]]], drop_empty: bool, dropped: Counter[str]) -> Iterator[OfflinePair]:
    """Yields normalised pairs; counts the rows dropped for an empty completion where the recipe allows that."""
    for where, row in rows:
        for name in ("chosen", "rejected"):
            if row.get(name) is None:
                has = ", ".join(sorted(row))
                raise UserError(f"{where}: the row has no '{name}' (it has: {has}); every row needs prompt, chosen, rejected")
        prompt, chosen = _split(where, row, "chosen")
        other_prompt, rejected = _split(where, row, "rejected")
        if prompt != other_prompt:
            raise UserError(f"{where}: chosen and rejected answer different prompts; they must share all but the last message")
        empty = [name for name, text in (("chosen", chosen), ("rejected", rejected)) if not text[0]["content"].strip()]
        if empty and drop_empty:
            dropped[f"empty {empty[0]}"] += 1
            continue
        if empty:
            raise UserError(f"{where}: the {empty[0]} completion is empty; repair the row, or set data.empty_completions: drop")
        yield OfflinePair(
            prompt_id=str(row.get("prompt_id") or content_id(prompt)), prompt=prompt, chosen=chosen, rejected=rejected,
            score_chosen=row.get("score_chosen"), score_rejected=row.get("score_rejected"), source=where,
        )  # fmt: skip


def _split(where: str, row: dict[str, Any], name: str) -> tuple[Messages, Messages]:
    """Returns prompt and completion messages of one side of a row, given as messages or as plain strings."""
    prompt, answer = row.get("prompt"), row[name]
    if isinstance(answer, str):
        if prompt is None:
            raise UserError(f"{where}: '{name}' is a plain string, so the row needs a 'prompt'")
        return _messages(where, "prompt", _user(prompt) if isinstance(prompt, str) else prompt), assistant(answer)
    answer = _messages(where, name, answer)
    if not answer or answer[-1]["role"] != "assistant":
        raise UserError(f"{where}: '{name}' must end with a message of role 'assistant'")
    if len(answer) > 1:
        return answer[:-1], answer[-1:]
    if prompt is None:
        raise UserError(f"{where}: '{name}' holds the answer alone, so the row needs a 'prompt'")
    return _messages(where, "prompt", _user(prompt) if isinstance(prompt, str) else prompt), answer


def _messages(where: str, name: str, value: Any) -> Messages:
    """Returns messages with role and content alone; a UserError says where something else was found."""
    sound = isinstance(value, list) and all(
        isinstance(message, dict) and isinstance(message.get("role"), str) and isinstance(message.get("content"), str)
        for message in value
    )
    if not sound:
        raise UserError(f"{where}: '{name}' must be a string or a list of messages with 'role' and 'content'")
    return [{"role": message["role"], "content": message["content"]} for message in value]


def _unique(pairs: Iterable[OfflinePair]) -> list[OfflinePair]:
    """Returns the pairs with distinct prompt ids: the second of a repeated prompt gets '#2' behind its id."""
    seen: Counter[str] = Counter()
    result = []
    for pair in pairs:
        seen[pair.prompt_id] += 1
        count = seen[pair.prompt_id]
        result.append(pair if count == 1 else pair.model_copy(update={"prompt_id": f"{pair.prompt_id}#{count}"}))
    return result


def _user(text: str) -> Messages:
    """Returns a single-turn prompt."""
    return [{"role": "user", "content": text}]
