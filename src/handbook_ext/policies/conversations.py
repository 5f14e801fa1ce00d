"""A whole conversation for rankers: as one text, the template of a model that has none, and what is kept of what is too long."""

from __future__ import annotations

from transformers import PreTrainedTokenizerBase

from handbook_ext.core.records import Messages

# For an encoder, which has no chat template of its own: [CLS]user: What is ...?[SEP]assistant: It is ...[SEP]
PLAIN_TEMPLATE = (
    "{{ cls_token }}{% for message in messages %}"
    "{{ message['role'] }}: {{ message['content'] }}{{ sep_token or eos_token }}"
    "{% endfor %}"
)


def kept_end(tokenizer: PreTrainedTokenizerBase, ids: list[int], max_length: int) -> list[int]:
    """Returns the last `max_length` tokens; a leading class token, which an encoder's head reads, stays the first of them."""
    if len(ids) > max_length and tokenizer.cls_token_id is not None and ids[0] == tokenizer.cls_token_id:
        return [ids[0], *ids[len(ids) - max_length + 1 :]]
    return ids[-max_length:]


def conversation(prompt: Messages) -> str:
    """Returns a prompt as a judge or an encoder reads it: the text of a single message, several messages with their roles."""
    if len(prompt) == 1:
        return prompt[0]["content"]
    return "\n".join(f"{message['role']}: {message['content']}" for message in prompt)
