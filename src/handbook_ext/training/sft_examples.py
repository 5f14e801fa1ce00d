"""Demonstrations as token ids with labels for SFT: which tokens of a conversation count in the loss."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from datasets import Dataset

from handbook_ext.core.artifacts import json_object, sha256_of
from handbook_ext.core.errors import UserError
from handbook_ext.core.jsonl import write_json
from handbook_ext.core.records import Demonstration
from handbook_ext.core.shards import batched
from handbook_ext.policies.chat import ChatEncoder, Conversation
from handbook_ext.recipes.settings import SFTSettings

IGNORED = -100  # The label of a token that counts in no loss.
ROWS_AT_ONCE = 512  # Conversations that go through the tokenizer together.
COLUMNS = ("input_ids", "labels")


@dataclass
class SFTExamples:
    """Token ids and labels, int32, a pair per row; how many demonstrations were dropped, and how many lost their end.

    `answers_found` are the answers before the last one that count in the loss, `answers_left_out` those whose tokens within the
    conversation are not the ones that the policy would generate there.
    """

    pairs: list[tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]] = field(default_factory=list)
    dropped: int = 0
    cut: int = 0
    answers_found: int = 0
    answers_left_out: int = 0

    @property
    def rows(self) -> list[dict[str, list[int]]]:
        """Returns the rows as lists of `input_ids` and `labels`."""
        return [dict(zip(COLUMNS, (each.tolist() for each in pair), strict=True)) for pair in self.pairs]

    def counts(self) -> dict[str, int]:
        """Returns how many rows there are, and what was dropped, cut, found and left out."""
        return {
            "rows": len(self.pairs), "dropped": self.dropped, "cut": self.cut, "answers_left_out": self.answers_left_out,
        }  # fmt: skip

    def add(self, ids: Sequence[int], labels: Sequence[int]) -> None:
        """Adds a row."""
        self.pairs.append((np.asarray(ids, np.int32), np.asarray(labels, np.int32)))

    def write(self, path: Path) -> None:
        """Writes the rows as a table that `datasets` maps into memory."""
        schema = pa.schema([(name, pa.list_(pa.int32())) for name in COLUMNS])
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, schema) as out:
            for batch in batched(self.pairs, ROWS_AT_ONCE):
                out.write_batch(pa.record_batch([_lists(column) for column in zip(*batch, strict=True)], schema=schema))


def examples_once(folder: Path, make: Callable[[], SFTExamples]) -> tuple[Dataset, dict[str, int]]:
    """Returns the rows of SFT mapped from a folder, and their counts; they are made where the folder does not have them.

    So all processes of a launch, and a stage that resumes, share one encoding: call it where the first process goes first.
    """
    table, counts = folder / "examples.arrow", folder / "examples.json"
    found = json_object(counts) or {}
    # A table that was cut off since would be read as far as it goes, or not at all.
    if not table.is_file() or found.get("sha256") != sha256_of(table):
        examples = make()
        examples.write(table)
        found = {"counts": examples.counts(), "sha256": sha256_of(table)}
        write_json(counts, found)  # Last: it says that the table is whole.
    return Dataset.from_file(str(table)), dict(found["counts"])


def _lists(rows: Sequence[np.ndarray[Any, Any]]) -> pa.ListArray:
    """Returns a column of lists of token ids."""
    offsets = np.cumsum([0, *(len(row) for row in rows)], dtype=np.int32)
    return pa.ListArray.from_arrays(offsets, np.concatenate(rows))


def sft_examples(demonstrations: list[Demonstration], encoder: ChatEncoder, settings: SFTSettings) -> SFTExamples:
    """Returns the rows of SFT, with the ids of all later stages; the encoder's limit is the `max_length` of the settings.

    loss_on `completion` counts the last answer alone; `assistant` every answer as the completion of the conversation before it;
    `all` every token. For the last two max_length cuts the conversation's end, and `long_prompts` is about the prompt of its
    first answer. Nothing is cut where the rows are packed `wrapped`, which splits them.
    Raises UserError where no row is left, or where a template has no answer but the last one that could be counted.
    """
    examples = SFTExamples()
    limit = None if settings.packing and settings.packing_strategy == "wrapped" else settings.max_length
    for batch in batched(demonstrations, ROWS_AT_ONCE):
        if settings.loss_on == "completion":
            _add_completions(examples, batch, encoder, limit)
        else:
            _add_conversations(examples, batch, encoder, limit, every_token=settings.loss_on == "all")
    examples.cut += encoder.cut_completions
    if not examples.pairs:
        raise UserError("sft: every prompt is too long for sft.max_length; raise it")
    if examples.answers_left_out and not examples.answers_found:
        raise UserError(
            "sft.loss_on: assistant: the chat template renders an answer otherwise once the conversation goes on; set it to "
            "completion, or give a template that does not"
        )
    return examples


def _place(row: Demonstration) -> str:
    """Returns the name of a row in a UserError."""
    return row.source or f"prompt {row.prompt_id}"


def _add_completions(examples: SFTExamples, rows: list[Demonstration], encoder: ChatEncoder, limit: int | None) -> None:
    """Adds rows with a loss on their completions alone, or counts them as dropped."""
    asked = [Conversation(row.prompt, [row.completion], [], _place(row)) for row in rows]
    if limit is None:
        encoded = encoder.whole_ids(asked)
    else:
        encoded = [(None if ids is None else ids.tolist(), [text.tolist()]) for ids, [text] in encoder.encode(asked)]
    for prompt, [completion] in encoded:
        if prompt is None:
            examples.dropped += 1
        else:
            examples.add(prompt + completion, [IGNORED] * len(prompt) + completion)


def _add_conversations(
    examples: SFTExamples, rows: list[Demonstration], encoder: ChatEncoder, limit: int | None, *, every_token: bool
) -> None:
    """Adds rows with a loss on all their answers, or on every token; or counts them as dropped."""
    answers = [_answers(row) for row in rows]
    encoded = iter(encoder.whole_ids([each for row in answers for each in row]))
    for row in answers:
        # The last answer first: its prompt and itself are the whole conversation.
        (head, [tail]), *earlier = [next(encoded) for _ in row]
        ids, spans, prompts = head + tail, [(len(head), len(head) + len(tail))], [row[0].prompt]
        for asked, (before, [answer]) in zip(row[1:], earlier, strict=True):
            end = len(before) + len(answer)
            # Else tokens merge across a border, or the template renders earlier answers in another way.
            if ids[:end] == before + answer:
                spans.append((len(before), end))
                prompts.append(asked.prompt)
            elif not every_token:
                examples.answers_left_out += 1
        first = spans[-1][0]
        prompt = ids[:first] if limit is None else encoder.prompt_ids(prompts[-1], row[0].where)
        if prompt is None:
            examples.dropped += 1
            continue
        examples.answers_found += len(spans) - 1
        shift = len(prompt) - first
        ids = prompt + ids[first:]
        labels = ids if every_token else [IGNORED] * len(ids)
        for start, end in [] if every_token else spans:
            labels[start + shift : end + shift] = ids[start + shift : end + shift]
        examples.cut += limit is not None and len(ids) > limit
        examples.add(ids[:limit], labels[:limit])


def _answers(row: Demonstration) -> list[Conversation]:
    """Returns every answer of a conversation as the completion of what stands before it, the last one first."""
    turns, last = [*row.prompt, *row.completion], len(row.prompt)
    places = [
        index
        for index in range(last - 1, 0, -1)
        if turns[index]["role"] == "assistant" and any(turn["role"] == "user" for turn in turns[:index])
    ]
    return [Conversation(turns[:index], [turns[index : index + 1]], [], _place(row)) for index in (last, *places)]
