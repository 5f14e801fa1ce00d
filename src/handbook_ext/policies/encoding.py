"""Preference pairs as token ids under the limits of a recipe, with a count for every pair left out."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace

from handbook_ext.core.errors import UserError
from handbook_ext.core.records import PreferencePair
from handbook_ext.policies.chat import ChatEncoder
from handbook_ext.policies.packing import EncodedPair


@dataclass
class EncodedPairs:
    """Encoded pairs, the ids of their completions in the score store, and what was left out."""

    pairs: list[EncodedPair] = field(default_factory=list)
    ids: list[list[str]] = field(default_factory=list)
    dropped: Counter[str] = field(default_factory=Counter)
    notes: Counter[str] = field(default_factory=Counter)

    @property
    def lengths(self) -> list[int]:
        """Returns the tokens of each pair's row."""
        return [len(pair) for pair in self.pairs]

    def with_reference(self, store: dict[str, float], policy: str) -> EncodedPairs:
        """Returns the pairs with their reference log-probs; a UserError names the first ten that the store lacks."""
        missing = [name for names in self.ids for name in names if name not in store]
        if missing:
            raise UserError(
                f"the score store lacks {len(missing)} completions under policy {policy[:12]}, the first: "
                f"{', '.join(missing[:10])}; run make, which scores them"
            )
        pairs = []
        for pair, names in zip(self.pairs, self.ids, strict=True):
            values = [store[name] for name in names]
            explored = values[pair.explore_index] if pair.explore is not None else 0.0
            pairs.append(replace(pair, reference=(values[0], values[1], explored)))
        return replace(self, pairs=pairs)


def encode_pairs(pairs: list[PreferencePair], encoder: ChatEncoder, *, explore: bool) -> EncodedPairs:
    """Returns the pairs as token ids; pairs that truncation makes equal are dropped and counted.

    With `explore` off the explored samples are left out altogether: SELM with alpha 0 is DPO to the bit.
    """
    result = EncodedPairs()
    for pair in pairs:
        prompt = encoder.prompt_ids(pair.prompt, f"prompt {pair.prompt_id}")
        if prompt is None:
            result.dropped["prompt too long"] += 1
            continue
        texts = [(pair.chosen, pair.chosen_id), (pair.rejected, pair.rejected_id)]
        if explore and pair.explore and pair.explore_id:
            texts.append((pair.explore, pair.explore_id))
        chosen, rejected, *sample = (encoder.completion_ids(pair.prompt, text, len(prompt)) for text, _ in texts)
        if chosen == rejected:
            result.dropped["chosen equals rejected after truncation"] += 1
            continue
        encoded = EncodedPair(prompt, chosen, rejected, sample[0] if sample else None)
        names: list[str] = [""] * len(encoded.completions)
        for (_, name), ids in zip(texts, (chosen, rejected, *sample), strict=True):
            index = encoded.completions.index(ids)  # Texts that truncation makes equal are one, under the first one's id.
            names[index] = names[index] or name
        result.pairs.append(encoded)
        result.ids.append(names)
        if sample:
            result.notes["explored"] += 1
            result.notes["explore is chosen"] += sample[0] == chosen
            result.notes["explore is rejected"] += sample[0] == rejected
    result.notes["prompts cut"] = encoder.cut_prompts
    result.notes["completions cut"] = encoder.cut_completions
    if not result.pairs:
        raise UserError(f"no preference pair is left to train on ({dict(result.dropped)}); check the data and max_length")
    return result
