"""Messages to token ids: one encoder for generation, scoring and training, so that all stages see the same tokens."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from handbook_ext.core.errors import UserError
from handbook_ext.core.records import Messages
from handbook_ext.recipes.settings_run import TEMPLATES_HERE

# The layout of the Zephyr models: a role header, the text and the end token, each turn on lines of its own.
ZEPHYR_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>\n{{ message['content'] }}{{ eos_token }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
TEMPLATES = dict(zip(TEMPLATES_HERE, (ZEPHYR_TEMPLATE,), strict=True))


def apply_template(tokenizer: PreTrainedTokenizerBase, template: str | None, source: str) -> None:
    """Gives the tokenizer the recipe's chat template; None keeps its own.

    source: what the UserError names where the template is unknown, or the tokenizer has none of its own.
    """
    if template is not None:
        if template not in TEMPLATES and not Path(template).is_file():
            raise UserError(f"model.chat_template: {template!r} is neither a file nor one of: {', '.join(TEMPLATES)}")
        tokenizer.chat_template = TEMPLATES.get(template) or Path(template).read_text()
    if not tokenizer.chat_template:
        raise UserError(
            f"{source}: the tokenizer has no chat template; set model.chat_template to one of: {', '.join(TEMPLATES)}, "
            "or to a Jinja file"
        )


@dataclass
class ChatEncoder:
    """Turns prompts and completions into ids under the length limits of a recipe (tokens), and counts what it truncates.

    The prompt ends with the template's generation prompt and holds one BOS at most. A completion is its own tokens and
    one end-of-turn token, without role header. Prompts keep their last `max_prompt_length` tokens; completions, explored
    ones included, are truncated where prompt and completion together reach `max_length`. Without `max_prompt_length` a
    prompt may fill all but one token; `long_prompts` says what happens to longer ones: error, truncate or drop.
    """

    tokenizer: PreTrainedTokenizerBase
    max_length: int
    max_prompt_length: int | None = None
    long_prompts: str = "error"
    cut_prompts: int = 0
    cut_completions: int = 0

    def prompt_ids(self, prompt: Messages, where: str) -> list[int] | None:
        """Returns the ids of a prompt, or None for one that is dropped as too long; `where` names the prompt in the UserError."""
        text = self._render(prompt)
        ids = self._ids(text)
        bos = self.tokenizer.bos_token_id
        if bos is not None and ids[:1] != [bos] and self._adds_bos():
            ids = [bos, *ids]
        limit = self.max_prompt_length or self.max_length - 1
        if len(ids) <= limit:
            return ids
        if self.max_prompt_length is None and self.long_prompts == "error":
            raise UserError(
                f"{where}: the prompt has {len(ids)} tokens, which leaves no room in max_length {self.max_length}; shorten "
                "it, raise max_length, or set data.long_prompts to truncate or drop"
            )
        if self.long_prompts == "drop":
            return None
        self.cut_prompts += 1
        # From the left: the question, and the header that the completion follows, are at the end.
        return ids[-(self.max_prompt_length or self.max_length // 2) :]

    def completion_ids(self, prompt: Messages, completion: Messages, prompt_tokens: int) -> list[int]:
        """Returns the ids of a completion that follows a prompt of that many tokens, truncated to max_length.

        They are the ids that the completion has within the whole conversation: encoded alone, many tokenizers would put a
        space before its first word, which the policy never generates there.
        """
        head, turn = self._render(prompt), self._turn(prompt, completion)
        before, whole = self._ids(head), self._ids(head + turn)
        # A tokenizer may merge across the border; then no split of `whole` is the prompt that the policy is given.
        ids = whole[len(before) :] if whole[: len(before)] == before else self._ids(turn)
        room = self.max_length - prompt_tokens
        self.cut_completions += len(ids) > room
        return ids[:room]

    def end_ids(self) -> list[int]:
        """Returns every id that ends a turn, sorted: the tokenizer's EOS, and the token that ends a templated completion."""
        probe: Messages = [{"role": "user", "content": "a"}]
        last = self._ids(self._turn(probe, [{"role": "assistant", "content": "b"}]))[-1]
        return sorted({self.tokenizer.eos_token_id, last} & set(self.tokenizer.all_special_ids))

    def _ids(self, text: str) -> list[int]:
        """Returns the ids of a text that contains its special tokens already."""
        ids: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids

    def _render(self, prompt: Messages) -> str:
        """Returns the text of a prompt, up to and including the header of the completion."""
        return str(self.tokenizer.apply_chat_template(prompt, tokenize=False, add_generation_prompt=True))

    def _turn(self, prompt: Messages, completion: Messages) -> str:
        """Returns the text that a template puts after the generation prompt, up to and including the end of the turn.

        Raises UserError for a template whose conversation does not begin with the prompt as rendered for generation.
        """
        head = self._render(prompt)
        whole = str(self.tokenizer.apply_chat_template([*prompt, *completion], tokenize=False))
        if not whole.startswith(head):
            raise UserError(
                "model.chat_template: with the answer added the conversation no longer begins with the prompt as rendered "
                "for generation; use a template whose generation prompt is the answer's header"
            )
        turn = whole[len(head) :].rstrip("\n")
        # Without an end token in the completion, training would never teach the policy to stop.
        eos = str(self.tokenizer.eos_token)
        ends = any(turn.endswith(str(token)) for token in self.tokenizer.all_special_tokens)
        return turn if ends else turn + eos

    def _adds_bos(self) -> bool:
        """Returns whether this tokenizer begins a text with BOS when it adds special tokens."""
        ids = self.tokenizer("a")["input_ids"]
        return bool(ids) and ids[0] == self.tokenizer.bos_token_id
