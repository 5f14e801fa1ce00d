"""How many rows a run has and how long they are in tokens, each with how it is known. No torch."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any, TypeVar

from handbook_ext.core.artifacts import json_object, manifest_path
from handbook_ext.core.errors import UserError
from handbook_ext.core.jsonl import iter_jsonl
from handbook_ext.graph.rule import ROWS
from handbook_ext.graph.stages import Limits
from handbook_ext.planning.hub import snapshot
from handbook_ext.planning.published_data import BYTES_PER_TOKEN, DATA_SETS
from handbook_ext.recipes.run import Run
from handbook_ext.recipes.settings import DATA_SUFFIXES, DataSettings

if TYPE_CHECKING:
    from handbook_ext.data.offline import OfflineData

SAMPLE = 1000  # Rows whose tokens are counted, evenly spaced.
PER_TURN = 5  # Tokens that a chat template puts around a message: its header, a line break, its end.
WORLDS_TURN = 3  # The same by the tokenizer of the tiny recipes, to which headers are one token.
WORLD = "tiny_world"

T = TypeVar("T")


@dataclass(frozen=True)
class Lengths:
    """Tokens of one preference row: its prompt with the header of the answer, and two completions with their end token."""

    prompt: int
    chosen: int
    rejected: int

    def under(self, limits: Limits) -> Lengths | None:
        """Returns the row as truncation leaves it; None where it is dropped for its prompt."""
        most, room = limits.max_prompt_length, limits.max_length
        prompt, longest = self.prompt, max(self.chosen, self.rejected)
        if most is not None and prompt > most and (limits.truncation == "always" or prompt + longest > room):
            if limits.long_prompts == "drop":
                return None
            prompt = most
        if prompt >= room:
            if limits.long_prompts == "drop":
                return None
            prompt = room - 1
        return Lengths(prompt, min(self.chosen, room - prompt), min(self.rejected, room - prompt))


@dataclass(frozen=True)
class Amounts:
    """Rows by purpose, the lengths of a sample of the training rows and of the conversations of SFT, and how both are known.

    read, dropped: raw rows that were read, and of these those left out, by reason; 0 where nothing was read.
    """

    train: int
    test: int
    sft: int
    pairs: Sequence[Lengths]
    conversations: Sequence[int]
    rows_basis: str
    lengths_basis: str
    known: dict[Hashable, Any] = field(default_factory=dict, compare=False)
    read: int = 0
    dropped: Mapping[str, int] = field(default_factory=dict)

    def once(self, key: Hashable, make: Callable[[], T]) -> T:
        """Returns what is worked out of the lengths under a key, once: a search for settings asks for it again."""
        if key not in self.known:
            self.known[key] = make()
        found: T = self.known[key]
        return found


def amounts_of(run: Run, folder: Path) -> Amounts:
    """Returns the rows and lengths of a run: of its prepared rows, its local files, the tiny world, or the table.

    Raises UserError where the data set is not here and not in the table.
    """
    data = run.settings.data
    prepared = {name: folder / ROWS / f"{name}.jsonl" for name in ("train", "test", "sft")}
    if all(path.is_file() for path in prepared.values()):
        rows = {name: list(iter_jsonl(path)) for name, path in prepared.items()}
        counts = (json_object(manifest_path(folder / ROWS)) or {}).get("counts") or {}
        found = _measured(run, folder, {name: [row for _, row in each] for name, each in rows.items()}, "the prepared rows")
        return replace(found, read=counts.get("in", 0), dropped=counts.get("dropped", {}))
    if data.train.endswith(DATA_SUFFIXES) or data.dataset == WORLD:
        from handbook_ext.data.offline import load_offline_data  # noqa: PLC0415 - takes a second to load

        loaded = load_offline_data(data, run.settings.seed)
        return measured(run, folder, loaded, "the tiny world" if data.dataset == WORLD else "the local files")
    return _published(data)


def measured(run: Run, folder: Path, loaded: OfflineData, where: str) -> Amounts:
    """Returns the amounts of rows that were read; `where` says from what."""
    names = {"train": loaded.train, "test": loaded.test, "sft": loaded.demonstrations}
    rows_of = {name: [row.model_dump(include={"prompt", "chosen", "rejected", "completion"}) for row in found]  # type: ignore[attr-defined]
               for name, found in names.items()}  # fmt: skip
    return replace(_measured(run, folder, rows_of, where), read=loaded.read, dropped=dict(loaded.dropped))


def _published(data: DataSettings) -> Amounts:
    """Returns the rows and lengths of public data sets by the table."""
    known = DATA_SETS.get(str(data.dataset))
    tuned = DATA_SETS.get(str(data.sft_dataset)) if data.sft_dataset is not None else known
    for name, found in ((data.dataset, known), (data.sft_dataset, tuned)):
        if name is not None and found is None:
            raise UserError(
                f"data: the rows of '{name}' are not known: they are neither prepared here (make <run>-check does) nor in the "
                f"table, which has {', '.join(DATA_SETS)}; name local files, or prepare them once where there is a network"
            )
    if known is None or tuned is None:
        raise UserError("data: names no data set and no files, so nothing is known of its rows; name one of the two")
    train = _most(known.count(str(data.dataset), data.train), data.train_rows)
    stated = data.sft or ("train_sft" if data.sft_dataset is not None else data.train)
    sft = _most(tuned.count(str(data.sft_dataset or data.dataset), stated), data.sft_rows)
    pairs = [Lengths(p + 2 * PER_TURN, c + 1, r + 1) for p, c, r in known.lengths()]
    whole = tuned.conversation
    conversations = [round(whole)] if whole is not None else [each.prompt + each.chosen for each in pairs]
    return Amounts(
        train if data.prompts == "preferences" else _most(sft, data.train_rows),
        _most(known.count(str(data.dataset), data.test), data.test_rows), sft, pairs, conversations,
        f"published ({known.source})", f"assumed: log-normal, prompts of {known.prompt:g} and completions of "
        f"{known.completion:g} tokens on average",
    )  # fmt: skip


def _most(count: int, limit: int | None) -> int:
    """Returns a count under the limit of a recipe."""
    return count if limit is None else min(count, limit)


def _measured(run: Run, folder: Path, rows: dict[str, list[dict[str, Any]]], where: str) -> Amounts:
    """Returns counts of rows that are here, and the lengths of an evenly spaced sample by the tokenizer that is here."""
    sample = _spaced(rows["train"])
    texts = [_text(row[part]) for row in sample for part in ("prompt", "chosen", "rejected")]
    told = _spaced(rows["sft"])
    texts += [_text([*row["prompt"], *row["completion"]]) for row in told]
    counts, basis = _count(run, folder, texts)
    around = WORLDS_TURN if run.settings.data.dataset == WORLD else PER_TURN
    turns = [around * (len(row["prompt"]) + 1) for row in sample]
    pairs = [
        Lengths(counts[3 * place] + turns[place], counts[3 * place + 1] + 1, counts[3 * place + 2] + 1)
        for place in range(len(sample))
    ]
    conversations = [
        count + around * (len(row["prompt"]) + 1) for count, row in zip(counts[3 * len(sample) :], told, strict=True)
    ]
    return Amounts(
        len(rows["train"]), len(rows["test"]), len(rows["sft"]), pairs, conversations, f"counted in {where}",
        f"{basis}, {len(sample):,} rows of {where}",
    )  # fmt: skip


def _spaced(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns SAMPLE evenly spaced rows, or all."""
    step = max(1, len(rows) // SAMPLE)
    return rows[::step][:SAMPLE]


def _text(messages: Sequence[dict[str, str]]) -> str:
    """Returns the texts of messages."""
    return "\n".join(message["content"] for message in messages)


def _count(run: Run, folder: Path, texts: list[str]) -> tuple[list[int], str]:
    """Returns the tokens of texts, by the policy's tokenizer where it is here, else estimated; and which of the two."""
    path = _tokenizer_file(run, folder)
    if path is not None:
        from tokenizers import Tokenizer  # noqa: PLC0415 - a plan without a tokenizer needs none

        tokenizer = Tokenizer.from_file(str(path))
        return [len(each.ids) for each in tokenizer.encode_batch(texts, add_special_tokens=False)], f"counted by {path}"
    if run.settings.data.dataset == WORLD and not run.settings.data.train.endswith(DATA_SUFFIXES):
        return [len(text.split()) for text in texts], "a token for each word, as its tokenizer learns them"
    return [math.ceil(len(text.encode()) / BYTES_PER_TOKEN) for text in texts], f"estimated: {BYTES_PER_TOKEN:g} bytes a token"


def _tokenizer_file(run: Run, folder: Path) -> Path | None:
    """Returns the file of the policy's tokenizer where it is here: made by the run, a local checkpoint, or the hub's cache."""
    model = run.settings.model
    places = [folder / run.start / "policy"]
    if model.name_or_path is not None:
        cached = snapshot("models", model.name_or_path, model.revision)
        places += [Path(model.name_or_path), *([cached] if cached is not None else [])]
    return next((place / "tokenizer.json" for place in places if (place / "tokenizer.json").is_file()), None)


def mean(values: Sequence[float]) -> float:
    """Returns the mean; 0 of nothing."""
    return fmean(values) if values else 0.0
