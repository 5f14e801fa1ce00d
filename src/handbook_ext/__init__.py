"""Iterative preference optimisation: what a notebook needs, by name; the rooms below hold the rest.

Rows: `load_pairs` makes `PreferencePair`s of rows with prompt, chosen and rejected.
Log-probs: `score_pairs` gives a `PairLogProbs` for each pair, of its completions under a model; `encode_pairs` with a
`ChatEncoder`, `pack`, `prefix_shared` and `pair_logprobs` are its steps, for code of one's own.
Losses: `LOSSES` is the table of them, each a `Loss`; an `Objective` is one of them with SELM's exploration term, and
`RewardForm` says what it is made of: log-ratios or log-probs, summed or per token.
Selection: `RULES` is the table of the rules; `select_pairs` makes the pairs of one of them from a `Material` (an `OfflinePair`
per prompt, `Completion`s, `Ranking`s of `Candidate`s) and `SelectSettings`; `top_k_indices` keeps the largest margins (SeRA).
Training: `PreferenceTrainer.from_rows(model, tokenizer, rows, objective, args)` takes what TRL's DPOTrainer takes.

Names are imported when they are first used, so `import handbook_ext` loads neither torch nor transformers. What the user
gets wrong raises `UserError`, with one line, or the ValueError that it is a kind of.
"""

import importlib
from typing import Any

import handbook_ext.core.interrupt  # noqa: F401 - Ctrl-C in a script that still imports

_MODULES = {
    "UserError": "core.errors",
    "Candidate": "core.records",
    "Completion": "core.records",
    "OfflinePair": "core.records",
    "PreferencePair": "core.records",
    "Ranking": "core.records",
    "LOSSES": "objectives.losses",
    "Loss": "objectives.losses",
    "Objective": "objectives.objective",
    "RewardForm": "objectives.reward_form",
    "Material": "selection.rules",
    "RULES": "selection.rules",
    "select_pairs": "selection.rules",
    "top_k_indices": "selection.sera",
    "SelectSettings": "recipes.settings_stages",
    "ChatEncoder": "policies.chat",
    "encode_pairs": "policies.encoding",
    "pack": "policies.packing",
    "pair_logprobs": "policies.forward",
    "prefix_shared": "policies.forward",
    "PairLogProbs": "training.from_rows",
    "load_pairs": "training.from_rows",
    "score_pairs": "training.from_rows",
    "PreferenceTrainer": "training.trainer",
}

__all__ = sorted(_MODULES)  # noqa: PLE0605 - a list of names, which the linter cannot read


def __getattr__(name: str) -> Any:
    """Returns a public name, imported on first use (PEP 562)."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """Returns the public names."""
    return [*__all__, "__doc__", "__name__", "__path__"]
