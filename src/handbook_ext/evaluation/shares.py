"""Work on held-out prompts, shared among the processes of a launch."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

from handbook_ext.core.jsonl import Row
from handbook_ext.core.shards import fill_shards, read_shards
from handbook_ext.policies.launch import Launch

T = TypeVar("T")


def in_shares(
    folder: Path, batches: list[T], work: Callable[[T], Iterable[Row | dict[str, Any]]], launch: Launch, what: str
) -> list[dict[str, Any]]:
    """Returns the rows of all batches, in their order, in every process: each works out its share; finished ones are kept."""
    fill_shards(folder, batches, work, rank=launch.rank, processes=launch.processes, progress=launch.progress(what, "batches"))
    launch.wait()
    return list(read_shards(folder, len(batches)))
