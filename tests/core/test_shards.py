"""Shards of a killed stage: kept where the batches are the same, forgotten where another number of processes cut others."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from handbook_ext.core.errors import UserError
from handbook_ext.core.shards import batched, fill_shards, forget_other_shards, read_shards

SHARD_FILES = ("logprobs/shard-000001.jsonl", "logprobs/shard-000002.jsonl", "logprobs.sums/shard-000001")


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


@pytest.mark.parametrize("damage", ["lost lines", "half a line", "empty", "nulls", "other rows", "no hash", "empty hash"])
def test_a_shard_that_is_not_as_it_was_written_is_made_again_and_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], damage: str
) -> None:
    """Its rows were lost on every repeat, or taken for the stage's own."""
    folder = tmp_path / "logprobs"
    batches = fill(folder, 4, 0, 1)
    shard, other, hashed = (tmp_path / name for name in SHARD_FILES)
    text, before = shard.read_text(), other.stat().st_mtime_ns
    damaged = {
        "lost lines": text[: text.index("\n") + 1], "half a line": text[:-4], "empty": "", "nulls": "\0" * len(text),
        "other rows": text.replace("4", "3"),
    }  # fmt: skip
    if damage in damaged:
        shard.write_text(damaged[damage])
    elif damage == "empty hash":
        hashed.write_bytes(b"")
    else:
        hashed.unlink()
    with pytest.raises(UserError, match=r"1 of 3 shards are missing or damaged, the first: \[1\]; run make again"):
        list(read_shards(folder, len(batches)))
    capsys.readouterr()
    fill(folder, 4, 0, 1)
    assert capsys.readouterr().err == f"note: {shard} is not as it was written, and is made again\n"
    assert [row["item"] for row in read_shards(folder, len(batches))] == list(range(10))
    assert other.stat().st_mtime_ns == before


def test_a_shard_holds_rows_alone(tmp_path: Path) -> None:
    """Those of scores become the artifact: what tells whether they are whole lies elsewhere."""
    fill(tmp_path / "logprobs", 5, 0, 1)
    assert sorted(path.name for path in (tmp_path / "logprobs").iterdir()) == ["shard-000000.jsonl", "shard-000001.jsonl"]
    assert (tmp_path / "logprobs/shard-000001.jsonl").read_text().splitlines()[-1] == '{"item": 9}'


@pytest.mark.parametrize("damage", [b"", b"\0\0", b"\xff"])
def test_a_damaged_record_of_the_batches_forgets_the_shards(tmp_path: Path, damage: bytes) -> None:
    folder = tmp_path / "logprobs"
    fill(folder, 4, 0, 1)
    (tmp_path / "logprobs.cut").write_bytes(damage)
    batches = fill(folder, 5, 0, 1)
    assert [row["item"] for row in read_shards(folder, len(batches))] == list(range(10))
    assert len(list(folder.iterdir())) == 2
