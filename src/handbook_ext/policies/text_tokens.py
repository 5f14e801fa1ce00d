"""Rendered conversations to token ids, in batches; what a message says never becomes a special token.

A prompt that holds `</s>` and a role header would otherwise end its turn and begin another one, and a policy that spelt an end
token letter by letter would be scored on the token. So special tokens in messages are replaced by marks, characters of a
private-use plane that no template minds, and the marks by the ids of the text that they stand for.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from handbook_ext.core.errors import UserError
from handbook_ext.core.records import Messages
from handbook_ext.core.shards import batched

TEXTS_PER_BATCH = 256
FIRST_MARK = 0xF0000
MARK = re.compile("[\U000f0000-\U000ffffd]")
"""The plane of private use in which marks are looked for; no tokenizer merges its characters with others."""


class TextTokens:
    """Renders messages by a tokenizer's chat template and encodes the result; special tokens come from the template alone.

    keep: special tokens in messages are read as special tokens, as the official code of SELM does.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, *, keep: bool = False) -> None:
        """Takes a tokenizer with a chat template."""
        self.tokenizer, self.keep = tokenizer, keep
        special = {*tokenizer.all_special_tokens, *(t.content for t in tokenizer.added_tokens_decoder.values() if t.special)}
        # The longest first: one may begin like another.
        self.special = sorted((str(token) for token in special if str(token)), key=lambda token: (-len(token), token))
        self.special_ids = frozenset(tokenizer.convert_tokens_to_ids(self.special))
        # One pattern, searched in C: a tokenizer may have hundreds of special tokens, and a message thousands of characters.
        # A message may hold such characters as marks are; they are marked as well.
        self._hidden = re.compile("|".join([*map(re.escape, self.special), MARK.pattern]))
        self._marks: dict[str, str] = {}
        self._strings: dict[str, str] = {}
        self._literal: dict[str, list[int]] = {}

    def render(self, messages: Messages, *, prompt: bool = False) -> str:
        """Returns the text of a conversation, with marks; `prompt` adds the header of the completion.

        Raises UserError for one that the template refuses, such as two turns of the user in a row.
        """
        try:
            return str(self.tokenizer.apply_chat_template(self._marked(messages), tokenize=False, add_generation_prompt=prompt))
        except TemplateError as error:
            roles, text = ", ".join(message["role"] for message in messages), messages[0]["content"][:40]
            raise UserError(
                f"model.chat_template: refuses a conversation of the roles {roles} ({error}), which begins {text!r}; repair such "
                "rows, or take another template"
            ) from None

    def ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Returns the ids of rendered texts, which contain their special tokens already.

        Raises UserError where a tokenizer cannot say where in the text a token lies.
        """
        if not texts:
            return []
        found: list[list[int]] = []
        for batch in batched(list(texts), TEXTS_PER_BATCH):
            found += self._plain_ids(batch)
        if self._marks:
            for index, text in enumerate(texts):
                if MARK.search(text):
                    found[index] = self._with_literals(text)
        return found

    def _plain_ids(self, texts: list[str]) -> list[list[int]]:
        """Returns the ids of texts as they stand."""
        if not self.tokenizer.is_fast:
            ids: list[list[int]] = self.tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
            return ids
        backend = self.tokenizer.backend_tokenizer
        backend.no_truncation()
        backend.no_padding()
        backend.encode_special_tokens = False
        # Without offsets and masks, which take several times the time and many times the memory of the ids.
        return [each.ids for each in backend.encode_batch_fast(texts, add_special_tokens=False)]

    def shown(self, text: str) -> str:
        """Returns the text of a message as `render` gives it to the template: with marks."""
        return text if self.keep else self._hidden.sub(lambda match: self._mark_of(match[0]), text)

    def _marked(self, messages: Messages) -> Messages:
        """Returns messages with a mark in the place of each special token; the same object where there is none."""
        if not self.holds_special(messages):
            return messages
        return [{**message, "content": self.shown(message["content"])} for message in messages]

    def holds_special(self, messages: Messages) -> bool:
        """Returns whether a special token stands in a message, which is then read as text."""
        return not self.keep and any(self._hidden.search(message["content"]) for message in messages)

    def _mark_of(self, string: str) -> str:
        """Returns the character that stands for a string, the same one each time."""
        if string not in self._marks:
            mark = chr(FIRST_MARK + len(self._marks))
            self._marks[string], self._strings[mark] = mark, string
        return self._marks[string]

    def _with_literals(self, text: str) -> list[int]:
        """Returns the ids of a text with marks, each of which became the ids of the string that it stands for."""
        if not self.tokenizer.is_fast:
            raise UserError(
                "a message holds a special token, and this tokenizer cannot tell its text from it; set data.special_tokens: keep"
            )
        encoded: Any = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        places = {match.start(): self._strings[match[0]] for match in MARK.finditer(text)}
        result: list[int] = []
        waiting = sorted(places)
        for token, (start, end) in zip(encoded["input_ids"], encoded["offset_mapping"], strict=True):
            while waiting and waiting[0] < end:
                result += self._ids_of_literal(places[waiting.pop(0)])
            inside = [place for place in range(start, end) if place in places]
            if inside and len(inside) < end - start:
                raise UserError(
                    f"a message holds {places[inside[0]]!r}, which this tokenizer joins with the text around it; remove it, or "
                    "set data.special_tokens: keep"
                )
            if not inside:
                result.append(token)
        for place in waiting:  # A normalizer may leave nothing of a mark at the end.
            result += self._ids_of_literal(places[place])
        return result

    def _ids_of_literal(self, string: str) -> list[int]:
        """Returns the ids of a string that is nothing special."""
        if string not in self._literal:
            found = self._behind_letter(string)
            if self.special_ids & set(found):
                found = [each for letter in string for each in self._behind_letter(letter)]
            self._literal[string] = found
        return self._literal[string]

    def _behind_letter(self, string: str) -> list[int]:
        """Returns the ids of a string inside a text: many tokenizers put a space before the first word of one."""
        for letter in ("a", "(", "\n"):
            before, whole = self._split(letter), self._split(letter + string)
            if whole[: len(before)] == before and len(whole) > len(before):
                return whole[len(before) :]
        return self._split(string)

    def _split(self, text: str) -> list[int]:
        """Returns the ids of a text in which special tokens are nothing special."""
        ids: list[int] = self.tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        return ids
