"""SELM's two label-update rules: pairs of the candidates that a ranker judged (Zhang et al. 2024, Algorithm 1)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from handbook_ext.core.records import Candidate, OfflinePair, PreferencePair, Ranking
from handbook_ext.selection.material import Material, Selected, SelectOptions, distinct


def best_and_worst_pairs(material: Material, options: SelectOptions) -> Selected:
    """Returns one pair per ranking by rule A: the best over the worst of samples and offline completions."""
    return _pairs(material, options, best_and_worst)


def against_chosen_pairs(material: Material, options: SelectOptions) -> Selected:
    """Returns one pair per ranking by rule B: the sample instead of the offline chosen or rejected completion."""
    return _pairs(material, options, against_chosen)


def best_and_worst(ranking: Ranking) -> tuple[Candidate, Candidate]:
    """Returns the candidates of best and worst rank; of equal ones the first, so a sample goes before offline texts.

    This is SELM's rule A: argmin and argmax of the ranks of {y, y_w, y_l} (official code). When all tie, or fewer than two
    were judged, both are the same candidate and the pair is dropped later.
    """
    # A failed verdict has no rank to compare. Where all failed, one candidate stands for both sides: an identical pair.
    judged = [candidate for candidate in ranking.candidates if not candidate.failed] or ranking.candidates[:1]
    ranks = [candidate.rank for candidate in judged]
    return judged[ranks.index(min(ranks))], judged[ranks.index(max(ranks))]


def against_chosen(ranking: Ranking) -> tuple[Candidate, Candidate]:
    """Returns SELM's rule B: the sample replaces y_w where it ranks at least as well, else y_l."""
    # `Ranking` has the samples first and the offline pair last; the rule is defined for one sample, further ones are not read.
    sample, chosen, rejected = ranking.candidates[0], ranking.candidates[-2], ranking.candidates[-1]
    if sample.failed or chosen.failed:
        return sample, sample  # Nothing was compared; such a pair is dropped and counted.
    return (sample, rejected) if sample.rank <= chosen.rank else (chosen, sample)


def _pairs(material: Material, options: SelectOptions, choose: Callable[[Ranking], tuple[Candidate, Candidate]]) -> Selected:
    """Returns what `choose` makes of each ranking.

    `options.explore` keeps sample 0, the response of the policy that starts the iteration, whether or not it is in the pair.
    """
    dropped = Counter({"prompt without completions": len(material.offline) - len(material.rankings)})
    offline = {row.prompt_id: row for row in material.offline}
    pairs = []
    for ranking in material.rankings:
        chosen, rejected = choose(ranking)
        pairs.append(
            PreferencePair.joining(
                ranking, chosen.answer, rejected.answer, explore=ranking.candidates[0].answer if options.explore else None,
                swapped=_still_swapped(ranking, chosen, rejected, offline[ranking.prompt_id]),
            )
        )  # fmt: skip
    return Selected(distinct(pairs, dropped), len(material.offline), dropped)


def _still_swapped(ranking: Ranking, chosen: Candidate, rejected: Candidate, offline: OfflinePair) -> bool:
    """Returns whether the pair repeats a label that noise had flipped."""
    # Candidates and not texts: a sample equal to an offline completion was judged by the ranker, and repeats no label.
    labels = [candidate for candidate in ranking.candidates if candidate.origin == "offline"]
    return offline.swapped and [chosen, rejected] == labels and chosen is labels[0]
