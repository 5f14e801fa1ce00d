"""Rows and lengths of the public data sets that recipes name, for a plan where they are not here. No torch."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import NormalDist

from handbook_ext.core.errors import UserError

# Standard deviation of the logarithm of a length in tokens, and the correlation of the two completions of a prompt, measured on
# 2,410 real pairs (AlpacaEval's, tokens of SmolLM2): `python -m tests.planning.length_figures`.
PROMPT_SPREAD, COMPLETION_SPREAD, CORRELATION = 0.85, 1.12, 0.44
BYTES_PER_TOKEN = 4.2  # Of English text, by the same command.
DRAWN = 1000  # Rows drawn from the assumed distribution: its 0.05 % to 99.95 % quantiles.


@dataclass(frozen=True)
class PublishedData:
    """A data set: rows by split, mean tokens of a prompt and of a completion, of a whole conversation; where both are from."""

    rows: Mapping[str, int]
    prompt: float
    completion: float
    source: str
    conversation: float | None = None

    def count(self, name: str, split: str) -> int:
        """Returns the rows of a split; raises UserError where the table does not have it."""
        if split not in self.rows:
            raise UserError(
                f"data: the rows of the split '{split}' of '{name}' are not known here; the table has {', '.join(self.rows)}; "
                "fetch the data once (make <run>-check), or name local files"
            )
        return self.rows[split]

    def lengths(self) -> list[tuple[int, int, int]]:
        """Returns DRAWN rows' tokens of prompt, chosen and rejected, log-normal; always the same ones."""
        rng = random.Random(0)
        shared = [rng.gauss(0, 1) for _ in range(DRAWN)]
        prompts = rng.sample(_grid(self.prompt, PROMPT_SPREAD), DRAWN)
        return list(zip(prompts, *(_beside(shared, self.completion, rng) for _ in range(2)), strict=True))


DATA_SETS: Mapping[str, PublishedData] = {
    "HuggingFaceH4/ultrafeedback_binarized": PublishedData(
        {"train_prefs": 61_135, "test_prefs": 2_000, "train_sft": 61_135, "test_sft": 1_000}, 185, 270,
        "rows: the data set's card; lengths assumed, such that 4 prompts and 3 completions make its 6,636 bytes per row",
    ),
    "HuggingFaceH4/ultrachat_200k": PublishedData(
        {"train_sft": 207_865, "test_sft": 23_110}, 200, 290,
        "rows: the data set's card; lengths assumed: 1,375 tokens a conversation", conversation=1375,
    ),
    "Anthropic/hh-rlhf": PublishedData(
        {"train": 160_800, "test": 8_552}, 160, 75, "rows: the data set's card; lengths assumed",
    ),
    "openai/summarize_from_feedback": PublishedData(
        {"train": 92_858, "validation": 86_086}, 370, 40, "rows: the data set's card (comparisons); lengths assumed",
    ),
    "openbmb/UltraFeedback": PublishedData(
        {"train": 63_967}, 185, 270, "rows: the data set's card; lengths as of its binarized form",
    ),
}  # fmt: skip


def _grid(mean: float, spread: float) -> list[int]:
    """Returns DRAWN quantiles of a log-normal distribution of that mean, in tokens, ascending, each at least 2."""
    normal = NormalDist(math.log(mean) - spread**2 / 2, spread)
    return [max(2, round(math.exp(normal.inv_cdf((i + 0.5) / DRAWN)))) for i in range(DRAWN)]


def _beside(shared: list[float], mean: float, rng: random.Random) -> list[int]:
    """Returns the quantiles of completions, one per row, in the order of a score of which a part is shared within a row."""
    own, common = math.sqrt(1 - CORRELATION), math.sqrt(CORRELATION)
    scores = [common * value + own * rng.gauss(0, 1) for value in shared]
    found = [0] * DRAWN
    ranked = sorted(range(DRAWN), key=scores.__getitem__)
    for length, index in zip(_grid(mean, COMPLETION_SPREAD), ranked, strict=True):
        found[index] = length
    return found
