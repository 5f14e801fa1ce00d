"""Measured rows: what a table reads of a finished run, in one small file that is committed, where the run itself is not.

`make keep-table-<name>` writes `recipes/<model>/measured/<run>.<policy>.json.xz`, a file for each row of a table under each
seed. It holds the settings of every stage behind the numbers, so that a changed recipe is told from the one that was measured,
and a hash of its content. The hash finds what a hand or a merge has changed; it does not say who has measured.
"""

from __future__ import annotations

import base64
import hashlib
import json
import lzma
import re
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError

from handbook_ext.core.errors import UserError
from handbook_ext.core.jsonl import replace_bytes
from handbook_ext.core.records import PreferencePair
from handbook_ext.recipes.section import Section

MEASURED = "measured"
SUFFIX = ".json.xz"
HASH = "sha256"
HASHED = re.compile("[0-9a-f]{16}")
"""A prompt id that nobody has named: the hash of its text."""
MOST_BYTES = 16 << 20  # Of a file, unpacked: what a merge or a stranger brings may be larger than any memory.


class MeasuredDecoding(Section):
    """A policy's completions under one decoding, in the order of the row's prompts; a reward without a verdict is None."""

    temperature: float
    rewards: list[float | None]
    tokens: list[float]


class MeasuredPolicy(Section):
    """A policy's evaluation: its completions by decoding, and single numbers of its implicit reward.

    `log_ratios` has by side the log-ratio to the initial policy (nats) for each of the row's prompts, packed; None where no
    table asked for it.
    """

    decodings: dict[str, MeasuredDecoding] = Field(min_length=1)
    implicit: dict[str, float]
    log_ratios: dict[str, str] | None = None


class MeasuredPairs(Section):
    """The pairs that an iteration trained on: how many, how many with a chosen completion of its own, and the offline ones.

    `swapped` has a 1 for each pair whose chosen completion is the data's and whose label is flipped, a 0 for others of the
    data's; `offline` has the names of their prompts (`short_id`), None where no table compares them.
    """

    pairs: int
    on_policy: int
    offline: list[str] | None
    swapped: str

    @classmethod
    def of(cls, rows: Sequence[PreferencePair]) -> MeasuredPairs:
        """Returns what a table reads of an iteration's pairs."""
        kept = {short_id(pair.prompt_id): pair.swapped for pair in rows if pair.chosen_origin == "offline"}
        own = sum(pair.chosen_origin == "on_policy" for pair in rows)
        return cls(pairs=len(rows), on_policy=own, offline=[*kept], swapped="".join("01"[flag] for flag in kept.values()))

    @property
    def flipped(self) -> dict[str, bool]:
        """Returns whether the label of each offline pair is flipped, by the name of its prompt, or by place without names."""
        names = map(str, range(len(self.swapped))) if self.offline is None else self.offline
        return {name: flag == "1" for name, flag in zip(names, self.swapped, strict=True)}


class Made(Section):
    """Where and when a row was measured: machines in words, the day of the evaluation (UTC), code and packages.

    `seconds` is what all stages behind it took together, without those that another run had made; None where nobody counted.
    """

    machines: list[str]
    date: str
    code: dict[str, str | bool | None]
    packages: dict[str, str]
    seconds: float | None = None


class MeasuredRow(Section):
    """A policy of a run and the one that the run's loop starts from, as they were evaluated, with what a table needs besides.

    `settings` has the settings of each stage that determines the numbers, by its artifact, in the order of the stages.
    """

    format: Literal[1] = 1
    run: str
    policy: str
    start: str
    settings: dict[str, dict[str, Any]]
    made: Made
    seed: int
    ranker: str
    judge: str
    prompts: list[str]
    policies: dict[str, MeasuredPolicy]
    pairs: dict[str, MeasuredPairs]


def measured_file(folder: Path, run: str, policy: str) -> Path:
    """Returns where the row of a run's policy is kept; folder: that of the recipe's file."""
    return folder / MEASURED / f"{run}.{policy}{SUFFIX}"


def write_measured(path: Path, row: MeasuredRow) -> None:
    """Writes a row whole or not at all; equal rows have equal bytes."""
    content = row.model_dump(mode="json")
    text = json.dumps(content | {HASH: _hash_of(content)}, ensure_ascii=False, separators=(",", ":"))
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_bytes(path, lzma.compress(text.encode(), preset=9 | lzma.PRESET_EXTREME))


def read_measured(path: Path) -> MeasuredRow | None:
    """Returns a kept row, None where there is none; raises UserError for one that is not as it was kept."""
    try:
        with lzma.open(path) as stream:
            text = stream.read(MOST_BYTES + 1)
        content: dict[str, Any] = json.loads(text) if len(text) <= MOST_BYTES else {}
        stated = content.pop(HASH)
        found = _hash_of(content)
    except FileNotFoundError:
        return None
    except (OSError, EOFError, lzma.LZMAError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{path}: is no row that was kept ({error or type(error).__name__}); {_REMEDY}") from None
    if stated != found:
        raise UserError(f"{path}: was changed after it was kept (sha256 {found[:12]}, it says {str(stated)[:12]}); {_REMEDY}")
    try:
        return MeasuredRow.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise UserError(f"{path}: {where}: {first['msg']}; {_REMEDY}") from None


def short_id(prompt_id: str) -> str:
    """Returns what sets of prompts are compared by: 40 bits of an id that is a hash.

    Of 4,000 some two are equal once in 100,000 times. Half of what a kept row weighs would else be ids.
    """
    return prompt_id[:10] if HASHED.fullmatch(prompt_id) else prompt_id


def packed(values: Sequence[float]) -> str:
    """Returns numbers as text, four bytes each where these hold all of them, as of what a model has computed, else eight."""
    wide = struct.pack(f"<{len(values)}d", *values)
    try:
        narrow = struct.pack(f"<{len(values)}f", *values)
    except OverflowError:
        narrow = b""
    # Compared as bytes: what is not there is nan.
    lossless = narrow and struct.pack(f"<{len(values)}d", *struct.unpack(f"<{len(values)}f", narrow)) == wide
    return base64.b64encode(narrow if lossless else wide).decode()


def unpacked(text: str, count: int) -> list[float]:
    """Returns so many numbers that `packed` has made a text of."""
    content = base64.b64decode(text)
    return list(struct.unpack(f"<{count}{'f' if len(content) == 4 * count else 'd'}", content))


_REMEDY = "restore it (git checkout), or delete it, and its run is made again"


def _hash_of(content: dict[str, Any]) -> str:
    """Returns the hash of a row's content, whatever the order and the spelling of its JSON."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
