"""A reward model on the offline pairs: on the body of the policy, or of another pretrained model such as a small encoder."""

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
from handbook_ext.policies.adapters import find_adapter
from handbook_ext.policies.conversations import PLAIN_TEMPLATE, kept_end
from handbook_ext.policies.loading import load_whole, loading_errors, refuse_not_finite
from handbook_ext.policies.models import without_dropout
from handbook_ext.policies.source import PolicySource
from handbook_ext.policies.text_tokens import TextTokens
from handbook_ext.training.shown_steps import ShowSteps


def open_body(folder: str, *, max_length: int, seed: int) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Returns a classifier with one output, its head drawn by `seed`, and its tokenizer with a chat template and a pad token.

    Raises UserError for what is no checkpoint, and for one with fewer positions than `max_length` tokens.
    """
    torch.manual_seed(seed)  # Before loading, which draws the weights of the head.
    with loading_errors(folder):
        config = AutoConfig.from_pretrained(folder, num_labels=1, trust_remote_code=False)
        without_dropout(config)
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        # The tokenizer's own limit counts too: RoBERTa numbers its positions from 2, and has 514 of them for 512 tokens.
        positions = min(getattr(config, "max_position_embeddings", None) or max_length, tokenizer.model_max_length)
        if max_length > positions:
            raise UserError(
                f"rank.fit.model: it has {positions} positions, but rank.max_length or rank.fit.max_length is {max_length}; "
                f"set both to {positions} or less"
            )
        tokenizer.chat_template = tokenizer.chat_template or PLAIN_TEMPLATE
        tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
        config.pad_token_id = tokenizer.pad_token_id
    model = load_whole(
        AutoModelForSequenceClassification, folder, new_head=True, config=config, dtype=torch.float32, trust_remote_code=False
    )
    refuse_not_finite(model, folder)
    return model, tokenizer


def policy_body(source: PolicySource, *, seed: int) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Returns a classifier with one output on the body of a policy, its head drawn by `seed`, and the policy's tokenizer."""
    torch.manual_seed(seed)  # Before loading, which draws the weights of the head.
    settings, tokenizer = source.model, source.load_tokenizer()
    options = {"revision": None if source.trained_here else settings.revision, "trust_remote_code": settings.trust_remote_code}
    if find_adapter(source.location, options["revision"]) is None:
        config = AutoConfig.from_pretrained(source.location, num_labels=1, **options)
        without_dropout(config)
        config.pad_token_id = tokenizer.pad_token_id  # The head reads the last token that is not padding.
        model = load_whole(
            AutoModelForSequenceClassification, source.location, new_head=True, config=config, dtype=torch.float32, **options
        )
    else:  # A classifier cannot be loaded from an adapter: it takes over the body of the base with the adapter merged.
        body = source.load(dtype="float32")
        body.config.num_labels, body.config.pad_token_id = 1, tokenizer.pad_token_id
        model = AutoModelForSequenceClassification.from_config(body.config, dtype=torch.float32)
        model.base_model.load_state_dict(body.base_model.state_dict())
    return model, tokenizer


def reward_trainer(
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
        model=model, args=args, train_dataset=Dataset.from_dict(rows), processing_class=tokenizer,
        callbacks=[*callbacks, ShowSteps()],
    )  # fmt: skip
