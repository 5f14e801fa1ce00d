"""The token ids of the official code, written out once more in plain steps: where this differs from a side, that row is told."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from tests.referee.records import Ids


@dataclass(frozen=True)
class Layout:
    """What surrounds texts, in token ids: BOS, EOS, an answer's role header, and what follows the EOS that ends its turn."""

    bos: int
    eos: int
    header: list[int]
    tail: list[int]

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase) -> Layout:
        """Returns the layout of a tokenizer's template: the official code adds EOS behind the template's line break."""
        prompt = [{"role": "user", "content": "a"}]
        asked, head = (rendered(tokenizer, prompt, ask=ask) for ask in (True, False))
        whole = ids_of(tokenizer, rendered(tokenizer, [*prompt, {"role": "assistant", "content": "b"}]))
        end = len(whole) - whole[::-1].index(tokenizer.eos_token_id)
        header = ids_of(tokenizer, asked)[len(ids_of(tokenizer, head)) :]
        return cls(tokenizer.bos_token_id, tokenizer.eos_token_id, header, [*whole[end:], tokenizer.eos_token_id])


def rendered(tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, str]], *, ask: bool = False) -> str:
    """Returns messages as text; `ask` adds the header of the next answer."""
    return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=ask))


def ids_of(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Returns the ids of a text that holds its special tokens."""
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def question(tokenizer: PreTrainedTokenizerBase, prompt: str) -> tuple[str, list[int]]:
    """Returns a prompt as text and as ids, without the role header of the answer."""
    head = rendered(tokenizer, [{"role": "user", "content": prompt}])
    return head, ids_of(tokenizer, head)


def expected_ids(
    tokenizer: PreTrainedTokenizerBase, prompt: str, answers: Sequence[str], *, max_length: int, max_prompt_length: int
) -> Ids:
    """Returns the ids of a prompt and its chosen, rejected and explored answers, as the official tokenize_row has them."""
    head, before = question(tokenizer, prompt)
    turns = [rendered(tokenizer, [{"role": "assistant", "content": answer}]) for answer in answers]
    # The header is scored, and EOS is added to a turn that the template has ended already.
    completions = [[*ids_of(tokenizer, head + turn)[len(before) :], tokenizer.eos_token_id] for turn in turns]
    asked = [tokenizer.bos_token_id, *before]
    longer = max(len(completions[0]), len(completions[1]))  # The explored answer's length is not asked.
    if len(asked) + longer > max_length:
        asked = asked[-max_prompt_length:]
    if len(asked) + longer > max_length:
        completions = [ids[: max_length - max_prompt_length] for ids in completions]
    chosen, rejected, explored = completions
    return Ids(asked, chosen, rejected, explored)
