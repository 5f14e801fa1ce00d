"""Which settings of a recipe may change so that it fits a machine, and to what: none that its paper fixes. No torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from handbook_ext.objectives.batching import fitting_micro_batch
from handbook_ext.planning.figures import Setting

CHUNKS = (1024, 256)  # Completion tokens that may meet the LM head at once, where the recipe's are too many.

Alternatives = Mapping[str, Sequence[Any]]
"""By a setting's dotted name, the values to try besides the recipe's, in the order of preference."""


def stated(setting: Setting, key: str) -> Any:
    """Returns a setting of the recipe by its dotted name."""
    value: Any = setting.run.settings
    for name in key.split("."):
        value = getattr(value, name)
    return value


def micro_batches(setting: Setting, section: str, part: Any) -> dict[str, Sequence[Any]]:
    """Returns the smaller micro-batches that make up the global batch."""
    processes = setting.sharding.processes
    first = fitting_micro_batch(part.global_batch_size, part.per_device_train_batch_size, processes)
    smaller = [fitting_micro_batch(part.global_batch_size, most, processes) for most in range(first - 1, 0, -1)]
    return {f"{section}.per_device_train_batch_size": list(dict.fromkeys(smaller))} if smaller else {}


def of_training(setting: Setting, section: str, part: Any) -> dict[str, Sequence[Any]]:
    """Returns what may change in a section of training."""
    if part is None:
        return {}
    found = micro_batches(setting, section, part)
    if not part.gradient_checkpointing:
        found[f"{section}.gradient_checkpointing"] = [True]
    if section == "train":
        found["train.head_chunk"] = [chunk for chunk in CHUNKS if chunk < part.head_chunk]
    return {key: values for key, values in found.items() if values}


def of_sampling(setting: Setting) -> dict[str, Sequence[Any]]:
    """Returns what may change where policies are sampled and judged; of samples none but their last bits depends on it."""
    recipe = setting.run.settings
    vllm, found = recipe.generate.engine == "vllm", dict[str, Sequence[Any]]()
    if vllm:
        sizes = [size for size in (2, 4, 8) if size > recipe.generate.tensor_parallel_size]
        found["generate.tensor_parallel_size"] = [size for size in sizes if setting.sharding.processes % size == 0]
    else:
        found["generate.batch_size"] = _halves(recipe.generate.batch_size)
        found["evaluate.batch_size"] = _halves(recipe.evaluate.batch_size)
    if any(rank.tokens_per_batch is None for rank in setting.run.rankers):
        found["rank.batch_size"] = _halves(recipe.rank.batch_size)
    limited = any(each.settings.health.max_kl is not None for each in setting.run.iterations)
    if recipe.evaluate.implicit_reward and not limited:
        found["evaluate.implicit_reward"] = [False]
    if not recipe.rank.bf16:
        found["rank.bf16"] = [True]
    return {key: values for key, values in found.items() if values}


def _halves(value: int) -> list[int]:
    """Returns a number halved again and again, down to 1."""
    return [value >> shift for shift in range(1, value.bit_length()) if value >> shift]
