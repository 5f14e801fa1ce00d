"""From a model, a tokenizer and preference rows, as TRL's DPOTrainer takes them, to scored pairs and a batch plan."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from accelerate.utils import gather_object
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainingArguments
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled

from handbook_ext.core.errors import UserError
from handbook_ext.core.records import Messages, PreferencePair, assistant
from handbook_ext.data.row_checks import Rules, Unusable, messages
from handbook_ext.data.schemas import plain_pair
from handbook_ext.objectives.batching import BatchPlan
from handbook_ext.objectives.objective import Objective
from handbook_ext.policies.chat import ChatEncoder, Conversation
from handbook_ext.policies.encoding import EncodedPairs, encode_pairs
from handbook_ext.policies.forward import PrefixShared, prefix_shared
from handbook_ext.policies.models import without_dropout
from handbook_ext.policies.packing import EncodedGroup, EncodedPair
from handbook_ext.selection.log_prob_store import LogProb
from handbook_ext.training.scoring import score_batch, score_shard

Rows = Iterable[Mapping[str, Any]]
NOT_READ = ("images", "image", "tools", "chat_template_kwargs")  # Columns of TRL's that would change the tokens.
NAME = "the reference model"  # Its log-probs are kept under this name until they are in the pairs.


class PairLogProbs(NamedTuple):
    """Log-probs of a pair's completions under one policy: sums in nats, and tokens; explore is None where the pair has none."""

    chosen: LogProb
    rejected: LogProb
    explore: LogProb | None


@dataclass(frozen=True)
class PreparedRows:
    """Encoded pairs with reference log-probs, the order to train in, and the token that fills up rows."""

    pairs: Sequence[EncodedPair]
    plan: BatchPlan
    pad_id: int


def load_pairs(rows: Rows) -> list[PreferencePair]:
    """Returns the preference pairs of rows in TRL's formats: a `datasets.Dataset`, or any iterable of mappings.

    A row has `chosen` and `rejected`, as messages or strings, and a `prompt` unless both begin with it as messages. A string
    is one turn, of the user or of the assistant, and goes through the chat template (TRL leaves strings without a template).
    `explore`, messages or a string, is the sample of SELM's exploration term; `prompt_id` names the prompt. Rows whose two
    completions are equal are left out with a warning. Raises UserError with the row's number, from 0, and the fault.
    """
    if isinstance(rows, Mapping | str):
        raise UserError(f"rows is a {type(rows).__name__}; give one split, a datasets.Dataset or a list of dicts")
    pairs = [_pair(f"rows[{number}]", row) for number, row in enumerate(rows)]
    distinct = [pair for pair in pairs if pair.chosen != pair.rejected]
    if not distinct:
        raise UserError(f"no preference pair is left of {len(pairs)} rows; give rows with prompt, chosen and rejected")
    if len(distinct) < len(pairs):
        warnings.warn(f"{len(pairs) - len(distinct)} rows left out: chosen equals rejected", stacklevel=2)
    return distinct


def score_pairs(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, pairs: Sequence[PreferencePair], *, max_length: int = 1024,
    max_prompt_length: int | None = None, batch_size: int = 8, head_chunk: int = 4096,
) -> list[PairLogProbs]:  # fmt: skip
    """Returns the log-probs of each pair's completions under a model, in the order of the pairs.

    The completions of a pair share one pass of their prompt; `batch_size` pairs go through the model together. The model is
    made to share prefixes, dropout off, in place; its mode stays as it was.
    """
    encoder = chat_encoder(tokenizer, max_length=max_length, max_prompt_length=max_prompt_length)
    rows = [
        Conversation(pair.prompt, [pair.chosen, pair.rejected, *([pair.explore] if pair.explore else [])], [], f"pairs[{number}]")
        for number, pair in enumerate(pairs)
    ]
    groups = [
        EncodedGroup([] if prompt is None else prompt.tolist(), [ids.tolist() for ids in texts])
        for prompt, texts in encoder.encode(rows)
    ]
    # A notebook may go on training with the model that it gives: the mode is restored below.
    policy, was_training = sharing_prefixes(model), model.training
    policy.eval()
    found: dict[int, PairLogProbs] = {}
    # Little padding, and a lack of memory shows in the first batch.
    longest_first = sorted(range(len(groups)), key=lambda index: -len(groups[index]))
    for start in range(0, len(groups), batch_size):
        indices = longest_first[start : start + batch_size]
        batch = [groups[index] for index in indices]
        scored = score_batch(policy, batch, pad_id=pad_token(tokenizer), head_chunk=head_chunk)
        for index, group, values in zip(indices, batch, scored, strict=True):
            each = [LogProb(value, len(ids)) for value, ids in zip(values, group.completions, strict=True)]
            found[index] = PairLogProbs(each[0], each[1], each[2] if len(each) > 2 else None)
    policy.train(was_training)
    return [found[index] for index in range(len(groups))]


def prepare(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: Rows, objective: Objective, args: TrainingArguments, *,
    limits: Mapping[str, Any], reference: PreTrainedModel | None, head_chunk: int,
) -> PreparedRows:  # fmt: skip
    """Returns rows ready to train on; the model, and a reference model, are made to share prefixes, dropout off, in place."""
    _refuse_arguments(args)
    encoded = encode_pairs(load_pairs(rows), chat_encoder(tokenizer, **limits), explore=objective.alpha > 0)
    if objective.alpha > 0 and not encoded.notes["explored"]:
        raise UserError(
            f"no row has an 'explore', but the objective's alpha is {objective.alpha}; add the column, or set it to 0"
        )
    micro_batch = args.per_device_train_batch_size
    # transformers states the batch per device, the plan globally.
    plan = BatchPlan(encoded.lengths, micro_batch * args.gradient_accumulation_steps * args.world_size, micro_batch, args.seed)
    pad_id = pad_token(tokenizer)
    policy = sharing_prefixes(model)
    if args.gradient_checkpointing and isinstance(model, PeftModel):
        model.enable_input_require_grads()  # A checkpointed block has gradients only if an input has.
    # Before any step, when the policy still is the reference model: afterwards training needs no second model in memory.
    if objective.needs_reference:
        scorer = policy if reference is None else sharing_prefixes(reference)
        encoded = encoded.with_reference(_reference_sums(scorer, encoded, plan, args, pad_id, head_chunk), NAME)
    return PreparedRows(encoded.pairs, plan, pad_id)


def sharing_prefixes(model: PreTrainedModel) -> PreTrainedModel:
    """Returns the same model, able to compute completion log-probs over prefix-shared rows, dropout off; peft's as well."""
    inner: Any = model.get_base_model() if isinstance(model, PeftModel) else model
    if not isinstance(inner, PrefixShared):
        prefix_shared(inner)
    without_dropout(inner.config)
    for module in model.modules():
        without_dropout(module)  # Attention keeps its own copy of the configuration's value.
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return model


def chat_encoder(tokenizer: PreTrainedTokenizerBase, *, max_length: int, max_prompt_length: int | None) -> ChatEncoder:
    """Returns the encoder of a tokenizer; a UserError where it cannot render or end a conversation."""
    if not tokenizer.chat_template:
        raise UserError("the tokenizer has no chat template; set tokenizer.chat_template to that of the model")
    if tokenizer.eos_token is None:
        raise UserError("the tokenizer has no end token; set tokenizer.eos_token")
    long_prompts = "error" if max_prompt_length is None else "truncate"
    return ChatEncoder(tokenizer, max_length=max_length, max_prompt_length=max_prompt_length, long_prompts=long_prompts)


def pad_token(tokenizer: PreTrainedTokenizerBase) -> int:
    """Returns the id that fills up rows; it is masked, so any would do."""
    return int(tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id)


def _reference_sums(
    policy: PreTrainedModel, encoded: EncodedPairs, plan: BatchPlan, args: TrainingArguments, pad_id: int, head_chunk: int
) -> dict[str, float]:
    """Returns summed log-probs (nats) by completion id, from all processes, each of which scores its share.

    The micro-batches are those of the first epoch, so that training's first step meets log-probs that are equal to the bit.
    """
    policy.to(args.device).eval()  # Trainer moves the model to the device later than this.
    mine = plan.epoch(0)[args.process_index :: args.world_size]
    # The autocast of Trainer's steps: in another type the log-ratios of the untrained policy would not be 0.
    half = torch.float16 if args.fp16 else torch.bfloat16
    with torch.autocast(args.device.type, half, enabled=args.bf16 or args.fp16):
        rows = score_shard(policy, encoded, mine, policy_name=NAME, pad_id=pad_id, head_chunk=head_chunk)
    sums = [(row["completion"], row["sum"]) for row in rows]
    return dict(gather_object(sums) if args.world_size > 1 else sums)


def _pair(where: str, row: Any) -> PreferencePair:
    """Returns the pair of a row."""
    if not isinstance(row, Mapping):
        raise UserError(
            f"{where} is a {type(row).__name__}, not a mapping; give one split, a datasets.Dataset or a list of dicts"
        )
    if unread := [name for name in NOT_READ if row.get(name)]:
        raise UserError(f"{where}: the column '{unread[0]}' is not supported; remove it, or train with TRL")
    try:
        pair = plain_pair(where, dict(row), Rules(seed=0, ties="keep", drop_empty=True))
    except Unusable as reason:
        what = str(reason).removeprefix("empty ")
        what = what if what in ("prompt", "turn") else f"{what} completion"
        raise UserError(f"{where}: the {what} is empty; repair the row or leave it out") from None
    prompt = row.get("prompt")
    if isinstance(prompt, list) and messages(where, "prompt", prompt) != pair.prompt:
        raise UserError(
            f"{where}: 'chosen' holds more than one message and does not begin with 'prompt'; a completion is one message of "
            "role 'assistant'"
        )
    return PreferencePair.of(pair.prompt_id, pair.prompt, pair.chosen, pair.rejected, _explored(where, row.get("explore")))


def _explored(where: str, value: Any) -> Messages | None:
    """Returns the explored sample of a row, or None where it has none."""
    if value is None:
        return None
    sample = assistant(value) if isinstance(value, str) else messages(where, "explore", value)
    if len(sample) != 1 or sample[0]["role"] != "assistant" or not sample[0]["content"].strip():
        raise UserError(f"{where}: 'explore' must be one message of role 'assistant' with a text, or a string")
    return sample


def _refuse_arguments(args: TrainingArguments) -> None:
    """Raises UserError for training arguments that have no effect in this trainer, or that it cannot train under."""
    if hasattr(args, "beta") or hasattr(args, "loss_type"):
        raise UserError(
            f"args is a {type(args).__name__}, whose loss_type, beta and max_length would not be read; give "
            "transformers.TrainingArguments, an Objective, and max_length to from_rows"
        )
    if args.n_gpu > 1:
        raise UserError(f"one process sees {args.n_gpu} GPUs; start one process per GPU with accelerate launch, or show it one")
    if is_deepspeed_zero3_enabled():
        raise UserError("ZeRO-3 shards the model before it is scored; use ZeRO-2 or FSDP here, or a recipe, which trains with it")
