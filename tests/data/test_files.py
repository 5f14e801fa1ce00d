"""Files that are not what their name says, or that no program wrote whole: right rows, or one line that names the file."""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from handbook_ext.core.errors import UserError
from handbook_ext.data.files import rows_of
from handbook_ext.data.offline import load_offline_data
from handbook_ext.data.prompt_sets import read_prompt_set
from handbook_ext.recipes.settings import DataSettings
from tests.dataset_rows import pair, write

PLAIN = {"prompt": "hi", "chosen": "good", "rejected": "bad"}
LINE = json.dumps(PLAIN).encode() + b"\n"


def parquet(table: pa.Table) -> bytes:
    """The bytes of a Parquet file."""
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    return bytes(sink.getvalue())


def column(kind: pa.DataType, value: Any) -> pa.Table:
    """A table of one plain pair with a column more."""
    return pa.table({name: [text] for name, text in PLAIN.items()} | {"more": pa.array([value], kind)})


GOOD = parquet(pa.Table.from_pylist([PLAIN]))


def as_pairs(path: Path) -> int:
    """Reads a file as training pairs; returns how many it has."""
    test = write(path.parent / "held_out.jsonl", [pair()])
    return len(load_offline_data(DataSettings(train=str(path), test=test), 1).train)


def as_prompts(path: Path) -> int:
    """Reads a file as a prompt set; returns how many prompts it has."""
    return len(read_prompt_set(str(path))[0])


READERS = pytest.mark.parametrize("reader", [as_pairs, as_prompts])

WRONG = {
    "utf16.jsonl": (LINE.decode().encode("utf-16"), "is UTF-16 text; save it as UTF-8"),
    "packed.jsonl": (gzip.compress(LINE), "is compressed by gzip; unpack it first"),
    "table.jsonl": (GOOD, "is a Parquet file under the name of a JSON file; call it .parquet"),
    "lines.parquet": (LINE, "is no Parquet file that can be read"),
    "empty.parquet": (b"", "is no Parquet file that can be read"),
    "cut.parquet": (GOOD[:-20], "is no Parquet file that can be read"),
    "corrupt.parquet": (GOOD[:8] + bytes(30) + GOOD[38:], "is no Parquet file that can be read"),
    "not_utf8.parquet": (
        parquet(pa.table({name: pa.array([b"\xff"]).view(pa.string()) for name in PLAIN})), "is no Parquet file that can be read",
    ),
    "twice.parquet": (
        parquet(pa.Table.from_arrays([pa.array(["a"])] * 4, names=[*PLAIN, "chosen"])), "has two columns of the name 'chosen'",
    ),
    "no_rows.parquet": (parquet(pa.Table.from_pylist([PLAIN])[:0]), "has no row"),
    "blank.jsonl": (b"\n\n", "has no row"),
    "list.jsonl": (json.dumps([PLAIN]).encode(), "a JSON object is needed, found list"),
    "numbers.json": (b"[1]", "row 1: a JSON object is needed, found int"),
    "half.json": (b'[{"prompt": "\\udc00"}]', "not valid text"),
    "nested.json": (b"[" * 100_000, "JSON that cannot be read"),
}  # fmt: skip


@READERS
@pytest.mark.parametrize("name", WRONG)
def test_a_file_that_is_not_what_its_name_says_is_one_line(name: str, reader: Callable[[Path], int], tmp_path: Path) -> None:
    content, words = WRONG[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError) as error:
        reader(tmp_path / name)
    assert str(tmp_path / name) in str(error.value) and words in str(error.value)
    assert "\n" not in str(error.value)


@READERS
def test_what_is_no_file_is_not_waited_for(reader: Callable[[Path], int], tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jsonl")
    (tmp_path / "folder.parquet").mkdir()
    for name, words in (("pipe.jsonl", "is no file"), ("folder.parquet", "is no file"), ("none.jsonl", "does not exist")):
        with pytest.raises(UserError, match=f"{name} {words}"):
            reader(tmp_path / name)


RIGHT = {
    "list.json": json.dumps([PLAIN], indent=1).encode(),
    "marked.json": b"\xef\xbb\xbf \n" + json.dumps([PLAIN]).encode(),
    "lines.json": LINE,
    "large.parquet": parquet(pa.table({name: pa.array([text], pa.large_string()) for name, text in PLAIN.items()})),
    "map.parquet": parquet(column(pa.map_(pa.string(), pa.int64()), [("a", 1)])),
    "nested.parquet": parquet(column(pa.list_(pa.struct([("a", pa.list_(pa.int8()))])), [{"a": [1]}])),
    "time.parquet": parquet(column(pa.timestamp("us"), 1)),
}


@READERS
@pytest.mark.parametrize("name", RIGHT)
def test_a_sound_file_of_an_unusual_kind_is_read(name: str, reader: Callable[[Path], int], tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(RIGHT[name])
    assert reader(tmp_path / name) == 1
    assert [{key: row[key] for key in PLAIN} for _, row in rows_of(tmp_path / name)] == [PLAIN]


def test_rows_of_a_list_and_of_a_table_have_numbers_and_those_of_lines_the_line(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps([PLAIN, PLAIN]))
    pq.write_table(pa.Table.from_pylist([PLAIN] * 2500), tmp_path / "b.parquet")
    (tmp_path / "c.jsonl").write_bytes(b"\n" + LINE)
    assert [where for where, _ in rows_of(tmp_path / "a.json", "my set.json")] == ["my set.json: row 1", "my set.json: row 2"]
    assert [where for where, _ in rows_of(tmp_path / "b.parquet")][-1] == f"{tmp_path}/b.parquet: row 2500"
    assert [where for where, _ in rows_of(tmp_path / "c.jsonl")] == [f"{tmp_path}/c.jsonl:2"]


def test_messages_that_datasets_keeps_as_json_text_are_messages(tmp_path: Path) -> None:
    """Otherwise the text of a JSON list would be trained on as an answer."""
    features = datasets.Features({"chosen": datasets.Json(), "rejected": datasets.List(datasets.Json())})
    sides = {side: pair()[side] for side in ("chosen", "rejected")}
    datasets.Dataset.from_list([sides], features=features).to_parquet(str(tmp_path / "rows.parquet"))
    assert [row for _, row in rows_of(tmp_path / "rows.parquet")] == [sides]
    assert as_pairs(tmp_path / "rows.parquet") == 1


def test_a_local_parquet_file_leaves_no_copy_in_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = tmp_path / "cache"
    for name in ("HF_DATASETS_CACHE", "HF_CACHE_HOME", "DOWNLOADED_DATASETS_PATH", "EXTRACTED_DATASETS_PATH"):
        monkeypatch.setattr(datasets.config, name, cache)
    for name, words in (("rows.parquet", "hi"), ("rows.parquet", "hello")):
        pq.write_table(pa.Table.from_pylist([PLAIN | {"prompt": words}]), tmp_path / name)
        assert [row["prompt"] for _, row in rows_of(tmp_path / name)] == [words]
        assert as_pairs(tmp_path / name) == 1
    assert not cache.exists()


def test_a_name_that_is_neither_a_file_nor_a_split_is_told(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl.gz").write_bytes(gzip.compress(LINE))
    with pytest.raises(
        UserError, match=r"rows\.jsonl\.gz' is no \.jsonl, \.json, \.parquet file, and data\.dataset names no data set"
    ):
        as_pairs(tmp_path / "rows.jsonl.gz")
