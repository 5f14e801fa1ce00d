"""TRL's SFTTrainer where rows have no padding, and only positions that have a label meet the LM head."""

from __future__ import annotations

import inspect
import time
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from trl import SFTTrainer

from handbook_ext.policies.forward import CHANGED_LOGITS
from handbook_ext.policies.packing import PackedRows, string_together
from handbook_ext.recipes.settings_run import HEAD_CHUNK
from handbook_ext.training.sft_examples import IGNORED

# Settings beyond CHANGED_LOGITS that TRL's head heeds.
MULTIPLIERS = ("output_multiplier", "lm_head_multiplier")
ATTENTION = {"full_attention", "sliding_attention"}  # Kinds of layers that see of a row what a mask lets them see.


def can_string_together(model: PreTrainedModel, max_length: int) -> bool:
    """Returns whether a model computes sequences strung together in one row as if each were alone.

    Not where it changes logits behind its head, adds a loss of its own (experts), takes no positions, has layers that are no
    attention or see less than max_length tokens, or attends by other means than SDPA: those train as TRL trains them.
    """
    config = model.config.get_text_config()
    window = getattr(config, "sliding_window", None)
    return (
        model.config._attn_implementation == "sdpa"
        and model._can_set_attn_implementation()
        and not getattr(model, "_is_stateful", False)
        and not getattr(config, "alibi", False)
        and "position_ids" in inspect.signature(model.base_model.forward).parameters
        and all(getattr(config, name, None) in (None, 1, 1.0) for name in (*CHANGED_LOGITS, *MULTIPLIERS))
        and not hasattr(config, "output_router_logits")
        and set(getattr(config, "layer_types", None) or ()) <= ATTENTION
        and (window is None or window >= max_length)
    )


class PaddingFreeTrainer(SFTTrainer):
    """The loss of TRL's trainer, of a batch as one row without padding; takes a `prefix_shared` model.

    TRL's own metrics (entropy, accuracy, number of tokens) are not computed; a log line has tokens per second.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Takes what SFTTrainer takes."""
        super().__init__(*args, **kwargs)
        self.data_collator = _collate  # Here, since TRL refuses another than its own where it packs rows.
        self._tokens, self._since = 0, time.perf_counter()

    def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None) -> Tensor:
        """Returns the summed loss of this micro-batch's labels (nats), over the labels of the whole step."""
        rows: PackedRows = inputs["rows"].to(self.args.device)
        self._tokens += rows.input_ids.numel()
        labels = torch.tensor(len(rows.targets), device=self.args.device)
        # At least one call of the head, also where no label is left: all weights then are in the graph.
        most = max(int(self.accelerator.gather(labels).max()) if self.args.world_size > 1 else len(rows.targets), 1)
        logprob = model(rows=rows, head_chunk=HEAD_CHUNK, most=most)[0]  # (1,) -> ()
        whole = torch.as_tensor(len(rows.targets) if num_items_in_batch is None else num_items_in_batch)
        loss: Tensor = -logprob / whole.clamp(min=1)
        # The labels of a step are those of all processes, over which gradients are averaged.
        return loss * self.accelerator.num_processes if num_items_in_batch is not None else loss

    def floating_point_ops(self, inputs: Any) -> int:
        """Returns 0: transformers' estimate is of the whole head at each position."""
        return 0

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Logs a line, with the tokens per second of all processes since the last one."""
        if "loss" in logs:
            tokens = torch.tensor(self._tokens, device=self.args.device)
            rate = int(self.accelerator.reduce(tokens, reduction="sum")) / max(time.perf_counter() - self._since, 1e-9)
            logs = {**logs, "tokens_per_second": round(rate, 1)}
            self._tokens, self._since = 0, time.perf_counter()
        super().log(logs, start_time)


def _collate(examples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Returns a micro-batch of examples: `input_ids`, `labels`, and the `seq_lengths` of several that TRL packed into one."""
    ids, labels = (list(chain.from_iterable(example[name] for example in examples)) for name in ("input_ids", "labels"))
    lengths = [length for example in examples for length in example.get("seq_lengths") or [len(example["input_ids"])]]
    rows = string_together(ids, labels, lengths, ignored=IGNORED)
    # Trainer counts the labels of a step in what these names hold.
    return {"rows": rows, "labels": rows.targets, "shift_labels": rows.targets}
