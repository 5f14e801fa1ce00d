"""Rows of a local file of data, JSONL, JSON or Parquet, each behind its place; what cannot be read is one line."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet
from pydantic_core import from_json

from handbook_ext.core.errors import UserError
from handbook_ext.core.jsonl import iter_jsonl, json_fault
from handbook_ext.data.row_checks import RawRow

ROWS_AT_A_TIME = 1000  # Of a Parquet file: no more of it is ever in memory as Python objects.
PARQUET = b"PAR1"
FOREIGN = {
    PARQUET: "is a Parquet file under the name of a JSON file; call it .parquet",
    b"\x1f\x8b": "is compressed by gzip; unpack it first",
    b"PK\x03\x04": "is a zip archive; unpack it first",
    b"BZh": "is compressed by bzip2; unpack it first",
    b"\xfd7zXZ": "is compressed by xz; unpack it first",
    b"\x28\xb5\x2f\xfd": "is compressed by zstd; unpack it first",
    b"\xff\xfe": "is UTF-16 text; save it as UTF-8",
    b"\xfe\xff": "is UTF-16 text; save it as UTF-8",
}
"""What a file that is no JSON begins with, and what is said of it."""


def rows_of(path: Path, name: str | None = None) -> Iterator[tuple[str, RawRow]]:
    """Yields the rows of a file behind `name:line`, or `name: row n` where rows have no lines of their own.

    name: what the file is called in errors, by default its path. A .json file holds a list of objects, or an object in each line.
    Raises UserError for what is no file, cannot be read, or holds something else.
    """
    name = str(path) if name is None else name
    if not path.is_file():  # A pipe without a writer would be waited for.
        what = "is no file" if path.exists() else "does not exist"
        raise UserError(f"data: {name} {what}; give a .jsonl, .json or .parquet file")
    try:
        if name.endswith(".parquet"):
            yield from _parquet(path, name)
            return
        with path.open("rb") as stream:
            start = stream.read(16)
            whole = start + stream.read() if name.endswith(".json") and start.strip(b"\xef\xbb\xbf \t\r\n")[:1] == b"[" else None
        for sign, said in FOREIGN.items():
            if start.startswith(sign):
                raise UserError(f"{name}: {said}")
        if whole is not None:
            yield from _list(whole, name)
            return
    except OSError as error:
        raise UserError(f"{name}: cannot be read ({error.strerror or error}); give a .jsonl, .json or .parquet file") from None
    yield from ((f"{name}:{number}", row) for number, row in iter_jsonl(path, name))


def _list(text: bytes, name: str) -> Iterator[tuple[str, RawRow]]:
    """Yields the objects of a JSON list."""
    text = text.removeprefix(b"\xef\xbb\xbf")
    try:
        rows = from_json(text)
    except ValueError as error:
        raise UserError(f"{name}: {json_fault(text, error)}; make it a list of objects, or an object in each line") from None
    for number, row in enumerate(rows, 1):
        if not isinstance(row, dict):
            raise UserError(f"{name}: row {number}: a JSON object is needed, found {type(row).__name__}; repair this row")
        yield f"{name}: row {number}", row


def _parquet(path: Path, name: str) -> Iterator[tuple[str, RawRow]]:
    """Yields the rows of a Parquet file.

    By pyarrow and not by Dataset.from_parquet, which takes a name for a pattern (`*`, `[`) or an address (`://`), keeps a copy
    in the user's cache, and finds it there by its path: a file that was replaced would be read as it was.
    """
    number = 0
    try:
        with path.open("rb") as stream, pyarrow.parquet.ParquetFile(stream) as table:
            doubled = sorted({column for column in table.schema_arrow.names if table.schema_arrow.names.count(column) > 1})
            if doubled:
                raise UserError(f"{name}: has two columns of the name '{doubled[0]}'; rename one")
            decoded = _decoder(table.schema_arrow)
            for batch in table.iter_batches(ROWS_AT_A_TIME):
                for row in batch.to_pylist():
                    number += 1
                    yield f"{name}: row {number}", decoded(row)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())[:160]
        raise UserError(f"{name}: is no Parquet file that can be read ({reason}); make it again") from None


def _decoder(schema: pa.Schema) -> Callable[[RawRow], RawRow]:
    """Returns what makes a row of `datasets` of one of Arrow's: columns of mixed types are written as JSON text."""
    try:
        features = datasets.Features.from_arrow_schema(schema)
    except ValueError:  # A type that `datasets` does not know, of a column that nobody need read.
        return lambda row: row
    return lambda row: dict(features.decode_example(row))
