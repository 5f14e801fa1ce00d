"""Sizes of a transformer that fit each other, and those that cannot be."""

from __future__ import annotations

from typing import Any

import pytest

from handbook_ext.recipes.architecture import misfit


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"hidden_size": 7, "num_attention_heads": 2, "head_dim": 4}, None),
        ({"hidden_size": 7, "num_attention_heads": 2}, "hidden_size 7 is no multiple of num_attention_heads 2"),
        ({"n_embd": 7, "n_head": 2}, "n_embd 7 is no multiple of n_head 2"),
        ({"hidden_size": 8, "num_attention_heads": 4, "num_key_value_heads": 2}, None),
        ({"num_attention_heads": 2, "num_key_value_heads": 4}, "num_attention_heads 2 is no multiple of num_key_value_heads 4"),
        ({"num_attention_heads": True}, "num_attention_heads True is not a whole number from 1"),
        ({"vocab_size": 0}, "vocab_size 0 is not a whole number from 1"),
        ({"hidden_size": "8"}, "hidden_size '8' is not a whole number from 1"),
        ({}, None),
    ],
)
def test_sizes_fit_or_it_is_said_which_do_not(values: dict[str, Any], words: str | None) -> None:
    found = misfit(values)
    assert found is None if words is None else found is not None and found.startswith(words)
