"""Typed rows in JSONL files: read with the line of the first bad one, written whole or not at all."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from handbook_ext.core.errors import UserError

R = TypeVar("R", bound="Row")


class Row(BaseModel):
    """One line of a JSONL file; unknown and missing columns are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def iter_jsonl(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yields line number and row; a line that is not a JSON object is a UserError with file and line."""
    with path.open(encoding="utf-8") as lines:
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
    """Writes rows beside the file, flushes them to disk, renames; returns how many. Floats keep every bit."""
    partial = path.with_name(path.name + ".partial")
    count = 0
    with partial.open("w", encoding="utf-8") as out:
        for row in rows:
            values = row.model_dump() if isinstance(row, Row) else row
            out.write(json.dumps(values, ensure_ascii=False) + "\n")
            count += 1
        out.flush()
        os.fsync(out.fileno())
    partial.replace(path)
    return count
