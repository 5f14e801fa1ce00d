"""Typed rows in JSONL files: read with the line of the first bad one, written whole or not at all."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from handbook_ext.core.errors import UserError

R = TypeVar("R", bound="Row")


class Row(BaseModel):
    """One line of a JSONL file; unknown and missing columns are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def iter_jsonl(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yields line number and row; a line that is not a JSON object is a UserError with file and line.

    Windows' editors put a byte order mark before the first line, which is no part of it.
    """
    with path.open(encoding="utf-8-sig") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise UserError(f"{path}:{number}: not valid JSON ({error.msg}); repair or delete this line") from None
            if not isinstance(row, dict):
                raise UserError(f"{path}:{number}: a JSON object is needed, found {type(row).__name__}; repair this line")
            yield number, row


def read_rows(path: Path, kind: type[R]) -> list[R]:
    """Returns the typed rows of a file; a UserError names file, line and column of the first bad one."""
    rows = []
    for number, row in iter_jsonl(path):
        try:
            rows.append(kind.model_validate(row))
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            raise UserError(f"{path}:{number}: {where}: {first['msg']}; make the file again") from None
    return rows


def write_rows(path: Path, rows: Iterable[Row | dict[str, Any]]) -> int:
    """Returns the number of rows, written beside the file, flushed to disk and renamed into place; floats are exact."""
    count = 0
    with replacing(path) as out:
        for row in rows:
            values = row.model_dump() if isinstance(row, Row) else row
            # json writes the shortest text that reads back as the same float: log-probs survive the file to the bit.
            out.write(json.dumps(values, ensure_ascii=False) + "\n")
            count += 1
    return count


@contextmanager
def replacing(path: Path) -> Iterator[TextIO]:
    """Yields a text stream whose content takes the place of the file once it is on disk; after an error the file is as before."""
    partial = path.with_name(path.name + ".partial")
    with partial.open("w", encoding="utf-8") as out:
        yield out
        out.flush()
        # Before the rename: a file system may write the new name first, and a power cut then leaves an empty file under it.
        os.fsync(out.fileno())
    partial.replace(path)


def write_json(path: Path, value: Any, *, indent: int | None = None) -> None:
    """Replaces a file by a value as JSON."""
    with replacing(path) as out:
        out.write(json.dumps(value, indent=indent) + "\n")


def replace_text(path: Path, text: str) -> None:
    """Puts text in the place of a file that several processes may write at once; after an error the file is as before.

    What can be made again at any moment, so it is not flushed to disk: `replacing` is for artifacts.
    """
    replace_bytes(path, text.encode())


def replace_bytes(path: Path, content: bytes) -> None:
    """Puts content in the place of a file, as `replace_text` does."""
    # Named by process: two that write one partial file would mix their text.
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        partial.write_bytes(content)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
