"""Preference pairs as prefix-shared rows: `prompt | chosen | rejected | explore`, each completion blind to the others.

Legend: R rows, L tokens per row, B pairs, S completions computed, N completion tokens.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

NO_COMPLETION = -1


@dataclass(frozen=True)
class EncodedPair:
    """A preference pair as token ids, with the reference model's log-probs of chosen, rejected and explore (nats, summed).

    `explore` is SELM's explored sample; it may equal chosen or rejected, and is None where there is none.
    """

    prompt: list[int]
    chosen: list[int]
    rejected: list[int]
    explore: list[int] | None = None
    reference: tuple[float, float, float] = (0.0, 0.0, 0.0)

    @property
    def completions(self) -> list[list[int]]:
        """Returns the distinct completions; an `explore` that equals chosen or rejected is not repeated, nor computed twice."""
        extra = [self.explore] if self.explore not in (None, self.chosen, self.rejected) else []
        return [self.chosen, self.rejected, *[ids for ids in extra if ids is not None]]

    @property
    def explore_index(self) -> int:
        """Returns the index in `completions` of the explored sample, or NO_COMPLETION."""
        return NO_COMPLETION if self.explore is None else self.completions.index(self.explore)

    def __len__(self) -> int:
        """Returns the tokens of the pair's row."""
        return len(self.prompt) + sum(map(len, self.completions))


@dataclass(frozen=True)
class EncodedGroup:
    """A prompt with any number of distinct completions, as token ids, for scoring; they have no preference among them."""

    prompt: list[int]
    completions: list[list[int]]
    explore_index: int = NO_COMPLETION

    def __len__(self) -> int:
        """Returns the tokens of the group's row."""
        return len(self.prompt) + sum(map(len, self.completions))


@dataclass(frozen=True)
class PackedRows:
    """Prefix-shared rows ready for a model.

    input_ids, positions (R, L). pair, part (R, L): which pair a token belongs to (-1 is padding) and which part of it (0 the
    prompt, k > 0 the k-th completion). predictors (N,): indices into the flattened (R * L) states that predict targets (N,).
    owner (N,) in 0..S-1: the completion of each target. chosen, rejected, explore (B,): indices of completions; explore may
    be NO_COMPLETION. completion_tokens (S,): tokens of each completion.
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

    def cut(self, chunk: slice) -> PackedRows:
        """Returns a chunk of the rows, cut to the longest of them, (r, l); tensors over completions stay those of all rows."""
        width = int((self.pair[chunk] >= 0).sum(1).max())
        names = ("input_ids", "positions", "pair", "part")
        return replace(self, **{name: getattr(self, name)[chunk, :width] for name in names})  # (R, L) -> (r, l)

    @property
    def padding_share(self) -> float:
        """Returns the share of row positions that hold no token."""
        return float((self.pair < 0).float().mean())


def pack(
    pairs: Sequence[EncodedPair | EncodedGroup], *, pad_id: int, one_row: bool = False, multiple_of: int = 1
) -> PackedRows:  # fmt: skip
    """Returns the rows of a micro-batch: one padded row per pair, or all pairs in one row (for a block-sparse mask).

    Rows are padded to a multiple of `multiple_of` tokens, so that a compiler meets few lengths.

    Raises ValueError for an empty prompt, from which nothing can be predicted, or an empty completion.
    """
    rows: list[_Row] = []
    sides: list[tuple[int, int, int]] = []  # Of each pair, the completions that are chosen, rejected and explore.
    completions = 0
    for number, pair in enumerate(pairs):
        if not pair.prompt or not all(pair.completions):
            raise ValueError("a pair needs a prompt and completions of at least one token")
        if not rows or not one_row:
            rows.append(_Row())
        rows[-1].add(number, pair, completions)
        explore = pair.explore_index
        sides.append((completions, completions + 1, completions + explore if explore >= 0 else NO_COMPLETION))
        completions += len(pair.completions)
    length = math.ceil(max(len(row.ids) for row in rows) / multiple_of) * multiple_of
    predictors = [r * length + index for r, row in enumerate(rows) for index in row.predictors]  # In a row -> in (R * L).
    chosen, rejected, explored = torch.tensor(sides).unbind(1)  # (B, 3) -> 3 x (B,)
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


def string_together(ids: Sequence[int], labels: Sequence[int], lengths: Sequence[int], *, ignored: int) -> PackedRows:
    """Returns sequences that follow each other in one row without padding, each blind to the others; log-probs are one sum.

    ids and labels are those of all sequences, `lengths` the tokens of each. A label of `ignored` counts for nothing, nor does
    that of a sequence's first token, which nothing predicts.
    """
    tokens, targets, sizes = torch.tensor(ids), torch.tensor(labels), torch.tensor(lengths)  # (L,), (L,), (B,)
    starts = torch.repeat_interleave(sizes.cumsum(0) - sizes, sizes)  # (L,): where the sequence of each token begins.
    places = torch.arange(len(tokens))
    counted = ((targets != ignored) & (places > starts)).nonzero()[:, 0]  # (N,)
    none = torch.empty(0, dtype=torch.int64)
    return PackedRows(
        input_ids=tokens[None], positions=(places - starts)[None],
        pair=torch.repeat_interleave(torch.arange(len(sizes)), sizes)[None], part=torch.zeros_like(tokens)[None],
        predictors=counted - 1, targets=targets[counted], owner=torch.zeros_like(counted),
        chosen=none, rejected=none, explore=none, completion_tokens=torch.tensor([len(counted)]),
    )  # fmt: skip


def may_attend(rows: PackedRows) -> Tensor:
    """Returns which key each query may see, (R, 1, L, L) bool.

    A token sees earlier tokens of its own pair that lie in the prompt or in its own completion. Padding sees itself, so
    that no softmax is empty.
    """
    pair, part = rows.pair, rows.part
    length = pair.shape[1]
    order = torch.arange(length, device=pair.device)
    causal = order[:, None] >= order[None, :]  # (L, L), query by key
    same_pair = (pair[:, :, None] == pair[:, None, :]) & (pair[:, :, None] >= 0)  # (R, L, L)
    visible = (part[:, None, :] == 0) | (part[:, :, None] == part[:, None, :])  # (R, L, L)
    itself = torch.eye(length, dtype=torch.bool, device=pair.device)  # (L, L)
    return ((causal & same_pair & visible) | itself)[:, None]  # (R, L, L) -> (R, 1, L, L), the same for all heads


class _Row:
    """A row under construction: pairs are appended one by one."""

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
        """Appends the prompt and the distinct completions of a pair; `first_completion` is the index of its first one.

        Each completion continues the positions of the prompt, as if it followed it directly: with the mask of `may_attend`
        its log-prob is then what a row of its own would give.
        """
        size = len(pair.prompt)
        last_of_prompt = len(self.ids) + size - 1
        self._extend(pair.prompt, 0, number, 0)
        for k, ids in enumerate(pair.completions):
            start = len(self.ids)
            # The state at a position predicts the next token, so the prompt's last one predicts each completion's first.
            self.predictors += [last_of_prompt, *range(start, start + len(ids) - 1)]
            self.targets += ids
            self.owners += [first_completion + k] * len(ids)
            self._extend(ids, size, number, k + 1)

    def _extend(self, ids: list[int], position: int, number: int, part: int) -> None:
        """Appends one part of a pair, its positions counted from `position`."""
        self.ids += ids
        self.positions += range(position, position + len(ids))
        self.pairs += [number] * len(ids)
        self.parts += [part] * len(ids)


def _table(rows: list[list[int]], length: int, fill: int) -> Tensor:
    """Returns rows of different length as one (R, length) tensor, filled up on the right."""
    return torch.tensor([row + [fill] * (length - len(row)) for row in rows])
