"""What becomes of a prompt and its completions that are too long together.

`always` cuts every prompt to `max_prompt_length` and every completion to what is left of `max_length`, in all stages.
`as_needed` is SELM's (its trainer's tokenize_row): only where prompt and longest completion exceed `max_length`, the prompt is
cut to `max_prompt_length`, and if that does not suffice, the completions to `max_length - max_prompt_length`; generation reads
the whole prompt. A cut prompt keeps its first tokens, BOS and the header of the first message, and its end.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from handbook_ext.core.errors import UserError

Ids = NDArray[np.int32]


@dataclass
class Truncation:
    """The limits of a recipe, in tokens, and how often they were met.

    Without `max_prompt_length` a prompt may fill all but one token; `long_prompts` says what happens to a longer one: error,
    truncate (to half of the room) or drop. keep_head: False cuts a prompt's beginning whatever it holds.
    `cuts` counts prompts and completions.
    """

    max_length: int
    max_prompt_length: int | None = None
    long_prompts: str = "error"
    way: str = "always"
    keep_head: bool = True
    cuts: Counter[str] = field(default_factory=Counter)

    def prompt(self, ids: Ids, head: Callable[[], int], where: str) -> Ids | None:
        """Returns a prompt's ids where it stands alone, as for generation; None where it is dropped.

        head: gives the tokens of its beginning that stay. Raises UserError that names `where`.
        """
        return ids if self.way == "as_needed" else self._limited(ids, head, where)

    def row(
        self, ids: Ids, completions: Sequence[Ids], head: Callable[[], int], where: str, *, decisive: int | None = None
    ) -> tuple[Ids | None, list[Ids]]:
        """Returns the ids of a prompt, None where it is dropped, and of its completions.

        decisive: how many of the completions, from the first, decide whether the row is too long; None is all.
        """
        if self.way == "always":
            prompt = self._limited(ids, head, where)
            if prompt is None:
                return None, list(completions)
            return prompt, self._cut(completions, self.max_length - len(prompt))
        longest = max(map(len, completions[:decisive]), default=0)
        limit = self.max_prompt_length or self.max_length // 2
        if len(ids) + longest <= self.max_length:
            return ids, list(completions)
        if len(ids) > limit:
            if self.long_prompts == "drop":
                return None, list(completions)
            ids = self._shortened(ids, limit, head)
        if len(ids) + longest <= self.max_length:
            return ids, list(completions)
        return ids, self._cut(completions, self.max_length - limit)

    def completion(self, ids: Ids, prompt_tokens: int) -> Ids:
        """Returns a completion's ids behind a prompt of that many tokens, cut where both reach `max_length`."""
        return self._cut([ids], self.max_length - prompt_tokens)[0]

    def _limited(self, ids: Ids, head: Callable[[], int], where: str) -> Ids | None:
        """Returns a prompt's ids within its own limit."""
        if len(ids) <= (self.max_prompt_length or self.max_length - 1):
            return ids
        if self.max_prompt_length is None and self.long_prompts == "error":
            raise UserError(
                f"{where}: the prompt has {len(ids)} tokens, which leaves no room in max_length {self.max_length}; shorten "
                "it, raise max_length, or set data.long_prompts to truncate or drop"
            )
        if self.long_prompts == "drop":
            return None
        return self._shortened(ids, self.max_prompt_length or self.max_length // 2, head)

    def _shortened(self, ids: Ids, limit: int, head: Callable[[], int]) -> Ids:
        """Returns the head and the end of a prompt: the question, and the header that the completion follows, are at the end."""
        self.cuts["prompts"] += 1
        kept = min(head(), limit // 2) if self.keep_head else 0
        return np.concatenate([ids[:kept], ids[len(ids) - (limit - kept) :]])

    def _cut(self, completions: Sequence[Ids], room: int) -> list[Ids]:
        """Returns completions of at most so many tokens."""
        self.cuts["completions"] += sum(len(each) > room for each in completions)
        return [each[: max(room, 0)] for each in completions]
