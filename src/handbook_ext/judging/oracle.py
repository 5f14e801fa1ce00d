"""The tiny world's true reward as a ranker."""

from __future__ import annotations

from collections.abc import Sequence

from handbook_ext.core.records import Messages
from handbook_ext.data.tiny_world import true_reward
from handbook_ext.judging.ranker import Pointwise, Verdict


class Oracle(Pointwise):
    """The tiny world's true reward."""

    def score(self, items: Sequence[tuple[Messages, str]]) -> list[Verdict]:
        """Returns true rewards, at most 1."""
        return [Verdict(true_reward(prompt[-1]["content"], text)) for prompt, text in items]
