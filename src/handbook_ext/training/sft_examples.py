"""Demonstrations as token ids with labels for SFT: which tokens of a conversation count in the loss."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from handbook_ext.core.errors import UserError
from handbook_ext.core.records import Demonstration
from handbook_ext.policies.chat import ChatEncoder
from handbook_ext.recipes.settings import SFTSettings

IGNORED = -100  # The label of a token that counts in no loss.
NO_LIMIT = 1 << 30  # More tokens than a conversation has.


@dataclass
class SFTExamples:
    """Rows of `input_ids` and `labels`; how many demonstrations were dropped, and how many lost their end to max_length.

    `answers_found` are the answers before the last one that count in the loss, `answers_left_out` those whose tokens within the
    conversation are not the ones that the policy would generate there.
    """

    rows: list[dict[str, list[int]]] = field(default_factory=list)
    dropped: int = 0
    cut: int = 0
    answers_found: int = 0
    answers_left_out: int = 0

    def add(self, ids: list[int], labels: list[int]) -> None:
        """Adds a row."""
        self.rows.append({"input_ids": ids, "labels": labels})


def sft_examples(
    demonstrations: list[Demonstration], encoder_of: Callable[[int], ChatEncoder], settings: SFTSettings
) -> SFTExamples:
    """Returns the rows of SFT, with the ids of all later stages; `encoder_of` makes the encoder of a length limit (tokens).

    loss_on `completion` counts the last answer alone; `assistant` every answer as the completion of the conversation before it;
    `all` every token. For the last two max_length cuts the conversation's end, and `long_prompts` is about the prompt of its
    first answer. Nothing is cut where the rows are packed `wrapped`, which splits them.
    Raises UserError where no row is left, or where a template has no answer but the last one that could be counted.
    """
    limit = NO_LIMIT if settings.packing and settings.packing_strategy == "wrapped" else settings.max_length
    limited, whole, examples = encoder_of(limit), encoder_of(NO_LIMIT), SFTExamples()
    for row in demonstrations:
        if settings.loss_on == "completion":
            _add_completion(examples, row, limited)
        else:
            _add_conversation(examples, row, limited, whole, limit=limit, every_token=settings.loss_on == "all")
    examples.cut += limited.cut_completions
    if not examples.rows:
        raise UserError("sft: every prompt is too long for sft.max_length; raise it")
    if examples.answers_left_out and not examples.answers_found:
        raise UserError(
            "sft.loss_on: assistant: the chat template renders an answer otherwise once the conversation goes on; set it to "
            "completion, or give a template that does not"
        )
    return examples


def _where(row: Demonstration) -> str:
    """Returns the name of a row in a UserError."""
    return row.source or f"prompt {row.prompt_id}"


def _add_completion(examples: SFTExamples, row: Demonstration, limited: ChatEncoder) -> None:
    """Adds the row with a loss on its completion alone, or counts it as dropped."""
    prompt = limited.prompt_ids(row.prompt, _where(row))
    if prompt is None:
        examples.dropped += 1
        return
    completion = limited.completion_ids(row.prompt, row.completion, len(prompt))
    examples.add(prompt + completion, [IGNORED] * len(prompt) + completion)


def _add_conversation(
    examples: SFTExamples, row: Demonstration, limited: ChatEncoder, whole: ChatEncoder, *, limit: int, every_token: bool
) -> None:
    """Adds the row with a loss on all its answers, or on every token; or counts it as dropped."""
    turns = [*row.prompt, *row.completion]
    last = len(row.prompt)
    head = whole.prompt_ids(row.prompt, _where(row)) or []
    ids = head + whole.completion_ids(row.prompt, row.completion, len(head))
    spans = {last: (len(head), len(ids))}
    for index in range(last - 1, 0, -1):
        if turns[index]["role"] != "assistant" or all(turn["role"] != "user" for turn in turns[:index]):
            continue
        before = whole.prompt_ids(turns[:index], _where(row)) or []
        after = before + whole.completion_ids(turns[:index], turns[index : index + 1], len(before))
        # Tokens that merge across a border, or a template that renders earlier answers in another way.
        if ids[: len(after)] == after:
            spans[index] = (len(before), len(after))
        elif not every_token:
            examples.answers_left_out += 1
    first = min(spans)
    prompt = limited.prompt_ids(turns[:first], _where(row))
    if prompt is None:
        examples.dropped += 1
        return
    examples.answers_found += len(spans) - 1
    shift = len(prompt) - spans[first][0]
    ids = prompt + ids[spans[first][0] :]
    labels = ids if every_token else [IGNORED] * len(ids)
    for start, end in [] if every_token else spans.values():
        labels[start + shift : end + shift] = ids[start + shift : end + shift]
    examples.cut += len(ids) > limit
    examples.add(ids[:limit], labels[:limit])
