"""SeRA: which offline pairs to keep, and which pairs of the policy's own samples to add (Ko et al. 2025, Algorithm 1).

The measure of a completion under a policy is its log-ratio to that policy's reference (Eq. 5), or what the objective is made
of; the margin of a pair is the difference of the two measures, constants such as beta left out. Eq. 7 mixes the margins of
two policies. The paper's formulas are reconstructed: no copy of it has them in print.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence

from handbook_ext.core.errors import UserError
from handbook_ext.core.records import Completion, Messages, OfflinePair, PreferencePair, assistant, completion_id, derived_seed
from handbook_ext.objectives.reward_form import RewardForm
from handbook_ext.selection.ensemble import EnsembleTerm
from handbook_ext.selection.log_prob_store import LogProb, ScoreStore
from handbook_ext.selection.rules import require

ImplicitReward = Callable[[str], float]


def top_k_indices(values: Sequence[float], count: int) -> list[int]:
    """Returns the places of the `count` largest values, in the order of the places; of equal values the first ones.

    Raises UserError for a value that is not finite.
    """
    bad = [place for place, value in enumerate(values) if not math.isfinite(value)]
    if bad:
        raise UserError(f"{len(bad)} margins are not finite, the first at pair {bad[0] + 1}; the policy has diverged")
    return sorted(sorted(range(len(values)), key=lambda place: -values[place])[:count])


def counts(pairs: int, keep: float, bootstrap: float) -> tuple[int, int]:
    """Returns K and K~ for N pairs: K = round(keep N); where the two shares add up to 1, K~ = N - K exactly."""
    kept = round(keep * pairs)
    return kept, pairs - kept if math.isclose(keep + bootstrap, 1.0) else round(bootstrap * pairs)


def reward_of(store: ScoreStore, measure: RewardForm, terms: Sequence[EnsembleTerm], hashes: Mapping[str, str]) -> ImplicitReward:
    """Returns the function from a completion's id to its measure, mixed over the terms; `hashes` name the policies."""

    def quality(completion: str) -> float:
        """Returns the weighted measure, in nats or nats per token."""
        total = 0.0
        for term in terms:
            ours = store.of(hashes[term.policy], completion)
            theirs = store.of(hashes[term.reference], completion).total if term.reference else 0.0
            total += term.weight * measure.value(ours.total, theirs, ours.tokens)
        return total

    return quality


def kept_pairs(
    offline: Sequence[OfflinePair], count: int, value: Callable[[OfflinePair], float], dropped: Counter[str], *, margins: bool
) -> tuple[list[PreferencePair], list[float]]:
    """Returns the `count` offline pairs of largest value, in the data's order, and the values of the others.

    Labels are never turned round. `margins` tells whether the value is an implicit reward margin, to be written into
    the pair.
    """
    usable = [pair for pair in offline if pair.chosen != pair.rejected]
    dropped["chosen equals rejected"] += len(offline) - len(usable)
    values = [value(pair) for pair in usable]
    places = top_k_indices(values, count)
    dropped["offline pair not kept"] += len(usable) - len(places)
    kept = [
        PreferencePair(
            prompt_id=usable[place].prompt_id, prompt=usable[place].prompt, chosen=usable[place].chosen,
            rejected=usable[place].rejected, explore=None, chosen_origin="offline", rejected_origin="offline",
            margin=values[place] if margins else None, swapped=usable[place].swapped,
        )
        for place in places
    ]  # fmt: skip
    return kept, [values[place] for place in sorted(set(range(len(values))) - set(places))]


def on_policy_pairs(
    samples: Iterable[Sequence[Completion]], count: int, quality: ImplicitReward, dropped: Counter[str]
) -> tuple[list[PreferencePair], list[float]]:
    """Returns the `count` pairs of largest margin among those of the policy's own samples, and the margins of the others.

    There is one such pair per prompt.
    """
    pairs = [pair for each in samples if (pair := on_policy_pair(each, quality, dropped)) is not None]
    margins = [pair.margin or 0.0 for pair in pairs]
    places = top_k_indices(margins, count)
    dropped["own pair of low margin"] += len(pairs) - len(places)
    return [pairs[place] for place in places], [margins[place] for place in sorted(set(range(len(pairs))) - set(places))]


def selection_value(
    keep_by: str, *, quality: ImplicitReward, under: Mapping[str, LogProb], seed: int, iteration: str
) -> Callable[[OfflinePair], float]:
    """Returns the function that ranks offline pairs: what `select.keep_by` names.

    `under` are log-probs of the policy that starts the iteration, which is the reference of its training. The function
    raises UserError where the data lack the scores that are asked for.
    """

    def value(pair: OfflinePair) -> float:
        """Returns what the pair is ranked by."""
        match keep_by:
            case "margin":
                return quality(_id(pair, pair.chosen)) - quality(_id(pair, pair.rejected))
            case "log_prob":
                return under[_id(pair, pair.chosen)].total - under[_id(pair, pair.rejected)].total
            case "chosen_log_prob":
                return under[_id(pair, pair.chosen)].total
            case "random":
                return derived_seed("keep", seed, iteration, pair.prompt_id) / 2**63
            case "chosen_length":
                return float(len(pair.chosen[-1]["content"].split()) - len(pair.rejected[-1]["content"].split()))
        require(pair, "scores")
        return (pair.score_chosen or 0.0) - (pair.score_rejected or 0.0)

    return value


def on_policy_pair(samples: Sequence[Completion], quality: ImplicitReward, dropped: Counter[str]) -> PreferencePair | None:
    """Returns the pair of largest margin among a prompt's samples: the first of the best over the first of the worst.

    Where samples differ but measure the same, chosen is the first of them and rejected the next. None, counted, where all
    samples are the same text.
    """
    texts = list(dict.fromkeys(sample.text for sample in samples))
    if len(texts) < 2:
        dropped["all samples are equal"] += 1
        return None
    first = samples[0]
    values = [quality(completion_id(first.prompt_id, first.prompt, assistant(text))) for text in texts]
    best = values.index(max(values))
    worst = min((place for place in range(len(texts)) if place != best), key=lambda place: values[place])
    return PreferencePair(
        prompt_id=first.prompt_id, prompt=first.prompt, chosen=assistant(texts[best]), rejected=assistant(texts[worst]),
        explore=None, chosen_origin="on_policy", rejected_origin="on_policy", margin=values[best] - values[worst], swapped=False,
    )  # fmt: skip


def jaccard(ours: set[str], theirs: set[str]) -> float:
    """Returns the size of the intersection over that of the union; 1 for two empty sets."""
    return len(ours & theirs) / len(ours | theirs) if ours | theirs else 1.0


def _id(pair: OfflinePair, completion: Messages) -> str:
    """Returns the completion's id in the score store."""
    return completion_id(pair.prompt_id, pair.prompt, completion)
