"""Who labels SeRA's own pairs: their margin, as the paper has it, or, to learn what labels are worth, a ranker or a coin.

The pairs are those of largest margin whoever labels them: only which side of a pair is chosen differs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

from handbook_ext.core.records import PreferencePair, derived_seed
from handbook_ext.selection.material import Material, Needs

LABELS = {
    "margin": "the policy itself, by implicit reward (SeRA)",
    "ranker": "the ranker's scores; where it tells the two not apart, the margin",
    "coin": "a seeded coin",
}
"""The values of select.bootstrap_labels, each with a line about who labels."""
NEEDS = {"ranker": Needs(rankings=True)}
"""What labelling reads besides the pairs."""


def labelled(
    pairs: Sequence[PreferencePair], by: str, material: Material
) -> tuple[list[PreferencePair], dict[str, dict[str, int]]]:
    """Returns own pairs with chosen and rejected exchanged where `by` (of LABELS) says so, and facts for the manifest.

    The facts count pairs: `exchanged`, and under a ranker `tied` and `unjudged`, which keep the order of their margin. None under
    `margin`. An exchanged pair's margin has the other sign.
    """
    if by == "margin":
        return list(pairs), {}
    label = _by_coin(material) if by == "coin" else _by_ranker(material)
    verdicts = [label(pair) for pair in pairs]
    found = [exchanged(pair) if verdict == "exchanged" else pair for pair, verdict in zip(pairs, verdicts, strict=True)]
    names = ("exchanged",) if by == "coin" else ("exchanged", "tied", "unjudged")
    return found, {"own_labels": {name: Counter(verdicts)[name] for name in names}}


def exchanged(pair: PreferencePair) -> PreferencePair:
    """Returns the pair with its two completions in each other's place."""
    return pair.model_copy(
        update={
            "chosen": pair.rejected, "chosen_id": pair.rejected_id, "chosen_origin": pair.rejected_origin,
            "rejected": pair.chosen, "rejected_id": pair.chosen_id, "rejected_origin": pair.chosen_origin,
            "margin": None if pair.margin is None else -pair.margin,
        }
    )  # fmt: skip


def _by_coin(material: Material) -> Callable[[PreferencePair], str]:
    """Returns what says `exchanged` of half of the pairs, by seed, iteration and prompt alone."""

    def label(pair: PreferencePair) -> str:
        seed = derived_seed(material.seed, material.iteration, "bootstrap_labels", pair.prompt_id)
        return "exchanged" if seed % 2 else "kept"

    return label


def _by_ranker(material: Material) -> Callable[[PreferencePair], str]:
    """Returns what says `exchanged` where the ranker scores rejected higher, `tied` or `unjudged` where it decides nothing."""
    scores = {each.completion_id: each.score for row in material.rankings for each in row.candidates if not each.failed}

    def label(pair: PreferencePair) -> str:
        chosen, rejected = scores.get(pair.chosen_id), scores.get(pair.rejected_id)
        if chosen is None or rejected is None:
            return "unjudged"
        # A tie dropped would make fewer steps than the margin's labels do, and none of its two labels is wrong.
        return "tied" if chosen == rejected else "exchanged" if rejected > chosen else "kept"

    return label
