"""The claims of a table, each judged by one test, corrected for how many of them the table tests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from handbook_ext.objectives.metrics import CONFIDENCE, Interval, comparable, compare_scores
from handbook_ext.objectives.paired_tests import holm
from handbook_ext.objectives.power import detectable, p_value, told_in_words
from handbook_ext.recipes.table_files import Claim
from handbook_ext.reports.evaluations import Json
from handbook_ext.reports.tables import Measured, flip_rate_difference

CANNOT = "cannot tell"
VERDICTS = {1: "agrees", 0: CANNOT, -1: "disagrees"}
ALONE = {1: f"{CANNOT} (would hold alone)", -1: f"{CANNOT} (the opposite would hold alone)"}
"""Where the interval takes a side, and the p-value after correction for the table's other claims does not."""
ONE_SEED = "one seed, no verdict"


def judge_claims(claims: Sequence[Claim], rows: Mapping[str, Measured], decoding: str, **bootstrap: Any) -> list[Json]:
    """Returns each claim's statistic with its interval, p-value and verdict, corrected by Holm for the claims that are tested.

    The statistic is the `win_rate` of the better row over the worse, or the `difference` of their shares of flipped labels. The
    verdict is agrees or disagrees where `Interval.side` takes a side and `p_holm` is below the table's level; else cannot tell,
    and whether the claim, or its opposite, would hold alone. One seed has no verdict and no test; two rows that were evaluated by
    different judges or on different prompts have no win rate either. `detectable` is the true difference that 80 of 100 such
    tables would have told (`objectives.power.detectable`, at Holm's first step), `told` the same in words.
    """
    confidence = bootstrap.get("confidence", CONFIDENCE)
    judged = [_measured(claim, rows, decoding, **bootstrap) for claim in claims]
    tested = [each for each in judged if each["seeds"] > 1]
    for each in tested:
        each["p"] = p_value(*statistic_of(each), each["seeds"], confidence)
    for each, corrected in zip(tested, holm([each["p"] for each in tested]), strict=True):
        found, threshold = statistic_of(each)
        # The better row keeps fewer flipped labels, so there a difference below 0 agrees.
        side = found.side(threshold) * (-1 if each["by"] == "flipped labels" else 1)
        smallest = detectable(found, each["seeds"], confidence, tests=len(tested))
        each |= {
            "p_holm": corrected, "tests": len(tested), "detectable": smallest,
            "told": told_in_words(smallest, limit=max(threshold, 1 - threshold)),
            "verdict": ALONE[side] if side and corrected >= 1 - confidence else VERDICTS[side],
        }  # fmt: skip
    return judged


def statistic_of(judged: Json) -> tuple[Interval, float]:
    """Returns the interval that a claim is judged by, and the value that it is held against."""
    return (judged["difference"], 0.0) if judged["by"] == "flipped labels" else (judged["win_rate"], 0.5)


def _measured(claim: Claim, rows: Mapping[str, Measured], decoding: str, **bootstrap: Any) -> Json:
    """Returns a claim with its statistic and the seeds that it is over, 0 where there is none, and the verdict without a test."""
    judged: Json = {"words": claim.words, "by": claim.by, "better": claim.better, "worse": claim.worse}
    better, worse = rows[claim.better], rows[claim.worse]
    if claim.by == "flipped labels":
        difference = flip_rate_difference(better.swapped, worse.swapped, **bootstrap)
        return judged | {"difference": difference, "seeds": len(better.swapped), "verdict": ONE_SEED}
    matched = zip(better.scores[decoding], worse.scores[decoding], strict=True)
    if better.evaluators != worse.evaluators or not all(
        comparable({decoding: ours}, {decoding: theirs}) for ours, theirs in matched
    ):
        verdict = "has no answer: the two are not judged by the same model on the same prompts"
        return judged | {"win_rate": None, "seeds": 0, "verdict": verdict}
    won = compare_scores(better.scores[decoding], worse.scores[decoding], **bootstrap)["win_rate"]
    return judged | {"win_rate": won, "seeds": len(better.scores[decoding]), "verdict": ONE_SEED}
