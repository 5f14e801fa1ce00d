"""Typed rows in JSONL files: read with the line of the first bad one, written whole or not at all."""

from __future__ import annotations

import codecs
import gc
import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import from_json

from handbook_ext.core.errors import UserError

R = TypeVar("R", bound="Row")


class Row(BaseModel):
    """One line of a JSONL file; unknown and missing columns are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def iter_jsonl(path: Path, name: str | None = None) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yields line number and row; a line that is not a JSON object is a UserError with file, by default its path, and line.

    Windows' editors put a byte order mark before the first line, which is no part of it.
    """
    for number, line in _lines(path):
        yield number, _object(name or path, number, line)


def read_rows(path: Path, kind: type[R]) -> list[R]:
    """Returns the typed rows of a file; a UserError names file, line and column of the first bad one."""
    rows = []
    with uncollected():
        for number, line in _lines(path):
            try:
                rows.append(kind.model_validate_json(line))
            except ValidationError as error:
                _object(path, number, line)  # Says it where the line is no JSON object at all.
                first = error.errors()[0]
                where = ".".join(str(part) for part in first["loc"])
                raise UserError(f"{path}:{number}: {where}: {first['msg']}; make the file again") from None
    return rows


@contextmanager
def uncollected() -> Iterator[None]:
    """Returns a context in which nothing is searched for cycles: while rows are loaded, each search walks through all so far."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Yields the lines that are not blank, numbered from 1, whichever system ended them."""
    with path.open("rb") as stream:
        number = 0
        for piece in stream:
            text = piece if number else piece.removeprefix(codecs.BOM_UTF8)
            # Of bytes, splitlines knows the ends of lines alone: a separator of Unicode inside a text is none.
            for line in text.splitlines() if b"\r" in text else (text,):
                number += 1
                if line.strip():
                    yield number, line


def _object(path: Path | str, number: int, line: bytes) -> dict[str, Any]:
    """Returns the JSON object of a line; a UserError where it is none."""
    try:
        row = from_json(line)
    except ValueError as error:
        raise UserError(f"{path}:{number}: {json_fault(line, error)}; repair or delete this line") from None
    if not isinstance(row, dict):
        raise UserError(f"{path}:{number}: a JSON object is needed, found {type(row).__name__}; repair this line")
    return row


def json_fault(text: bytes, error: ValueError) -> str:
    """Returns what is wrong with a text that is no JSON, for which `from_json` raised this error."""
    try:
        value = json.loads(text.decode())
    except UnicodeDecodeError as fault:
        return f"not UTF-8 text (byte {text[fault.start]:#04x} after {fault.start} others); save the file as UTF-8"
    except json.JSONDecodeError as fault:
        return f"not valid JSON ({fault.msg})"
    except (RecursionError, ValueError):  # Nested without end, or a number of thousands of digits.
        return f"JSON that cannot be read ({error})"
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as fault:
        return f"not valid text (\\u{ord(fault.object[fault.start]):04x} is half of a character, without its other half)"
    except RecursionError:
        pass
    return f"JSON that cannot be read ({error})"


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
