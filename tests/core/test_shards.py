"""Shards of a killed stage: kept where the batches are the same, forgotten where another number of processes cut others."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from handbook_ext.core.shards import batched, fill_shards, forget_other_shards, read_shards


def work(batch: list[int]) -> Iterable[dict[str, Any]]:
    """A row for each item."""
    return [{"item": item} for item in batch]


def fill(folder: Path, size: int, rank: int, processes: int) -> list[list[int]]:
    """Fills one process's shards of ten items in batches of a size."""
    batches = batched(list(range(10)), size)
    if rank == 0:
        forget_other_shards(folder, batches)
    fill_shards(folder, batches, work, rank=rank, processes=processes, progress=lambda items: items)
    return batches


def test_shards_of_equal_batches_are_kept_whatever_the_processes(tmp_path: Path) -> None:
    folder = tmp_path / "logprobs"
    fill(folder, 3, 0, 2)  # The other process was killed.
    times = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert sorted(times) == ["shard-000000.jsonl", "shard-000002.jsonl"]
    batches = fill(folder, 3, 0, 1)
    assert [row["item"] for row in read_shards(folder, len(batches))] == list(range(10))
    assert {name: (folder / name).stat().st_mtime_ns for name in times} == times


def test_shards_of_other_batches_are_forgotten(tmp_path: Path) -> None:
    folder = tmp_path / "logprobs"
    fill(folder, 2, 0, 2)
    batches = fill(folder, 5, 0, 1)
    assert [row["item"] for row in read_shards(folder, len(batches))] == list(range(10))
    assert len(list(folder.iterdir())) == 2


def test_shards_of_which_nobody_knows_the_batches_are_forgotten(tmp_path: Path) -> None:
    folder = tmp_path / "logprobs"
    fill_shards(folder, [[7]], work, rank=0, processes=1, progress=lambda items: items)
    batches = fill(folder, 10, 0, 1)
    assert [row["item"] for row in read_shards(folder, len(batches))] == list(range(10))
