"""Whether a policy can read the tokens that its run gives it: as many positions, and a row for each entry of the tokenizer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from handbook_ext.core.errors import UserError
from handbook_ext.graph.stages import CheckStage
from handbook_ext.policies.models import config_of, load_tokenizer

POSITIONS = ("max_position_embeddings", "n_positions", "max_sequence_length")


def context_notes(settings: CheckStage, fetched: Path | None = None) -> list[str]:
    """Returns a line for each limit on length that exceeds the policy's context, where its positions are rotary.

    Such a policy computes beyond its context, untrained for that, and rows may all be shorter. Raises UserError for one whose
    positions are a table, which ends there, and for a tokenizer with ids beyond the embedding.

    fetched: the checkpoint, where a stage of the run has fetched it; None is the recipe's.
    """
    if settings.model.architecture is not None:
        return _longer(settings, settings.model.architecture, "model.architecture")
    source, here = str(fetched or settings.model.name_or_path), fetched is not None
    config = config_of(source, settings.model, trained_here=here)
    notes = _longer(settings, vars(config), source)
    if notes and not getattr(config, "rope_parameters", None):
        raise UserError(f"{notes[0]}; set it to that or less")
    rows = getattr(config, "vocab_size", None)
    entries = load_tokenizer(source, settings.model, trained_here=here).get_vocab()
    token = max(entries, key=lambda each: entries[each])
    if rows is not None and entries[token] >= rows:
        raise UserError(
            f"{source}: the tokenizer numbers its entries up to {entries[token]} ({token!r}), but the embedding has {rows} rows; "
            "take the entries out of the tokenizer, or resize the embedding (resize_token_embeddings) and save both"
        )
    return notes


def _longer(settings: CheckStage, config: Mapping[str, Any], source: str) -> list[str]:
    """Returns the limits of the run that exceed the positions that a configuration states, if it states any, in words."""
    positions = next((int(config[name]) for name in POSITIONS if config.get(name)), 0)
    return [
        f"{setting} is {length}, but the context of {source} is {positions} tokens"
        for setting, length in _limits(settings)
        if positions and length > positions
    ]


def _limits(settings: CheckStage) -> Iterator[tuple[str, int]]:
    """Yields the settings that limit the tokens of prompt and completion together."""
    if settings.sft is not None:
        yield "sft.max_length", settings.sft.max_length
    for name, each in settings.iterations.items():
        yield f"{name}: train.max_length", each.limits.max_length
