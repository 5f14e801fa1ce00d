"""Any sequence classifier as a ranker: one output or a named one of several, with a chat template or a pair of texts."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer, PreTrainedTokenizerBase

from handbook_ext.core.errors import UserError
from handbook_ext.core.records import Messages, assistant
from handbook_ext.judging.ranker import Pointwise, Verdict, by_length
from handbook_ext.policies.conversations import conversation, kept_end
from handbook_ext.policies.loading import load_whole, loading_errors, refuse_not_finite
from handbook_ext.policies.models import without_dropout
from handbook_ext.policies.text_tokens import TextTokens


class RewardModel(Pointwise):
    """A sequence classifier, whose logit is the reward.

    `text`: `template` reads a conversation by the tokenizer's chat template, `pair` prompt and answer as the two texts that an
    encoder was trained on, `auto` the former where there is a template. What is too long keeps its end.
    """

    def __init__(
        self, source: str, *, device: torch.device, batch_size: int, max_length: int, revision: str | None = None,
        tokens_per_batch: int | None = None, bf16: bool = False, output: str | int | None = None, text: str = "auto",
    ) -> None:  # fmt: skip
        """Loads the classifier; max_length is in tokens of prompt and completion, tokens_per_batch counts padding.

        Raises UserError for what is no classifier, or has not that output.
        """
        try:
            with loading_errors(source):
                tokenizer = AutoTokenizer.from_pretrained(source, revision=revision, trust_remote_code=False)
            dtype = torch.bfloat16 if bf16 else None
            model = load_whole(
                AutoModelForSequenceClassification, source, revision=revision, dtype=dtype, trust_remote_code=False
            )
            refuse_not_finite(model, source)
        except UserError as error:
            raise UserError(f"rank.model: {source} cannot be loaded as a sequence classifier: {error}") from None
        self.column = output_column(model.config.id2label, output, source)
        if text == "template" and not tokenizer.chat_template:
            raise UserError(f"rank.text: template: the tokenizer of {source} has no chat template; set rank.text: pair")
        without_dropout(model.config)
        tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
        tokenizer.padding_side = "right"
        model.config.pad_token_id = tokenizer.pad_token_id
        self.model, self.tokenizer = model.eval().to(device), tokenizer
        self.batch_size, self.max_length, self.tokens_per_batch = batch_size, max_length, tokens_per_batch
        self._templated = text == "template" or (text == "auto" and bool(tokenizer.chat_template))
        self._text = TextTokens(tokenizer)
        self._kept = partial(kept_end, tokenizer, max_length=max_length)

    @torch.no_grad()
    def score(self, items: Sequence[tuple[Messages, str]]) -> list[Verdict]:
        """Returns the classifier's logits; texts of similar length share a batch, so that little is padded."""
        ids = judged_ids(self._text, items) if self._templated else pair_ids(self.tokenizer, items)
        verdicts: dict[int, Verdict] = {}
        lengths = [min(len(each), self.max_length) for each in ids]
        for places in by_length(lengths, self.batch_size, self.tokens_per_batch):
            kept: dict[str, Any] = {"input_ids": [self._kept(ids[place]) for place in places]}
            if not self._templated and "token_type_ids" in self.tokenizer.model_input_names:
                kept["token_type_ids"] = [second_text(self.tokenizer, each) for each in kept["input_ids"]]
            batch = self.tokenizer.pad(kept, return_tensors="pt").to(self.model.device)
            scores = self.model(**batch).logits[:, self.column].float().tolist()
            for place, score in zip(places, scores, strict=True):
                verdicts[place] = Verdict(score, len(ids[place]) > self.max_length)
        return [verdicts[place] for place in range(len(items))]


def output_column(names: dict[int, str], output: str | int | None, source: str) -> int:
    """Returns the column of a classifier's reward, by number or name; raises UserError where several are there and none named."""
    shown = ", ".join(f"{column} ({name})" for column, name in names.items())
    if output is None and len(names) == 1:
        return 0
    if output is None:
        raise UserError(f"rank.model: {source} has {len(names)} outputs: {shown}; say which is the reward in rank.output")
    found = [column for column, name in names.items() if output in (column, name, str(column))]
    if not found:
        raise UserError(f"rank.output: {source} has no output {output!r}; it has: {shown}")
    return found[0]


def judged_ids(text: TextTokens, items: Sequence[tuple[Messages, str]]) -> list[list[int]]:
    """Returns the token ids of prompts with a completion each, by the chat template of a reward model."""
    return text.ids([text.render([*prompt, *assistant(answer)]) for prompt, answer in items])


def pair_ids(tokenizer: PreTrainedTokenizerBase, items: Sequence[tuple[Messages, str]]) -> list[list[int]]:
    """Returns the token ids of prompt and completion as a pair of texts, with the special tokens that the tokenizer adds.

    A special token that stands in a text is text.
    """
    if not items:
        return []
    prompts, answers = [conversation(prompt) for prompt, _ in items], [answer for _, answer in items]
    found: list[list[int]] = tokenizer(prompts, answers, truncation=False, split_special_tokens=True)["input_ids"]
    return found


def second_text(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> list[int]:
    """Returns 1 for the tokens of the completion and the separator behind it, 0 for those before, as BERT numbers two texts."""
    ends = [place for place, token in enumerate(ids) if token == tokenizer.sep_token_id]
    first = ends[-2] if len(ends) > 1 else -1  # Where the cut has taken the whole prompt, all is completion.
    return [int(place > first and (place > 0 or first >= 0)) for place in range(len(ids))]
