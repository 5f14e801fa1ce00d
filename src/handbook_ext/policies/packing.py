"""Preference pairs as prefix-shared rows: `prompt | chosen | rejected | explore`, each completion blind to the others.

Legend: R rows, L tokens per row, B pairs, S completions computed, N completion tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

NO_COMPLETION = -1


@dataclass(frozen=True)
class EncodedPair:
    """A pair as token ids with the log-probs (nats, summed) of the reference model; explore may equal another text."""

    prompt: list[int]
    chosen: list[int]
    rejected: list[int]
    explore: list[int] | None = None
    reference: tuple[float, float, float] = (0.0, 0.0, 0.0)

    @property
    def completions(self) -> list[list[int]]:
        """Returns the distinct completions; an `explore` that is also chosen or rejected is there once."""
        extra = [self.explore] if self.explore not in (None, self.chosen, self.rejected) else []
        return [self.chosen, self.rejected, *[ids for ids in extra if ids is not None]]

    @property
    def explore_index(self) -> int:
        """Returns which of `completions` the explored sample is, or NO_COMPLETION."""
        return NO_COMPLETION if self.explore is None else self.completions.index(self.explore)

    def __len__(self) -> int:
        """Returns the tokens of the pair's row."""
        return len(self.prompt) + sum(map(len, self.completions))


@dataclass(frozen=True)
class EncodedGroup:
    """A prompt with any number of distinct completions, as token ids, to be scored; no pair is meant."""

    prompt: list[int]
    completions: list[list[int]]
    explore_index: int = NO_COMPLETION

    def __len__(self) -> int:
        """Returns the tokens of the group's row."""
        return len(self.prompt) + sum(map(len, self.completions))


@dataclass(frozen=True)
class PackedRows:
    """Prefix-shared rows ready for a model.

    input_ids, positions (R, L); pair, part (R, L): which pair a token belongs to (-1 is padding) and which part of it (0
    the prompt, k > 0 the k-th completion). predictors (N,) index the flattened (R * L) states that predict targets (N,);
    owner (N,) in 0..S-1 is the completion of each target. chosen, rejected, explore (B,) index completions; explore may be
    NO_COMPLETION. completion_tokens (S,).
    """

    input_ids: Tensor
    positions: Tensor
    pair: Tensor
    part: Tensor
    predictors: Tensor
    targets: Tensor
    owner: Tensor
    chosen: Tensor
    rejected: Tensor
    explore: Tensor
    completion_tokens: Tensor

    def to(self, device: torch.device | str) -> PackedRows:
        """Returns the same rows on a device."""
        return PackedRows(**{name: tensor.to(device) for name, tensor in vars(self).items()})

    def cut(self, run: slice) -> PackedRows:
        """Returns some rows, cut to the longest of them; what belongs to completions stays that of all rows."""
        width = int((self.pair[run] >= 0).sum(1).max())
        names = ("input_ids", "positions", "pair", "part")
        return replace(self, **{name: getattr(self, name)[run, :width] for name in names})

    @property
    def padding_share(self) -> float:
        """Returns the share of row positions that hold no token."""
        return float((self.pair < 0).float().mean())


def pack(pairs: Sequence[EncodedPair | EncodedGroup], *, pad_id: int, one_row: bool = False) -> PackedRows:
    """Returns the rows of a micro-batch: one padded row per pair, or all pairs in one row (for a block-sparse mask).

    Raises ValueError for an empty prompt or completion, which has nothing to predict from or to predict.
    """
    rows: list[_Row] = []
    ends: list[tuple[int, int, int]] = []
    completions = 0
    for number, pair in enumerate(pairs):
        if not pair.prompt or not all(pair.completions):
            raise ValueError("a pair needs a prompt and completions of at least one token")
        if not rows or not one_row:
            rows.append(_Row())
        rows[-1].add(number, pair, completions)
        explore = pair.explore_index
        ends.append((completions, completions + 1, completions + explore if explore >= 0 else NO_COMPLETION))
        completions += len(pair.completions)
    length = max(len(row.ids) for row in rows)
    predictors = [r * length + place for r, row in enumerate(rows) for place in row.predictors]
    chosen, rejected, explored = torch.tensor(ends).unbind(1)
    owner = torch.tensor([owner for row in rows for owner in row.owners])
    return PackedRows(
        input_ids=_table([row.ids for row in rows], length, pad_id),
        positions=_table([row.positions for row in rows], length, 0),
        pair=_table([row.pairs for row in rows], length, -1),
        part=_table([row.parts for row in rows], length, 0),
        predictors=torch.tensor(predictors),
        targets=torch.tensor([target for row in rows for target in row.targets]),
        owner=owner, chosen=chosen, rejected=rejected, explore=explored,
        completion_tokens=torch.bincount(owner, minlength=completions),
    )  # fmt: skip


def may_attend(rows: PackedRows) -> Tensor:
    """Returns which key each query may see, (R, 1, L, L) bool.

    A token sees earlier tokens of its own pair that lie in the prompt or in its own completion. Padding sees itself, so
    that no softmax is empty.
    """
    pair, part = rows.pair, rows.part
    length = pair.shape[1]
    order = torch.arange(length, device=pair.device)
    causal = order[:, None] >= order[None, :]
    same_pair = (pair[:, :, None] == pair[:, None, :]) & (pair[:, :, None] >= 0)
    visible = (part[:, None, :] == 0) | (part[:, :, None] == part[:, None, :])
    itself = torch.eye(length, dtype=torch.bool, device=pair.device)
    return ((causal & same_pair & visible) | itself)[:, None]


class _Row:
    """A row that grows pair by pair."""

    def __init__(self) -> None:
        """Starts empty."""
        self.ids: list[int] = []
        self.positions: list[int] = []
        self.pairs: list[int] = []
        self.parts: list[int] = []
        self.predictors: list[int] = []
        self.targets: list[int] = []
        self.owners: list[int] = []

    def add(self, number: int, pair: EncodedPair | EncodedGroup, first_completion: int) -> None:
        """Appends the prompt and the distinct completions of a pair; positions restart behind the prompt."""
        size = len(pair.prompt)
        last_of_prompt = len(self.ids) + size - 1
        self._extend(pair.prompt, 0, number, 0)
        for k, ids in enumerate(pair.completions):
            start = len(self.ids)
            self.predictors += [last_of_prompt, *range(start, start + len(ids) - 1)]
            self.targets += ids
            self.owners += [first_completion + k] * len(ids)
            self._extend(ids, size, number, k + 1)

    def _extend(self, ids: list[int], position: int, number: int, part: int) -> None:
        """Appends one part of a pair."""
        self.ids += ids
        self.positions += range(position, position + len(ids))
        self.pairs += [number] * len(ids)
        self.parts += [part] * len(ids)


def _table(rows: list[list[int]], length: int, fill: int) -> Tensor:
    """Returns ragged rows as one (R, length) tensor."""
    return torch.tensor([row + [fill] * (length - len(row)) for row in rows])
