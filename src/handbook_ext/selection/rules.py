"""Preference pairs from judged candidates: pure functions of records, one per rule of the papers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import TypeVar

from handbook_ext.core.errors import UserError
from handbook_ext.core.records import Candidate, Completion, Messages, OfflinePair, PreferencePair, Ranking, assistant

T = TypeVar("T")


def portion(rows: list[T], index: int, of: int) -> list[T]:
    """Returns the index-th of `of` equal consecutive parts; floor division leaves the last rows unused."""
    size = len(rows) // of
    if size == 0:
        raise UserError(f"data.portions: {len(rows)} rows cannot make {of} portions; lower it or give more rows")
    return rows[index * size : (index + 1) * size]


def dataset_pairs(offline: Iterable[OfflinePair], dropped: Counter[str]) -> list[PreferencePair]:
    """Returns the pairs as the data set labels them (offline DPO, stepwise DPO, SELM's first portion)."""
    return _distinct([_offline(pair, pair.chosen, pair.rejected) for pair in offline], dropped)


def require(row: OfflinePair, need: str) -> None:
    """Raises UserError where a row lacks what a selection needs of the data: `scores` of both answers, or rated `answers`."""
    where = row.source or row.prompt_id
    if need == "scores" and (row.score_chosen is None or row.score_rejected is None):
        raise UserError(
            f"{where}: select.keep_by score_gap needs score_chosen and score_rejected, which this row lacks; use data with "
            "scores, or keep_by: margin"
        )
    if need == "answers" and not row.answers:
        raise UserError(
            f"{where}: select.rule curriculum needs several rated answers per prompt; use data of the form ultrafeedback, or "
            "data.answers: 4 for tiny_world"
        )


def curriculum_pairs(offline: Iterable[OfflinePair], worse: int, dropped: Counter[str]) -> list[PreferencePair]:
    """Returns Curry-DPO's pairs: the best of a prompt's rated answers over the `worse`-th from the worst.

    worse 1, 2, 3 go from the easiest pair (R1, R4) to the hardest (R1, R2), one per iteration (Pattnaik et al. 2024). A pair
    whose labels noise had flipped stays flipped. Raises UserError for data without rated answers.
    """
    pairs = []
    for row in offline:
        require(row, "answers")
        if len(row.answers) <= worse or row.answers[0].score <= row.answers[-worse].score:
            dropped["no worse answer at this place"] += 1
            continue
        best, other = assistant(row.answers[0].text), assistant(row.answers[-worse].text)
        chosen, rejected = (other, best) if row.swapped else (best, other)
        pairs.append(_offline(row, chosen, rejected))
    return _distinct(pairs, dropped)


def gold_over_sample(
    offline: Iterable[OfflinePair], samples: dict[str, list[Completion]], dropped: Counter[str], *, explore: bool
) -> list[PreferencePair]:
    """Returns SPIN's pairs: the golden answer over the policy's own first sample (Chen et al. 2024)."""
    pairs = []
    for row in offline:
        if row.prompt_id not in samples:
            dropped["prompt without completions"] += 1
            continue
        sample = assistant(samples[row.prompt_id][0].text)
        pair = _offline(row, row.chosen, sample)
        pairs.append(pair.model_copy(update={"rejected_origin": "on_policy", "explore": sample if explore else None}))
    return _distinct(pairs, dropped)


def skip_explored_chosen(pairs: Iterable[PreferencePair]) -> list[PreferencePair]:
    """Returns the pairs, without the explored sample where it is chosen: there the exploration term works against the loss."""
    return [pair.model_copy(update={"explore": None}) if pair.explore == pair.chosen else pair for pair in pairs]


def judged_pairs(
    rankings: Iterable[Ranking], offline: dict[str, OfflinePair], dropped: Counter[str], *,
    rule: str, explore: bool,
) -> list[PreferencePair]:  # fmt: skip
    """Returns one pair per ranking by SELM's rule A (best_and_worst) or B (against_chosen).

    `explore` keeps sample 0, the response of the policy that starts the iteration, whether or not it is in the pair.
    """
    choose = {"best_and_worst": best_and_worst, "against_chosen": against_chosen}[rule]
    pairs = []
    for ranking in rankings:
        chosen, rejected = choose(ranking)
        sample = ranking.candidates[0]
        pairs.append(
            PreferencePair(
                prompt_id=ranking.prompt_id, prompt=ranking.prompt,
                chosen=assistant(chosen.text), rejected=assistant(rejected.text),
                explore=assistant(sample.text) if explore else None,
                chosen_origin=chosen.origin, rejected_origin=rejected.origin, margin=None,
                swapped=_still_swapped(ranking, chosen, rejected, offline[ranking.prompt_id]),
            )
        )  # fmt: skip
    return _distinct(pairs, dropped)


def best_and_worst(ranking: Ranking) -> tuple[Candidate, Candidate]:
    """Returns the candidates of best and worst rank; of equal ones the first, so a sample goes before offline texts.

    This is SELM's rule A: argmin and argmax of the ranks of {y, y_w, y_l} (official code). When all tie, or fewer than two
    were judged, both are the same candidate and the pair is dropped later.
    """
    judged = [candidate for candidate in ranking.candidates if not candidate.failed] or ranking.candidates[:1]
    ranks = [candidate.rank for candidate in judged]
    return judged[ranks.index(min(ranks))], judged[ranks.index(max(ranks))]


def against_chosen(ranking: Ranking) -> tuple[Candidate, Candidate]:
    """Returns SELM's rule B: the sample takes the place of y_w where it ranks at least as well, else that of y_l."""
    sample, chosen, rejected = ranking.candidates[0], ranking.candidates[-2], ranking.candidates[-1]
    if sample.failed or chosen.failed:
        return sample, sample  # Nothing was compared; such a pair is dropped and counted.
    return (sample, rejected) if sample.rank <= chosen.rank else (chosen, sample)


def _offline(row: OfflinePair, chosen: Messages, rejected: Messages) -> PreferencePair:
    """Returns a pair of the data's own answers."""
    return PreferencePair(
        prompt_id=row.prompt_id, prompt=row.prompt, chosen=chosen, rejected=rejected, explore=None, chosen_origin="offline",
        rejected_origin="offline", margin=None, swapped=row.swapped,
    )  # fmt: skip


def _still_swapped(ranking: Ranking, chosen: Candidate, rejected: Candidate, offline: OfflinePair) -> bool:
    """Returns whether the pair repeats a label that noise had flipped."""
    labels = [candidate for candidate in ranking.candidates if candidate.origin == "offline"]
    return offline.swapped and [chosen, rejected] == labels and chosen is labels[0]


def _distinct(pairs: list[PreferencePair], dropped: Counter[str]) -> list[PreferencePair]:
    """Returns the pairs whose two texts differ; counts the others."""
    kept = [pair for pair in pairs if pair.chosen != pair.rejected]
    dropped["chosen equals rejected"] += len(pairs) - len(kept)
    return kept
