"""Token ids of a run's texts on disk, memory-mapped: scoring and training, in all processes, encode a text once per tokenizer.

Files of Arrow's IPC format in a folder named after the tokenizer, with two columns: `id`, 64 bits of a prompt's or completion's
id, and `ids`, its token ids without any limit. A file is written whole and renamed; any number may lie side by side.
"""

from __future__ import annotations

import hashlib
import os
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import tokenizers
from transformers import PreTrainedTokenizerBase

from handbook_ext.core.artifacts import flush_folder
from handbook_ext.core.records import content_id
from handbook_ext.core.shards import batched
from handbook_ext.policies.truncation import Ids

if TYPE_CHECKING:
    from handbook_ext.policies.chat import Conversation

ENCODING = 1  # Of `ChatEncoder.whole_ids`: a change of the ids that it gives to a text is another number.
ROWS_PER_BATCH = 500
SCHEMA = pa.schema([("id", pa.uint64()), ("ids", pa.list_(pa.int32()))])


class TokenStore:
    """The token ids of one tokenizer's texts in a folder."""

    def __init__(self, folder: Path, tokenizer: PreTrainedTokenizerBase, *facts: Any) -> None:
        """Takes the folder of a run's token ids; `facts` are whatever else decides what ids a text gets."""
        backend = tokenizer.backend_tokenizer.to_str() if tokenizer.is_fast else sorted(tokenizer.get_vocab().items())
        parts = (ENCODING, tokenizers.__version__, backend, tokenizer.chat_template, tokenizer.special_tokens_map, *facts)
        self.folder = folder / hashlib.sha256(repr(parts).encode()).hexdigest()[:16]
        self._files: list[tuple[np.ndarray[Any, Any], pa.ListArray]] = []
        self._read: set[str] = set()

    def filled(
        self, rows: Sequence[Conversation], encode: Callable[[Sequence[Conversation]], list[tuple[list[int], list[list[int]]]]]
    ) -> Iterator[tuple[Ids, list[Ids]]]:
        """Returns the ids of each row's prompt and completions, as views of the files; encodes and keeps what is missing."""
        names = [(prompt_key(row), [int(each, 16) for each in row.ids]) for row in rows]
        self._open_new()
        wanted = np.unique(np.fromiter((key for prompt, texts in names for key in (prompt, *texts)), np.uint64))
        known = self._known(wanted)
        missing = {int(key) for key in wanted[~known]}
        if missing:
            lacking = [row for row, (prompt, texts) in zip(rows, names, strict=True) if not missing.isdisjoint([prompt, *texts])]
            self._write(lacking, missing, encode)
            self._open_new()
        found = self._found(wanted)
        places = {int(key): place for place, key in enumerate(wanted)}
        for prompt, texts in names:
            yield found[places[prompt]], [found[places[each]] for each in texts]

    def _write(self, rows: Sequence[Conversation], missing: set[int], encode: Callable[..., Any]) -> None:
        """Encodes rows in batches and writes what is missing of them to a new file."""
        self.folder.mkdir(parents=True, exist_ok=True)
        partial = self.folder / f".{uuid.uuid4().hex}.partial"
        written: set[int] = set()
        with pa.OSFile(str(partial), "wb") as sink, pa.ipc.new_file(sink, SCHEMA) as out:
            for batch in batched(rows, ROWS_PER_BATCH):
                keys, texts = [], []
                for row, (prompt, completions) in zip(batch, encode(batch), strict=True):
                    named = zip((prompt_key(row), *(int(each, 16) for each in row.ids)), (prompt, *completions), strict=True)
                    for key, ids in named:
                        if key in missing and key not in written:
                            written.add(key)
                            keys.append(key)
                            texts.append(np.asarray(ids, np.int32))
                offsets = np.concatenate([[0], np.cumsum([len(ids) for ids in texts])]).astype(np.int32)
                lists = pa.ListArray.from_arrays(offsets, np.concatenate([np.empty(0, np.int32), *texts]))
                out.write_batch(pa.record_batch([pa.array(keys, pa.uint64()), lists], schema=SCHEMA))
        flush_folder(self.folder)
        os.replace(partial, self.folder / f"{uuid.uuid4().hex}.arrow")

    def _open_new(self) -> None:
        """Maps the files that are not open yet."""
        for path in sorted(self.folder.glob("*.arrow")):
            if path.name in self._read:
                continue
            self._read.add(path.name)
            try:
                reader = pa.ipc.open_file(pa.memory_map(str(path)))
            except (pa.ArrowInvalid, OSError):
                path.unlink(missing_ok=True)  # Of a disk that was full, say: its texts are encoded again.
                continue
            for number in range(reader.num_record_batches):
                batch = reader.get_batch(number)
                self._files.append((batch.column(0).to_numpy(), batch.column(1)))

    def _known(self, wanted: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """Returns for each key whether some file has it."""
        known = np.zeros(len(wanted), bool)
        for keys, _ in self._files:
            known |= np.isin(wanted, keys)
        return known

    def _found(self, wanted: np.ndarray[Any, Any]) -> list[Ids]:
        """Returns the ids of each key, all of which are there, as views of the mapped files."""
        found: list[Ids | None] = [None] * len(wanted)
        for keys, lists in self._files:
            values, offsets = lists.values.to_numpy(), lists.offsets.to_numpy()
            for row in np.flatnonzero(np.isin(keys, wanted)):
                found[int(np.searchsorted(wanted, keys[row]))] = values[offsets[row] : offsets[row + 1]]
        return [each for each in found if each is not None]


def prompt_key(row: Conversation) -> int:
    """Returns 64 bits that identify a prompt's messages."""
    return int(content_id("prompt", row.prompt), 16)
