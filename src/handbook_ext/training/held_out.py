"""Pairs that a ranker is not fitted to: who gets which, and how often the ranker, or the longer answer, is right on them."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from handbook_ext.core.records import OfflinePair, content_id, derived_seed

NEAR = 0.1  # Two answers are near-equal in length where their words differ by at most this share of the longer one's.


def split_by_prompt(
    pairs: Sequence[OfflinePair], share: float, *, seed: int, purpose: str
) -> tuple[list[OfflinePair], list[OfflinePair]]:
    """Returns the pairs of the other prompts, and those of `share` of the prompts (rounded), drawn by seed and purpose.

    The pairs of a prompt stay together, by its text, since rows that repeat it have ids of their own; both lists keep the order.
    """
    first: dict[str, str] = {}  # The prompt's text -> the id of the first row that has it.
    names = [first.setdefault(content_id(pair.prompt), pair.prompt_id) for pair in pairs]
    prompts = sorted(set(names), key=lambda name: (derived_seed(seed, purpose, name), name))
    drawn = set(prompts[: round(share * len(prompts))])
    named = list(zip(names, pairs, strict=True))
    return [pair for name, pair in named if name not in drawn], [pair for name, pair in named if name in drawn]


def fitted_and_held_out(
    rows: Sequence[OfflinePair], part: str, share: float, *, seed: int
) -> tuple[list[OfflinePair], list[OfflinePair]]:
    """Returns the pairs that a reward model is fitted to, and those of `share` of its prompts that it is measured on.

    part: `all` rows, or the half of the prompts that `labels` or `judge` has; the two halves share no prompt.
    """
    own = list(rows)
    if part != "all":
        labels, judge = split_by_prompt(rows, 0.5, seed=seed, purpose="judge")
        own = labels if part == "labels" else judge
    return split_by_prompt(own, share, seed=seed, purpose="held out of the ranker")


def agreement(pairs: Sequence[OfflinePair], margins: Sequence[float]) -> dict[str, float | int | None]:
    """Returns the share of pairs whose chosen answer has the higher reward, and the share whose chosen answer is the longer one.

    margins: the reward of chosen less that of rejected. A tie counts 1/2. Both shares once more on the pairs of near-equal
    length, counted in words; None where there are none.
    """
    lengths = [(_words(pair.chosen_answer.text), _words(pair.rejected_answer.text)) for pair in pairs]
    near = [index for index, (ours, theirs) in enumerate(lengths) if abs(ours - theirs) <= NEAR * max(ours, theirs)]
    right = [_won(margin) for margin in margins]
    longer = [_won(ours - theirs) for ours, theirs in lengths]
    return {
        "pairs": len(pairs), "accuracy": _mean(right), "longer": _mean(longer), "near_pairs": len(near),
        "near_accuracy": _mean([right[index] for index in near]), "near_longer": _mean([longer[index] for index in near]),
    }  # fmt: skip


def agreement_line(found: dict[str, float | int | None]) -> str:
    """Returns what `agreement` found in one line, which says so where the ranker is no better than length."""
    words = [
        f"right on {_percent(found[name])} of {found[count]} {what}, the longer answer on {_percent(found[other])}"
        for count, name, other, what in (
            ("pairs", "accuracy", "longer", "held-out pairs"),
            ("near_pairs", "near_accuracy", "near_longer", "of them of near-equal length"),
        )
    ]
    no_better = (found["accuracy"] or 0) <= (found["longer"] or 0)
    return "; ".join(
        [*words, *(["no better than length on the held-out pairs: judge its rankings with care"] if no_better else [])]
    )


def _words(text: str) -> int:
    """Returns the number of words."""
    return len(text.split())


def _won(margin: float) -> float:
    """Returns 1 for a positive margin, 1/2 for none, 0 for a negative one."""
    return float(margin > 0) + 0.5 * (margin == 0)


def _mean(values: Sequence[float]) -> float | None:
    """Returns the mean, None of nothing."""
    return fmean(values) if values else None


def _percent(share: float | int | None) -> str:
    """Returns a share in per cent."""
    return "-" if share is None else f"{100 * share:.1f} %"
