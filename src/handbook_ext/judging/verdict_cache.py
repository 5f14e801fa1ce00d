"""The replies of judges, kept by the content of the question: whoever asks the same again is not charged again."""

from __future__ import annotations

import hashlib
import json
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from handbook_ext.core.errors import UserError

TABLE = (
    "CREATE TABLE IF NOT EXISTS whole_replies (key TEXT PRIMARY KEY, asker TEXT, text TEXT, prompt_tokens INTEGER, "
    "completion_tokens INTEGER, cut INTEGER)"
)
PATIENCE = 60.0  # Seconds to wait for another process that writes.


@dataclass(frozen=True)
class Reply:
    """A judge's reply and what it took, in tokens; `cut` where it met max_new_tokens before its end."""

    text: str
    prompt_tokens: int
    completion_tokens: int
    cut: bool = False


class VerdictCache:
    """Replies in an SQLite file, each there whole or not at all, whoever is killed. `asker` is who asks through this object."""

    def __init__(self, path: Path, asker: str = "") -> None:
        """Opens the file, and makes it where it is not there; raises UserError for one that cannot be such a file."""
        path.parent.mkdir(parents=True, exist_ok=True)
        self.asker = asker
        self.path = path
        with self._usable(sqlite3.DatabaseError):
            self._base = sqlite3.connect(path, timeout=PATIENCE, isolation_level=None)
            _patiently(self._base, "PRAGMA journal_mode=WAL")
            self._base.execute(TABLE)

    @contextmanager
    def _usable(self, *kinds: type[sqlite3.DatabaseError]) -> Iterator[None]:
        """Returns a context in which a damaged file is a UserError: the replies in it were paid for, so nothing deletes them.

        Errors of other kinds, such as those of a full disk, pass unless they are among `kinds`.
        """
        try:
            yield
        except sqlite3.DatabaseError as error:
            if type(error) is not sqlite3.DatabaseError and not isinstance(error, kinds):
                raise
            raise UserError(
                f"{self.path}: cannot be opened as a judge's replies ({error}); where no process uses it, move it away, "
                "and the judge is asked again"
            ) from None

    def get(self, key: str) -> Reply | None:
        """Returns the reply to a question, None where nobody has asked it yet."""
        with self._usable():  # The file may be damaged behind its first page, which is all that opening has read.
            row = self._base.execute(
                "SELECT text, prompt_tokens, completion_tokens, cut FROM whole_replies WHERE key = ?", (key,)
            ).fetchone()
        return None if row is None else Reply(*row[:3], bool(row[3]))

    def put(self, key: str, reply: Reply) -> None:
        """Keeps a reply; the first one counts where two processes have asked the same."""
        values = (key, self.asker, reply.text, reply.prompt_tokens, reply.completion_tokens, reply.cut)
        with self._usable():
            self._base.execute("INSERT OR IGNORE INTO whole_replies VALUES (?, ?, ?, ?, ?, ?)", values)

    def totals(self) -> dict[str, int]:
        """Returns how many replies this asker has been given so far, killed attempts included, and their tokens."""
        row = self._base.execute(
            "SELECT COUNT(*), COALESCE(SUM(prompt_tokens), 0), COALESCE(SUM(completion_tokens), 0) FROM whole_replies "
            "WHERE asker = ?",
            (self.asker,),
        ).fetchone()
        return dict(zip(("replies", "prompt_tokens", "completion_tokens"), row, strict=True))

    def close(self) -> None:
        """Closes the file."""
        self._base.close()


def _patiently(base: sqlite3.Connection, statement: str) -> None:
    """Executes what SQLite does not wait for by itself where other processes open the same new file."""
    until = time.monotonic() + PATIENCE
    while True:
        try:
            base.execute(statement)
            return
        except sqlite3.OperationalError as error:
            # The low byte: the rest says in which way it is busy.
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > until:
                raise
            time.sleep(0.01)


def key_of(*parts: Any) -> str:
    """Returns the name of a question: the hash of all that decides the reply."""
    return hashlib.sha256(json.dumps(parts, ensure_ascii=False, sort_keys=True).encode()).hexdigest()
