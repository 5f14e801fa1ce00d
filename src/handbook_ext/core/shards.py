"""Work cut into shards, each written whole: processes share them, and a killed stage repeats only the unfinished."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from handbook_ext.core.errors import UserError
from handbook_ext.core.jsonl import Row, iter_jsonl, write_rows
from handbook_ext.core.records import content_id

T = TypeVar("T")


def batched(items: list[T], size: int) -> list[list[T]]:
    """Returns consecutive batches of `size` items, the last one shorter."""
    return [items[start : start + size] for start in range(0, len(items), size)]


def forget_other_shards(folder: Path, made_of: Sequence[Any]) -> None:
    """Removes shards that are made of something else, such as other batches; for one process, before any fills the folder.

    Where batches or their numeric type depend on the launch, a stage that resumes under another would take old shards for new.
    """
    cut, record = content_id(made_of), folder.with_name(f"{folder.name}.cut")
    if not record.is_file() or record.read_text() != cut:
        shutil.rmtree(folder, ignore_errors=True)
        folder.parent.mkdir(parents=True, exist_ok=True)
        record.write_text(cut)


def fill_shards(
    folder: Path, batches: list[T], work: Callable[[T], Iterable[Row | dict[str, Any]]], *,
    rank: int, processes: int, progress: Callable[[list[int]], Iterable[int]], first: int = 0,
) -> None:  # fmt: skip
    """Writes the rows of every batch of this process whose shard, numbered from `first`, is not there yet."""
    folder.mkdir(parents=True, exist_ok=True)
    # Every processes-th batch: batches are sorted by length, so that consecutive shares would differ in work. A shard's number
    # does not depend on the processes, so a stage may resume with another launch.
    mine = [index for index in range(rank, len(batches), processes) if not _shard(folder, first + index).exists()]
    for index in progress(mine):
        write_rows(_shard(folder, first + index), work(batches[index]))


def read_shards(folder: Path, count: int) -> Iterator[dict[str, Any]]:
    """Yields the rows of all shards in order; a UserError names the first shards that are missing."""
    missing = [number for number in range(count) if not _shard(folder, number).exists()]
    if missing:
        raise UserError(f"{folder}: {len(missing)} of {count} shards are missing, the first: {missing[:10]}; run make again")
    for number in range(count):
        for _, row in iter_jsonl(_shard(folder, number)):
            yield row


def _shard(folder: Path, number: int) -> Path:
    """Returns the path of a shard."""
    return folder / f"shard-{number:06d}.jsonl"
