"""Whether a transformer's sizes fit each other, by its configuration values alone. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

HIDDEN, HEADS = ("hidden_size", "n_embd"), ("num_attention_heads", "n_head")


def misfit(values: Mapping[str, Any]) -> str | None:
    """Returns which sizes of a configuration cannot be, in words, or None; what is not stated is not judged."""
    hidden, heads, shared = _stated(values, *HIDDEN), _stated(values, *HEADS), _stated(values, "num_key_value_heads")
    sizes = (*HIDDEN, *HEADS, "num_key_value_heads", "head_dim", "num_hidden_layers", "intermediate_size", "vocab_size")
    for name in sizes:
        value = values.get(name)
        if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
            return f"{name} {value!r} is not a whole number from 1"
    if hidden and heads and not values.get("head_dim") and hidden[1] % heads[1]:
        return f"{hidden[0]} {hidden[1]} is no multiple of {heads[0]} {heads[1]}, and there is no head_dim"
    if heads and shared and heads[1] % shared[1]:
        return f"{heads[0]} {heads[1]} is no multiple of {shared[0]} {shared[1]}"
    return None


def _stated(values: Mapping[str, Any], *names: str) -> tuple[str, int] | None:
    """Returns the first of some names that is stated, with its value."""
    return next(((name, values[name]) for name in names if isinstance(values.get(name), int)), None)
