"""The padded baselines that the benchmark times and checks against; nothing trains with them.

TRL's DPOTrainer, and the step of SELM's official code (arXiv 2405.19332): chosen and rejected are padded together and go
through the model in one forward pass, the explored sample in a second one, all logits are computed, and a live reference
model does the same without gradient.

Legend: B sequences, L tokens of the longest one, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast
from trl import DPOConfig, DPOTrainer

from handbook_ext.bench.measuring import PairDistribution
from handbook_ext.objectives.losses import dpo_loss, exploration_term
from handbook_ext.policies.packing import EncodedPair

PAD, END = "<pad>", "</s>"
PAD_ID = 0


def padded_logprobs(
    model: PreTrainedModel, prompts: Sequence[list[int]], completions: Sequence[list[int]], *, pad_id: int
) -> Tensor:
    """Returns log-probs in nats summed over each completion, (B,), from one forward pass padded to the longest sequence."""
    length = max(len(prompt) + len(ids) for prompt, ids in zip(prompts, completions, strict=True))
    input_ids = torch.full((len(prompts), length), pad_id)  # (B, L)
    present = torch.zeros(len(prompts), length, dtype=torch.long)
    completed = torch.zeros(len(prompts), length, dtype=torch.bool)
    for row, (prompt, ids) in enumerate(zip(prompts, completions, strict=True)):
        end = len(prompt) + len(ids)
        input_ids[row, :end] = torch.tensor(prompt + ids)
        present[row, :end] = 1
        completed[row, len(prompt) : end] = True
    # The logits at a position are of the next token, hence the shift by one.
    logits = model(input_ids=input_ids, attention_mask=present, use_cache=False).logits[:, :-1]  # (B, L - 1, V)
    logprobs = logits.log_softmax(-1).gather(2, input_ids[:, 1:, None]).squeeze(2)  # (B, L - 1)
    return (logprobs * completed[:, 1:]).sum(1)


def official_selm_step(
    policy: PreTrainedModel, reference: PreTrainedModel, pairs: Sequence[EncodedPair], *,
    micro_batch_size: int, pad_id: int, beta: float, alpha: float,
) -> float:  # fmt: skip
    """Returns the mean loss over the pairs, taken in their order, and leaves its gradient in the policy."""
    policy.zero_grad(set_to_none=True)
    total = 0.0
    for start in range(0, len(pairs), micro_batch_size):
        batch = pairs[start : start + micro_batch_size]
        ours = _three_logprobs(policy, batch, pad_id=pad_id)
        with torch.no_grad():
            theirs = _three_logprobs(reference, batch, pad_id=pad_id)
        chosen, rejected, explore = (a - b for a, b in zip(ours, theirs, strict=True))
        losses = dpo_loss(chosen, rejected, beta=beta) + exploration_term(explore, beta=beta, alpha=alpha)
        loss = losses.sum() / len(pairs)
        loss.backward()
        total += loss.item()
    return total


def _three_logprobs(model: PreTrainedModel, pairs: Sequence[EncodedPair], *, pad_id: int) -> tuple[Tensor, Tensor, Tensor]:
    """Returns log-probs in nats of chosen, rejected and explored completions, (B,) each, from two forward passes."""
    prompts = [pair.prompt for pair in pairs]
    both = [pair.chosen for pair in pairs] + [pair.rejected for pair in pairs]
    chosen, rejected = padded_logprobs(model, prompts * 2, both, pad_id=pad_id).chunk(2)
    explore = [pair.explore or [] for pair in pairs]
    return chosen, rejected, padded_logprobs(model, prompts, explore, pad_id=pad_id)


def trl_trainer(
    policy: PreTrainedModel, reference: PreTrainedModel, pairs: Sequence[EncodedPair], distribution: PairDistribution,
    settings: Mapping[str, Any],
) -> DPOTrainer:  # fmt: skip
    """Returns TRL's trainer with a live reference over the pairs, ready for `training_step`.

    The pairs are given as text, which TRL tokenises itself; raises RuntimeError where that gives other token ids.
    """
    words = {PAD: PAD_ID, END: distribution.end_id} | {
        f"w{i}": i for i in range(distribution.first_word, distribution.vocabulary)
    }
    names = {number: word for word, number in words.items()}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token=PAD))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=PAD, eos_token=END, unk_token=PAD)
    rows = [
        {
            part: "".join(f" {names[i]}" for i in ids)
            for part, ids in (("prompt", pair.prompt), ("chosen", pair.chosen), ("rejected", pair.rejected))
        }
        for pair in pairs
    ]
    args = DPOConfig(**settings)
    trainer = DPOTrainer(policy, reference, args, train_dataset=Dataset.from_list(rows), processing_class=fast)
    trainer.current_gradient_accumulation_steps = args.gradient_accumulation_steps
    prepared = [(row["prompt_ids"], row["chosen_ids"], row["rejected_ids"]) for row in trainer.train_dataset]
    if prepared != [(pair.prompt, pair.chosen, pair.rejected) for pair in pairs]:
        raise RuntimeError("TRL's preparation did not give the pairs' token ids")
    return trainer
