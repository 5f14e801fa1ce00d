"""What PairRM reads: prompt and two candidates as token ids, within the budgets of the original."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from handbook_ext.core.records import Messages
from handbook_ext.judging.pairrm_model import CANDIDATE1, CANDIDATE2, SOURCE
from handbook_ext.judging.ranker import CandidateSet
from handbook_ext.policies.text_tokens import TextTokens

LEGACY_BATCH = 8  # Prompts that the original takes together where nobody says otherwise.
SURROUND = 2  # A text stands between a class token and a separator.
SEVERAL_TURNS = "Finish the following coversation in each i-th turn by filling in <Response i> with your response."
"""What PairRM was given before a conversation of several turns, misspelling included."""


@dataclass(frozen=True)
class EncodedSet:
    """A prompt and its distinct candidates as ids with their surroundings; which were cut, and what each text's number is.

    A candidate begins with the marker of the first candidate; `second` is it with that of the second.
    """

    source: list[int]
    candidates: list[list[int]]
    cut: list[bool]
    numbers: list[int]

    @property
    def counts(self) -> list[int]:
        """Returns how many texts of the set each distinct candidate is."""
        return [self.numbers.count(number) for number in range(len(self.candidates))]


class PairText:
    """Encodes prompts and candidates.

    A candidate may have `candidate_max_length` tokens and half of what the prompt leaves of `source_max_length`. In the original,
    that is what the longest prompt of a batch leaves: which of two long candidates is cut, and so its score, depends on the
    prompts that happen to share the batch. With legacy_truncation it does here too, in batches of `LEGACY_BATCH` prompts,
    the original's default.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, *, source_max_length: int, candidate_max_length: int, legacy_truncation: bool
    ) -> None:
        """Takes the tokenizer with the markers as special tokens, and lengths in tokens."""
        self.tokenizer, self.text = tokenizer, TextTokens(tokenizer)
        self.source_max, self.candidate_max, self.legacy = source_max_length, candidate_max_length, legacy_truncation
        self.second = tokenizer.convert_tokens_to_ids(CANDIDATE2)

    def encode(self, sets: Sequence[CandidateSet]) -> list[EncodedSet]:
        """Returns the sets as ids; all texts go through the tokenizer in one batch."""
        distinct = [list(dict.fromkeys(each.texts)) for each in sets]
        sources = self._ids(SOURCE, [prompt_text(each.prompt) for each in sets])
        candidates = iter(self._ids(CANDIDATE1, [text for texts in distinct for text in texts]))
        kept = [self._kept(ids, self.source_max) for ids in sources]
        result = []
        for number, (each, texts) in enumerate(zip(sets, distinct, strict=True)):
            longest = len(kept[number])
            if self.legacy:
                start = number - number % LEGACY_BATCH
                longest = max(map(len, kept[start : start + LEGACY_BATCH]))
            limit = self.candidate_max + (self.source_max - longest) // 2
            whole = [next(candidates) for _ in texts]
            prompt_cut = len(sources[number]) + SURROUND > self.source_max
            cut = [prompt_cut or len(ids) + SURROUND > limit for ids in whole]
            ids = [self._kept(each, limit) for each in whole]
            result.append(EncodedSet(kept[number], ids, cut, [texts.index(text) for text in each.texts]))
        return result

    def _ids(self, marker: str, texts: Sequence[str]) -> list[list[int]]:
        """Returns the ids of texts behind a marker; a separator in a text is a space, as in the original, others are text."""
        separator = str(self.tokenizer.sep_token)
        return self.text.ids([marker + self.text.shown(text.replace(separator, " ")) for text in texts])

    def _kept(self, ids: list[int], limit: int) -> list[int]:
        """Returns the first tokens with their surroundings, `limit` in all."""
        return [self.tokenizer.cls_token_id, *ids[: limit - SURROUND], self.tokenizer.sep_token_id]


def prompt_text(prompt: Messages) -> str:
    """Returns a prompt as PairRM reads it: the text of a single message, which is what SELM's code gives it.

    Of several turns it was trained to fill in the answers: earlier ones stand in their places, and the asked one is left open.
    """
    if len(prompt) == 1:
        return prompt[0]["content"]
    turns, answers = [], 0
    for message in prompt:
        if message["role"] == "assistant":
            answers += 1
            turns.append(f"Assistant: {message['content']}")
        else:
            turns.append(f"{message['role'].upper()}: {message['content']}")
    return SEVERAL_TURNS + "\n".join([*turns, f"Assistant: <Response {answers + 1}>"])
