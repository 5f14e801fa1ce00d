"""Rules whose chosen completion is the data's own: the labels as they are, Curry-DPO and SPIN."""

from __future__ import annotations

from collections import Counter

from handbook_ext.core.records import PreferencePair
from handbook_ext.selection.material import Material, Selected, SelectOptions, distinct, require


def dataset_pairs(material: Material, options: SelectOptions) -> Selected:
    """Returns the pairs as the data set labels them (offline DPO, stepwise DPO, SELM's first portion)."""
    dropped: Counter[str] = Counter()
    pairs = [PreferencePair.joining(row, row.chosen_answer, row.rejected_answer, swapped=row.swapped) for row in material.offline]
    return Selected(distinct(pairs, dropped), len(material.offline), dropped)


def curriculum_pairs(material: Material, options: SelectOptions) -> Selected:
    """Returns Curry-DPO's pairs: the best of a prompt's rated completions over the `rejected_rank`-th from the worst.

    Ranks 1, 2, 3 go from the easiest pair (R1, R4) to the hardest (R1, R2), one per iteration (Pattnaik et al. 2024). A pair
    whose labels noise had flipped stays flipped. Raises UserError for data without rated completions.
    """
    dropped: Counter[str] = Counter()
    pairs, rank = [], options.rejected_rank
    for row in material.offline:
        require(row, "rated_answers")
        # `answers` are sorted, the best first, so the rank counts from the end. Equal scores are no preference.
        if len(row.answers) <= rank or row.answers[0].score <= row.answers[-rank].score:
            dropped["no completion of this rank"] += 1
            continue
        # Label noise swaps the pair of the row; here the pair is made anew, so the swap is made with it.
        best, other = row.answers[0].answer, row.answers[-rank].answer
        chosen, rejected = (other, best) if row.swapped else (best, other)
        pairs.append(PreferencePair.joining(row, chosen, rejected, swapped=row.swapped))
    return Selected(distinct(pairs, dropped), len(material.offline), dropped)


def gold_over_sample(material: Material, options: SelectOptions) -> Selected:
    """Returns SPIN's pairs: the data's completion over the policy's own first sample (Chen et al. 2024)."""
    dropped: Counter[str] = Counter()
    pairs = []
    for row in material.offline:
        if row.prompt_id not in material.samples:
            dropped["prompt without completions"] += 1
            continue
        # Sample 0 and not the worst: SPIN asks no ranker, every sample of the policy counts as worse than the data.
        sample = material.samples[row.prompt_id][0].answer
        explore = sample if options.explore else None
        pairs.append(PreferencePair.joining(row, row.chosen_answer, sample, explore=explore, swapped=row.swapped))
    return Selected(distinct(pairs, dropped), len(material.offline), dropped)
