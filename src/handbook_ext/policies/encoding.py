"""Preference pairs as token ids under the limits of a recipe, with a count for every pair left out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import overload

import numpy as np

from handbook_ext.core.errors import UserError
from handbook_ext.core.records import PreferencePair
from handbook_ext.policies.chat import ChatEncoder, Conversation
from handbook_ext.policies.packing import EncodedPair
from handbook_ext.policies.truncation import Ids


@dataclass(frozen=True)
class PairIds:
    """A pair's ids as arrays, which may lie in a mapped file, and the reference log-probs of its three completions (nats)."""

    prompt: Ids
    chosen: Ids
    rejected: Ids
    explore: Ids | None
    reference: tuple[float, float, float] = (0.0, 0.0, 0.0)

    def distinct(self) -> list[Ids]:
        """Returns the distinct completions: chosen, rejected, and the explored sample where it is neither."""
        extra = self.explore is not None and not any(np.array_equal(self.explore, each) for each in (self.chosen, self.rejected))
        return [self.chosen, self.rejected, *([self.explore] if extra and self.explore is not None else [])]

    def place(self, ids: Ids) -> int:
        """Returns the index among the distinct completions of one that is among them."""
        return next(index for index, each in enumerate(self.distinct()) if np.array_equal(each, ids))

    def __len__(self) -> int:
        """Returns the tokens of the pair's row."""
        return len(self.prompt) + sum(map(len, self.distinct()))


class EncodedPairList(Sequence[EncodedPair]):
    """Encoded pairs whose lists of ids are made when a pair is asked for: lists of numbers take many times the memory."""

    def __init__(self, rows: Sequence[PairIds]) -> None:
        """Takes the pairs as arrays."""
        self.rows = rows

    def __len__(self) -> int:
        """Returns how many pairs there are."""
        return len(self.rows)

    @overload
    def __getitem__(self, index: int) -> EncodedPair: ...
    @overload
    def __getitem__(self, index: slice) -> EncodedPairList: ...
    def __getitem__(self, index: int | slice) -> EncodedPair | EncodedPairList:
        """Returns a pair, or some of them."""
        if isinstance(index, slice):
            return EncodedPairList(self.rows[index])
        row = self.rows[index]
        explore = None if row.explore is None else row.explore.tolist()
        return EncodedPair(row.prompt.tolist(), row.chosen.tolist(), row.rejected.tolist(), explore, row.reference)

    def __iter__(self) -> Iterator[EncodedPair]:
        """Returns the pairs, one after the other."""
        return (self[index] for index in range(len(self.rows)))


@dataclass
class EncodedPairs:
    """Encoded pairs, the ids of their completions in the score store, and what was left out."""

    rows: list[PairIds] = field(default_factory=list)
    ids: list[list[str]] = field(default_factory=list)
    dropped: Counter[str] = field(default_factory=Counter)
    notes: Counter[str] = field(default_factory=Counter)

    @property
    def pairs(self) -> EncodedPairList:
        """Returns the pairs as lists of ids, made when they are asked for."""
        return EncodedPairList(self.rows)

    @property
    def lengths(self) -> list[int]:
        """Returns the tokens of each pair's row."""
        return [len(row) for row in self.rows]

    def with_reference(self, store: dict[str, float], policy: str) -> EncodedPairs:
        """Returns the pairs with their reference log-probs; a UserError names the first ten that the store lacks."""
        missing = [name for names in self.ids for name in names if name not in store]
        if missing:
            raise UserError(
                f"the score store lacks {len(missing)} completions under policy {policy[:12]}, the first: "
                f"{', '.join(missing[:10])}; run make, which scores them"
            )
        rows = []
        for row, names in zip(self.rows, self.ids, strict=True):
            values = [store[name] for name in names]
            explored = 0.0 if row.explore is None else values[row.place(row.explore)]
            rows.append(replace(row, reference=(values[0], values[1], explored)))
        return replace(self, rows=rows)


def encode_pairs(pairs: Sequence[PreferencePair], encoder: ChatEncoder, *, explore: bool) -> EncodedPairs:
    """Returns the pairs as token ids; pairs that truncation makes equal are dropped and counted.

    With `explore` off the explored samples are left out altogether: SELM with alpha 0 is DPO to the bit.
    """
    result, wanted = EncodedPairs(), [_conversation(pair, explore) for pair in pairs]
    for row, (prompt, completions) in zip(wanted, encoder.encode(wanted), strict=True):
        if prompt is None:
            result.dropped["prompt too long"] += 1
            continue
        if any(map(encoder.text.holds_special, (row.prompt, *row.completions))):
            result.notes["special tokens read as text"] += 1
        chosen, rejected, *sample = completions
        if np.array_equal(chosen, rejected):
            result.dropped["chosen equals rejected after truncation"] += 1
            continue
        encoded = PairIds(prompt, chosen, rejected, sample[0] if sample else None)
        # Texts that truncation makes equal are one, under the first one's id.
        names = [""] * len(encoded.distinct())
        for name, ids in zip(row.ids, completions, strict=True):
            index = encoded.place(ids)
            names[index] = names[index] or name
        result.rows.append(encoded)
        result.ids.append(names)
        if sample:
            result.notes["explored"] += 1
            result.notes["explore is chosen"] += bool(np.array_equal(sample[0], chosen))
            result.notes["explore is rejected"] += bool(np.array_equal(sample[0], rejected))
    result.notes["prompts cut"] = encoder.cut_prompts
    result.notes["completions cut"] = encoder.cut_completions
    if not result.rows:
        raise UserError(f"no preference pair is left to train on ({dict(result.dropped)}); check the data and max_length")
    return result


def _conversation(pair: PreferencePair, explore: bool) -> Conversation:
    """Returns a pair's prompt with its texts: chosen, rejected, and where it is wanted the explored sample."""
    texts, ids = [pair.chosen, pair.rejected], [pair.chosen_id, pair.rejected_id]
    if explore and pair.explore and pair.explore_id:
        texts, ids = [*texts, pair.explore], [*ids, pair.explore_id]
    return Conversation(pair.prompt, texts, ids, f"prompt {pair.prompt_id}")
