"""Messages to token ids: one encoder for generation, scoring and training, so that all stages see the same tokens."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cached_property, partial
from typing import NamedTuple

import numpy as np
from transformers import PreTrainedTokenizerBase

from handbook_ext.core.errors import UserError
from handbook_ext.core.records import Messages
from handbook_ext.policies.text_tokens import TextTokens
from handbook_ext.policies.token_store import TokenStore
from handbook_ext.policies.truncation import Ids, Truncation


class Conversation(NamedTuple):
    """A prompt and completions of it. `ids` name the completions in a token store; `where` names the row in errors."""

    prompt: Messages
    completions: Sequence[Messages]
    ids: Sequence[str]
    where: str


class ChatEncoder:
    """Turns prompts and completions into ids under the limits of a recipe (tokens), and counts what it truncates.

    The prompt ends with the template's generation prompt and holds one BOS at most. A completion is its own tokens and
    one end-of-turn token, without role header. `truncation` is a way of `Truncation`; `long_prompts` says what becomes of a
    prompt that leaves no room. With special_tokens `text` no message makes a special token, with `keep` it may.

    legacy_template: as the official code of SELM encodes for training. The completion is a rendered assistant message, role
    header included, and EOS once more; BOS stands before the rendered prompt whatever it begins with; a cut prompt keeps its
    end alone; the explored sample has no say in whether a row is too long.
    generation_ends: ids that end a completion besides those of the template, such as a checkpoint's generation_config names.
    store: keeps ids, so that each text is encoded once per run.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, max_length: int, max_prompt_length: int | None = None, *,
        long_prompts: str = "error", truncation: str = "always", legacy_template: bool = False, special_tokens: str = "text",
        generation_ends: Iterable[int] = (), store: TokenStore | None = None,
    ) -> None:  # fmt: skip
        """Takes a tokenizer with a chat template, and limits in tokens."""
        self.tokenizer, self.legacy_template, self.store = tokenizer, legacy_template, store
        self.text = TextTokens(tokenizer, keep=legacy_template or special_tokens == "keep")
        self.limits = Truncation(max_length, max_prompt_length, long_prompts, truncation, keep_head=not legacy_template)
        self.generation_ends = frozenset(generation_ends)
        self._headers: dict[str, list[int]] = {}

    @property
    def cut_prompts(self) -> int:
        """Returns how many prompts were cut so far."""
        return self.limits.cuts["prompts"]

    @property
    def cut_completions(self) -> int:
        """Returns how many completions were cut so far."""
        return self.limits.cuts["completions"]

    def prompt_ids(self, prompt: Messages, where: str) -> list[int] | None:
        """Returns the ids of a prompt to continue, or None for one that is dropped; `where` names it in the UserError."""
        return self.prompts([(prompt, where)])[0]

    def prompts(self, rows: Sequence[tuple[Messages, str]]) -> list[list[int] | None]:
        """Returns what `prompt_ids` returns, of many prompts, each with the name of its row."""
        texts = [self.text.render(prompt, prompt=True) for prompt, _ in rows]
        result = []
        for (prompt, where), ids in zip(rows, map(self._with_bos, self.text.ids(texts)), strict=True):
            found = self.limits.prompt(np.asarray(ids, np.int32), partial(self._head, prompt, ids), where)
            result.append(None if found is None else found.tolist())
        return result

    def completion_ids(self, prompt: Messages, completion: Messages, prompt_tokens: int) -> list[int]:
        """Returns the ids of a completion that follows a prompt of that many tokens, truncated to max_length."""
        [(_, [ids])] = self.whole_ids([Conversation(prompt, [completion], [], "")])
        found: list[int] = self.limits.completion(np.asarray(ids, np.int32), prompt_tokens).tolist()
        return found

    def encode(self, rows: Sequence[Conversation]) -> list[tuple[Ids | None, list[Ids]]]:
        """Returns for each row the ids of its prompt, None where it is dropped, and of its completions, within the limits.

        The first two completions are chosen and rejected where `legacy_template` asks. Raises UserError that names a row.
        """
        whole = self.whole_ids(rows) if self.store is None else self.store.filled(rows, self.whole_ids)
        decisive = 2 if self.legacy_template else None
        result = []
        for row, (prompt, completions) in zip(rows, whole, strict=True):
            ids, texts = np.asarray(prompt, np.int32), [np.asarray(each, np.int32) for each in completions]
            result.append(self.limits.row(ids, texts, partial(self._head, row.prompt, ids), row.where, decisive=decisive))
        return result

    def whole_ids(self, rows: Sequence[Conversation]) -> list[tuple[list[int], list[list[int]]]]:
        """Returns the ids of prompts and completions without any limit; each text goes through the tokenizer once, batched."""
        if self.legacy_template:
            return self._legacy_ids(rows)
        heads = [self.text.render(row.prompt, prompt=True) for row in rows]
        turns = []
        for row, head in zip(rows, heads, strict=True):
            turns += [(self._joint(head), self._turn(row.prompt, head, each)) for each in row.completions]
        ids = self.text.ids([*heads, *(joint + turn for joint, turn in turns)])
        completions = (self._ended(*each) for each in zip(turns, ids[len(heads) :], strict=True))
        return [
            (self._with_bos(prompt), [next(completions) for _ in row.completions]) for row, prompt in zip(rows, ids, strict=False)
        ]

    @cached_property
    def ends(self) -> frozenset[int]:
        """Returns every id that ends a completion: EOS, the first special token behind a turn's text, and generation_ends."""
        prompt = [{"role": "user", "content": "a"}]
        turn_text = self._turn(prompt, self.text.render(prompt, prompt=True), [{"role": "assistant", "content": "b"}])
        behind = self.text.ids([turn_text[turn_text.index("b") + 1 :]])[0]
        turn = next((token for token in behind if token in self.text.special_ids), self.tokenizer.eos_token_id)
        return frozenset({self.tokenizer.eos_token_id, turn, *self.generation_ends})

    def end_ids(self) -> list[int]:
        """Returns the ids at which generation stops, sorted."""
        return sorted(self.ends)

    def _with_bos(self, ids: list[int]) -> list[int]:
        """Returns the ids of a prompt with one BOS, where the tokenizer begins a text so."""
        bos = self.tokenizer.bos_token_id
        return ids if bos is None or ids[:1] == [bos] or not self._adds_bos else [bos, *ids]

    def _joint(self, head: str) -> str:
        """Returns the end of a rendered prompt from its last special token on.

        Tokenizers cut a text at special tokens before anything else, so what follows one is encoded in the same way whatever
        stands before it. A completion encoded alone could get other ids than within the conversation, such as a space before its
        first word, which the policy never generates there.
        """
        places = [head.rfind(token) for token in self.text.special if token in head]
        return head[max(places) :] if places else head

    def _ended(self, texts: tuple[str, str], together: list[int]) -> list[int]:
        """Returns the ids of a completion, up to its first end, from the texts of joint and turn and the ids of both together."""
        joint, turn = texts
        if joint not in self._headers:
            self._headers[joint] = self.text.ids([joint])[0]
        before = self._headers[joint]
        # A tokenizer may merge across the border; then no split of the whole is the prompt that the policy is given.
        ids = together[len(before) :] if together[: len(before)] == before else self.text.ids([turn])[0]
        end = next((index for index, token in enumerate(ids) if token in self.ends), len(ids))
        return ids[: end + 1]

    def _turn(self, prompt: Messages, head: str, completion: Messages) -> str:
        """Returns the text that a template puts after the generation prompt, up to and including the end of the turn.

        Raises UserError for a template whose conversation does not begin with the prompt as rendered for generation.
        """
        whole = self.text.render([*prompt, *completion])
        if not whole.startswith(head):
            raise UserError(
                "model.chat_template: with the answer added the conversation no longer begins with the prompt as rendered "
                "for generation; use a template whose generation prompt is the answer's header"
            )
        turn = whole[len(head) :].rstrip("\n")
        # Without an end token in the completion, training would never teach the policy to stop.
        eos = str(self.tokenizer.eos_token)
        return turn if any(turn.endswith(token) for token in self.text.special) else turn + eos

    def _legacy_ids(self, rows: Sequence[Conversation]) -> list[tuple[list[int], list[list[int]]]]:
        """Returns ids as SELM's trainer has them: the completion is what the whole text adds to the rendered prompt."""
        heads = [self.text.render(row.prompt) for row in rows]
        turns = [head + self.text.render(each) for row, head in zip(rows, heads, strict=True) for each in row.completions]
        ids = self.text.ids([*heads, *turns])
        bos = [] if self.tokenizer.bos_token_id is None else [self.tokenizer.bos_token_id]
        rest, result = iter(ids[len(heads) :]), []
        for row, prompt in zip(rows, ids, strict=False):
            wholes = [next(rest) for _ in row.completions]
            # As in TRL 0.8: where the border merges with the answer, the prompt ends one token earlier.
            size = len(prompt) - any(whole[: len(prompt)] != prompt for whole in wholes)
            if any(whole[:size] != prompt[:size] for whole in wholes):
                raise UserError(f"{row.where}: its completions share no prompt; set train.legacy_template: false")
            result.append((bos + prompt[:size], [[*whole[size:], self.tokenizer.eos_token_id] for whole in wholes]))
        return result

    def _head(self, prompt: Messages, ids: Sequence[int]) -> int:
        """Returns the tokens before the first message's own text: BOS, and the header of that message."""
        text = self.text.render(prompt, prompt=True)
        content = self.text.shown(prompt[0]["content"]).strip()
        before = self._with_bos(self.text.ids([text[: max(text.find(content), 0)]])[0])
        return next((index for index, (a, b) in enumerate(zip(before, ids, strict=False)) if a != b), min(len(before), len(ids)))

    @cached_property
    def _adds_bos(self) -> bool:
        """Returns whether this tokenizer begins a text with BOS when it adds special tokens."""
        ids = self.tokenizer("a")["input_ids"]
        return bool(ids) and ids[0] == self.tokenizer.bos_token_id
