"""Work cut into shards, each written whole: processes share them, and a killed stage repeats only the unfinished.

Beside the folder of the shards lies `<folder>.sums`, with the hash of each: some shards become artifacts as they are, so they
hold rows alone. A shard without its hash, or with another one, is not finished.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from handbook_ext.core.artifacts import sha256_of
from handbook_ext.core.console import say
from handbook_ext.core.errors import UserError
from handbook_ext.core.jsonl import Row, iter_jsonl, replace_bytes, write_rows
from handbook_ext.core.records import content_id

T = TypeVar("T")


def batched(items: list[T], size: int) -> list[list[T]]:
    """Returns consecutive batches of `size` items, the last one shorter."""
    return [items[start : start + size] for start in range(0, len(items), size)]


def forget_other_shards(folder: Path, made_of: Sequence[Any]) -> None:
    """Removes shards that are made of something else, such as other batches; for one process, before any fills the folder.

    Where batches or their numeric type depend on the launch, a stage that resumes under another would take old shards for new.
    """
    cut, record = content_id(made_of).encode(), folder.with_name(f"{folder.name}.cut")
    if not record.is_file() or record.read_bytes() != cut:
        shutil.rmtree(folder, ignore_errors=True)
        folder.parent.mkdir(parents=True, exist_ok=True)
        replace_bytes(record, cut)


def fill_shards(
    folder: Path, batches: list[T], work: Callable[[T], Iterable[Row | dict[str, Any]]], *,
    rank: int, processes: int, progress: Callable[[list[int]], Iterable[int]], first: int = 0,
) -> None:  # fmt: skip
    """Writes the rows of every batch of this process whose shard, numbered from `first`, is not there yet, or not whole."""
    folder.mkdir(parents=True, exist_ok=True)
    _sum(_shard(folder, first)).parent.mkdir(exist_ok=True)
    # Every processes-th batch: batches are sorted by length, so that consecutive shares would differ in work. A shard's number
    # does not depend on the processes, so a stage may resume with another launch.
    mine = [index for index in range(rank, len(batches), processes) if not _whole(_shard(folder, first + index))]
    for damaged in (shard for index in mine if (shard := _shard(folder, first + index)).exists()):
        say(f"note: {damaged} is not as it was written, and is made again")
    for index in progress(mine):
        shard = _shard(folder, first + index)
        write_rows(shard, work(batches[index]))
        replace_bytes(_sum(shard), sha256_of(shard).encode())


def read_shards(folder: Path, count: int) -> Iterator[dict[str, Any]]:
    """Yields the rows of all shards in order; a UserError names the first shards that are missing or not whole."""
    missing = [number for number in range(count) if not _whole(_shard(folder, number))]
    if missing:
        raise UserError(
            f"{folder}: {len(missing)} of {count} shards are missing or damaged, the first: {missing[:10]}; run make again"
        )
    for number in range(count):
        for _, row in iter_jsonl(_shard(folder, number)):
            yield row


def _shard(folder: Path, number: int) -> Path:
    """Returns the path of a shard."""
    return folder / f"shard-{number:06d}.jsonl"


def _sum(shard: Path) -> Path:
    """Returns the path of a shard's hash."""
    return shard.parent.with_name(f"{shard.parent.name}.sums") / shard.stem


def _whole(shard: Path) -> bool:
    """Tells whether a shard is there as it was written."""
    try:
        return _sum(shard).read_bytes() == sha256_of(shard).encode()
    except FileNotFoundError:
        return False  # Never written, or by a process that was killed between the two.
