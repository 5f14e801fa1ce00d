"""In which batches training computes log-probs, and scoring with it."""

from __future__ import annotations

from handbook_ext.recipes.section import Section


class BatchSizes(Section):
    """In which shapes and by which kernels a policy is scored: those of training.

    `epochs` decide on shapes with micro_batch_tokens alone, and are 1 without.
    """

    per_device_train_batch_size: int
    micro_batch_tokens: int | None
    epochs: int
    head_chunk: int
    bf16: bool
    torch_compile: bool
    liger: bool
