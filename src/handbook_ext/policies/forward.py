"""One function from rows to log-probs, for scoring and for training alike."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from handbook_ext.core.errors import UserError
from handbook_ext.objectives.logprobs import sum_by_segment, token_logprobs
from handbook_ext.policies.packing import PackedRows, may_attend

# Where `_runs` parts rows: more than this share of a row would be padding, and this many positions keep a processor busy.
WASTE = 0.05
ENOUGH = 512


class PrefixShared:
    """Mixed into a causal language model's class: `model(rows=..., head_chunk=...)` returns completion log-probs.

    The model stays what it was in every other respect, so wrappers (DDP, ZeRO-3, FSDP, PEFT) that go through `forward` and
    save through `save_pretrained` need no change.
    """

    def forward(self, *args: Any, rows: PackedRows | None = None, head_chunk: int = 4096, **kwargs: Any) -> Any:
        """Returns log-probs in nats summed over each completion, (S,) fp32; without `rows` the model's usual output."""
        if rows is None:
            return super().forward(*args, **kwargs)  # type: ignore[misc]
        model: Any = self
        states = _hidden_states(model, rows)[rows.predictors]
        logprobs = token_logprobs(states, rows.targets, model.get_output_embeddings(), chunk=head_chunk)
        return sum_by_segment(logprobs, rows.owner, len(rows.completion_tokens))


def _hidden_states(model: Any, rows: PackedRows) -> Tensor:
    """Returns the last hidden states of all positions, (R * L, D); rows go through the model in runs of similar length."""
    runs = _runs(rows)
    states = []
    for part in [rows] if len(runs) == 1 else [rows.cut(run) for run in runs]:
        hidden = model.base_model(
            input_ids=part.input_ids, position_ids=part.positions, attention_mask=attention_mask(model, part), use_cache=False
        ).last_hidden_state  # (r, l, D)
        left_out = rows.input_ids.shape[1] - hidden.shape[1]
        states.append(torch.nn.functional.pad(hidden, (0, 0, 0, left_out)).flatten(0, 1))
    return torch.cat(states)


def _runs(rows: PackedRows) -> list[slice]:
    """Returns which consecutive rows go through the model together, so that little padding is computed.

    A run ends where its next row would be padded by more than WASTE of the longest, once it has ENOUGH positions to keep a
    processor busy. All rows are one run on a GPU, which wants large batches, and among several processes: where weights
    are sharded, each must run the model equally often.
    """
    count = len(rows.input_ids)
    several = torch.distributed.is_available() and torch.distributed.is_initialized()
    if rows.input_ids.device.type != "cpu" or several:
        return [slice(0, count)]
    lengths = (rows.pair >= 0).sum(1).tolist()
    runs = []
    start, longest = 0, lengths[0]
    for row in range(1, count):
        longest = max(longest, lengths[row])
        if longest - lengths[row] > WASTE * longest and longest * (row - start) >= ENOUGH:
            runs.append(slice(start, row))
            start, longest = row, lengths[row]
    return [*runs, slice(start, count)]


def prefix_shared(model: PreTrainedModel) -> PreTrainedModel:
    """Returns the same model, able to compute completion log-probs over prefix-shared rows.

    Raises UserError for a model that changes its logits behind the LM head, which `PrefixShared` would leave out.
    """
    for name in ("final_logit_softcapping", "logit_scale", "logits_scaling"):
        if getattr(model.config, name, None) not in (None, 1, 1.0):
            raise UserError(f"{model.config.model_type}: models with {name} are not supported; use another architecture")
    kind = type(model)
    model.__class__ = type(kind.__name__, (PrefixShared, kind), {"__module__": kind.__module__})
    return model


def attention_mask(model: PreTrainedModel, rows: PackedRows) -> Any:
    """Returns the mask in the form that the model's attention takes: a block mask for flex_attention, else additive."""
    if model.config._attn_implementation == "flex_attention":
        return _block_mask(rows)
    allowed = may_attend(rows)
    dtype = model.get_input_embeddings().weight.dtype
    return torch.zeros(allowed.shape, dtype=dtype, device=allowed.device).masked_fill(~allowed, torch.finfo(dtype).min)


def uses_one_row(model: PreTrainedModel) -> bool:
    """Returns whether micro-batches should be packed in one row: a block mask skips what a dense mask computes."""
    return bool(model.config._attn_implementation == "flex_attention")


def pair_logprobs(values: Tensor, rows: PackedRows) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the entries of `values` (S,) for chosen, rejected and explore, (B,) each; explore is 0 where absent."""
    explored = torch.where(rows.explore >= 0, values[rows.explore.clamp(min=0)], 0.0)
    return values[rows.chosen], values[rows.rejected], explored


def _block_mask(rows: PackedRows) -> Any:
    """Returns FlexAttention's block mask of the rule in `collation.may_attend`."""
    from torch.nn.attention.flex_attention import create_block_mask  # noqa: PLC0415 - loads the compiler

    pair, part = rows.pair, rows.part

    def rule(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        """Tells whether a query position may see a key position."""
        same = (pair[row, query] == pair[row, key]) & (pair[row, query] >= 0)
        visible = (part[row, key] == 0) | (part[row, query] == part[row, key])
        return ((query >= key) & same & visible) | (query == key)

    count, length = pair.shape
    return create_block_mask(rule, count, None, length, length, device=str(pair.device))
