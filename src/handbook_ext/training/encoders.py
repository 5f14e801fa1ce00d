"""A reward model on the body of a pretrained model that is not the policy, such as a small encoder."""

from __future__ import annotations

from typing import Any

import torch
from datasets import Dataset
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TrainerCallback,
)
from trl import RewardConfig, RewardTrainer

from handbook_ext.core.errors import UserError
from handbook_ext.core.records import OfflinePair
from handbook_ext.policies.conversations import PLAIN_TEMPLATE, kept_end
from handbook_ext.policies.models import loading_errors, without_dropout
from handbook_ext.policies.text_tokens import TextTokens


def open_body(folder: str, *, max_length: int, seed: int) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Returns a classifier with one output, its head drawn by `seed`, and its tokenizer with a chat template and a pad token.

    Raises UserError for what is no checkpoint, and for one with fewer positions than `max_length` tokens.
    """
    torch.manual_seed(seed)  # Before loading, which draws the weights of the head.
    with loading_errors(folder):
        config = AutoConfig.from_pretrained(folder, num_labels=1)
        without_dropout(config)
        positions = getattr(config, "max_position_embeddings", None) or max_length
        if max_length > positions:
            raise UserError(
                f"rank.fit.model: it has {positions} positions, but rank.max_length or rank.fit.max_length is {max_length}; "
                f"set both to {positions} or less"
            )
        tokenizer = AutoTokenizer.from_pretrained(folder)
        tokenizer.chat_template = tokenizer.chat_template or PLAIN_TEMPLATE
        tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
        config.pad_token_id = tokenizer.pad_token_id
        model = AutoModelForSequenceClassification.from_pretrained(folder, config=config, dtype=torch.float32)
    return model, tokenizer


def body_trainer(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, pairs: list[OfflinePair], *, max_length: int,
    arguments: dict[str, Any], callbacks: list[TrainerCallback],
) -> RewardTrainer:  # fmt: skip
    """Returns TRL's RewardTrainer, -log sigmoid(r(chosen) - r(rejected)) on offline labels, on texts as judging reads them.

    A conversation of more than `max_length` tokens is cut to its end, as in judging; none is dropped.
    """
    text = TextTokens(tokenizer)
    sides = {
        f"{side}_ids": text.ids([text.render([*pair.prompt, *getattr(pair, side)]) for pair in pairs])
        for side in ("chosen", "rejected")
    }
    rows = {name: [kept_end(tokenizer, ids, max_length) for ids in found] for name, found in sides.items()}
    args = RewardConfig(**arguments, max_length=None, disable_dropout=True)
    return RewardTrainer(
        model=model, args=args, train_dataset=Dataset.from_dict(rows), processing_class=tokenizer, callbacks=callbacks
    )
