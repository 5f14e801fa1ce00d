"""SeRA: which offline pairs to keep, and which pairs of the policy's own samples to add (Ko et al. 2025, Algorithm 1).

A pair's margin is the difference of the implicit rewards of its completions (`ensemble`). The formulas are reconstructed from
the paper's prose and tables, since no public copy prints them.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from statistics import fmean

from handbook_ext.core.errors import UserError
from handbook_ext.core.records import Completion, OfflinePair, PreferencePair
from handbook_ext.selection.keep_by import KEEP_BY, KeepBy
from handbook_ext.selection.material import Material, Needs, Selected, SelectOptions
from handbook_ext.selection.own_labels import NEEDS, labelled

Margins = list[float]


def sera_needs(options: SelectOptions) -> Needs:
    """Returns what SeRA reads: for kept offline pairs what `keep_by` asks for, for bootstrapped ones the samples' margins.

    Where samples are scored, so are the offline answers from which some are kept: a prompt that is too long for the policy is
    then left out of both. Who labels the own pairs may ask for more.
    """
    kept = KEEP_BY[options.keep_by].needs if options.keep > 0 else Needs()
    bootstraps = options.bootstrap > 0
    labels = NEEDS.get(options.bootstrap_labels, Needs()) if bootstraps else Needs()
    return Needs(
        samples=bootstraps, offline_log_probs=kept.offline_log_probs or (bootstraps and options.keep > 0),
        sample_log_probs=bootstraps, offline_margins=kept.offline_margins, sample_margins=bootstraps,
        data_scores=kept.data_scores, rankings=labels.rankings,
    )  # fmt: skip


def sera_pairs(material: Material, options: SelectOptions) -> Selected:
    """Returns K offline pairs, then K~ pairs of the policy's own samples; all log-probs come from the run's stores."""
    needs, offline = sera_needs(options), material.offline
    dropped: Counter[str] = Counter()
    keep, add = counts(len(offline), options.keep, options.bootstrap)
    samples = material.samples if add else {}
    kept: list[PreferencePair] = []
    dropped_margins: dict[str, Margins] = {}
    if keep:
        scored = [row for row in offline if not needs.offline_log_probs or material.stored.scored(row.chosen_id)]
        dropped["prompt too long"] += len(offline) - len(scored)
        kept, dropped_margins["offline"] = kept_pairs(scored, keep, KEEP_BY[options.keep_by], material, dropped)
    own, dropped_margins["own"] = on_policy_pairs(samples.values(), add, material, dropped)
    margins = _mean_margins({"offline": kept, "own": own}, dropped_margins)
    own, labels = labelled(own, options.bootstrap_labels, material)
    pairs = [*kept, *own]
    if options.explore:
        # Sample 0, as in SELM: one draw of the policy, not one that selection preferred.
        explored = {name: rows[0].answer for name, rows in samples.items()}
        pairs = [pair.exploring(explored.get(pair.prompt_id)) for pair in pairs]
    entries = material.stored.store.entries if needs.log_probs else 0
    facts = {
        "margins": margins, "kept": len(kept), "bootstrapped": len(own), "wanted": [keep, add], "store_entries": entries,
        **labels,
    }  # fmt: skip
    return Selected(pairs, len(offline) * bool(keep) + len(samples), dropped, facts)


def counts(pairs: int, keep: float, bootstrap: float) -> tuple[int, int]:
    """Returns K and K~ for N pairs: K = round(keep N); where the two shares add up to 1, K~ = N - K exactly."""
    # K + K~ = N keeps the number of steps equal to the baselines' (section 4.1); rounding both shares could miss it by one.
    kept = round(keep * pairs)
    return kept, pairs - kept if math.isclose(keep + bootstrap, 1.0) else round(bootstrap * pairs)


def top_k_indices(values: Sequence[float], count: int) -> list[int]:
    """Returns the indices of the `count` largest values, in ascending order; of equal values the first ones.

    Raises UserError for a value that is not finite.
    """
    # nan compares false with everything, so sorting would put such pairs anywhere.
    bad = [index for index, value in enumerate(values) if not math.isfinite(value)]
    if bad:
        raise UserError(f"{len(bad)} margins are not finite, the first at pair {bad[0] + 1}; the policy has diverged")
    # The inner sort is stable, so ties go to the first; the outer one restores the data's order. Ranking alone: the paper has
    # no threshold.
    return sorted(sorted(range(len(values)), key=lambda index: -values[index])[:count])


def kept_pairs(
    offline: Sequence[OfflinePair], count: int, keep_by: KeepBy, material: Material, dropped: Counter[str]
) -> tuple[list[PreferencePair], Margins]:
    """Returns the `count` offline pairs of largest value, in the data's order, and the values of the others.

    Labels are never flipped: SeRA filters noise out (section 3.2), it does not correct it. A value that is an implicit reward
    margin is written into the pair.
    """
    usable = [row for row in offline if row.chosen != row.rejected]
    dropped["chosen equals rejected"] += len(offline) - len(usable)
    values = [keep_by.value(row, material) for row in usable]
    indices = top_k_indices(values, count)
    dropped["offline pair not kept"] += len(usable) - len(indices)
    kept = [
        PreferencePair.joining(
            usable[index], usable[index].chosen_answer, usable[index].rejected_answer, swapped=usable[index].swapped,
            margin=values[index] if keep_by.needs.offline_margins else None,
        )
        for index in indices
    ]  # fmt: skip
    return kept, _others(values, indices)


def on_policy_pairs(
    samples: Iterable[Sequence[Completion]], count: int, material: Material, dropped: Counter[str]
) -> tuple[list[PreferencePair], Margins]:
    """Returns the `count` pairs of largest margin among those of the policy's own samples, and the margins of the others.

    There is one such pair per prompt.
    """
    pairs = [pair for each in samples if (pair := on_policy_pair(each, material, dropped)) is not None]
    margins = [pair.margin or 0.0 for pair in pairs]
    indices = top_k_indices(margins, count)
    dropped["own pair of low margin"] += len(pairs) - len(indices)
    return [pairs[index] for index in indices], _others(margins, indices)


def on_policy_pair(samples: Sequence[Completion], material: Material, dropped: Counter[str]) -> PreferencePair | None:
    """Returns the pair of largest margin among a prompt's samples: the first of the best over the first of the worst.

    Where samples differ but have the same implicit reward, chosen is the first of them and rejected the next. None, counted,
    where all samples are the same text.
    """
    # By id, which equal texts of a prompt share: R distinct responses, as the paper samples them.
    texts = {sample.completion_id: sample.answer for sample in samples}
    if len(texts) < 2:
        dropped["all samples are equal"] += 1
        return None
    answers = list(texts.values())
    rewards = [material.stored.implicit_reward(name) for name in texts]
    # argmax and argmin of the implicit reward, which is the pair of maximal margin (section 3.3).
    best = rewards.index(max(rewards))
    worst = min((index for index in range(len(answers)) if index != best), key=lambda index: rewards[index])
    return PreferencePair.joining(samples[0], answers[best], answers[worst], margin=rewards[best] - rewards[worst])


def jaccard(ours: set[str], theirs: set[str]) -> float:
    """Returns the size of the intersection over that of the union; 1 for two empty sets."""
    return len(ours & theirs) / len(ours | theirs) if ours | theirs else 1.0


def _others(values: Sequence[float], indices: Sequence[int]) -> Margins:
    """Returns the values at all other indices."""
    return [values[index] for index in sorted(set(range(len(values))) - set(indices))]


def _mean_margins(selected: dict[str, list[PreferencePair]], dropped: dict[str, Margins]) -> dict[str, float]:
    """Returns the mean margin of the selected pairs of each origin, and of the dropped ones, where there are margins."""
    margins = {name: [pair.margin for pair in pairs if pair.margin is not None] for name, pairs in selected.items()}
    means = {f"{name}_kept": fmean(values) for name, values in margins.items() if values}
    return means | {f"{name}_dropped": fmean(values) for name, values in dropped.items() if values and f"{name}_kept" in means}
