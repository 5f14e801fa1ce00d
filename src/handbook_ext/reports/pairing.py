"""Two runs on the same prompts: whose last policies compare, on which of them, and the paired test of one against the other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from handbook_ext.objectives.metrics import Interval, Scores, compare_scores, outcomes, share_prompts
from handbook_ext.objectives.paired_tests import holm, win_rate_test
from handbook_ext.objectives.power import detectable, told_in_words
from handbook_ext.reports.evaluations import Json, read_json
from handbook_ext.reports.run_report import FinishedRun
from handbook_ext.reports.verdict import percent

Matched = tuple[dict[str, Scores], dict[str, Scores]]
"""The scores of two policies by decoding, on the same prompts."""


@dataclass(frozen=True)
class Compared:
    """A run of the page, or the seeds of one: what it is called, and its finished runs."""

    label: str
    runs: list[FinishedRun]

    @property
    def last(self) -> str:
        """Returns the last policy that every seed has."""
        return [name for name in self.runs[0].policies if all(name in run.policies for run in self.runs)][-1]


def same_seeds(ours: Compared, theirs: Compared) -> list[tuple[FinishedRun, FinishedRun]]:
    """Returns the runs of two sides that are compared with each other: those of equal seeds."""
    seeds = [(our, their) for our in ours.runs for their in theirs.runs if our.seed == their.seed]
    # Two single runs of different seeds are still judged on the same prompts, where the data do not depend on the seed.
    if not seeds and len(ours.runs) == len(theirs.runs) == 1:
        return [(ours.runs[0], theirs.runs[0])]
    return seeds


def matched_seeds(ours: Compared, theirs: Compared) -> tuple[list[Matched], str]:
    """Returns the last policies' scores on the prompts that both have, seed by seed; or why nothing can be matched."""
    seeds = same_seeds(ours, theirs)
    if not seeds:
        return [], "they share no seed"
    judged = [(our, their) for our, their in seeds if (our.ranker, our.ranker_id) == (their.ranker, their.ranker_id)]
    if not judged:
        our, their = seeds[0]
        judges = (f"{run.ranker} {run.ranker_id}".strip() for run in (our, their))
        return [], f"one is judged by {next(judges)}, the other by {next(judges)}, whose rewards do not compare"
    matched = [on_shared_prompts(our, ours.last, their, theirs.last) for our, their in judged]
    found = [each for each in matched if each is not None]
    return (found, "") if found else ([], "they share no held-out prompt")


def on_shared_prompts(our: FinishedRun, our_policy: str, their: FinishedRun, their_policy: str) -> Matched | None:
    """Returns the scores of two policies on the prompts of which both have a verdict; None where they share no such prompt."""
    asked = [prompts_of(our.folder / our_policy), prompts_of(their.folder / their_policy)]
    ours, theirs = {}, {}
    for decoding, one in our.policies[our_policy].items():
        other = their.policies[their_policy].get(decoding)
        if other is None or other.temperature != one.temperature:
            continue
        # An id alone is not enough: data that were numbered anew have the old ids on other prompts.
        shared = {
            name for name in {*one.prompt_ids} & {*other.prompt_ids} if asked[0].get(name) == asked[1].get(name)
        }  # fmt: skip
        if shared:
            ours[decoding], theirs[decoding] = restricted(one, shared), restricted(other, shared)
    return (ours, theirs) if ours else None


def restricted(scores: Scores, prompt_ids: set[str]) -> Scores:
    """Returns the scores of some prompts, in their order."""
    kept = np.array([name in prompt_ids for name in scores.prompt_ids])
    names = tuple(name for name in scores.prompt_ids if name in prompt_ids)
    return Scores(names, scores.rewards[kept], scores.tokens[kept], scores.temperature)


def prompts_of(folder: Path) -> dict[str, str]:
    """Returns the text of each held-out prompt of an evaluation by id, as far as it holds them."""
    decodings = read_json(folder / "eval.json")["decodings"].values()
    return {str(row["prompt_id"]): str(row["prompt"]) for each in decodings for row in each["rows"] if "prompt" in row}


def paired(pairs: Sequence[tuple[Scores, Scores]], **bootstrap: Any) -> Json:
    """Returns win rate and gain of the first over the second with intervals, over seeds, and the p-value of the win rate."""
    ours, theirs = [our for our, _ in pairs], [their for _, their in pairs]
    crossed = share_prompts(ours)
    won = [outcomes(our.rewards, their.rewards) for our, their in pairs]
    return {
        "prompts": [len(our.prompt_ids) for our in ours], "seeds": len(pairs),
        **compare_scores(ours, theirs, **bootstrap), "p": win_rate_test(won, crossed=crossed),
    }  # fmt: skip


def correct(family: Sequence[Json], confidence: float, verbs: tuple[str, str] = ("beats", "falls behind")) -> None:
    """Adds to each test of a family its p-value after Holm's correction, and what follows from it in words and as 1, 0, -1.

    `detectable` is the distance from a win rate of one half that as many seeds tell in 80 of 100 cases, None of one seed.
    """
    for test, corrected in zip(family, holm([each["p"] for each in family]), strict=True):
        smallest = detectable(test["win_rate"], test["seeds"], confidence, tests=len(family))
        test |= {"p_holm": corrected, "tests": len(family), "detectable": smallest}
        test["words"], test["side"] = words_of(test, 1 - confidence, verbs)


def words_of(test: Json, level: float, verbs: tuple[str, str]) -> tuple[str, int]:
    """Returns a test in words, and 1, -1 or 0: better, worse, or not told apart.

    Interval and corrected p-value must both say so, the interval over prompts and seeds. One seed each has no verdict: its
    p-value is about these two policies, and another seed trains others.
    """
    won: Interval = test["win_rate"]
    p = f"p = {test['p_holm']:.2g}" + (f" after Holm's correction for {test['tests']} tests" if test["tests"] > 1 else "")
    share = f"wins {percent(won)} of prompts, {p}"
    if won.seeds is None:
        return f"{test['ours']} against {test['theirs']}, one seed each and so no verdict: {share}", 0
    power = told_in_words(test["detectable"], "comparisons")
    share += f"; {power}" if power else ""
    side = won.side(0.5) if test["p_holm"] < level else 0
    if side:
        return f"{test['ours']} {verbs[side < 0]} {test['theirs']}: {share}", side
    alone = " (one test alone would tell them)" if won.side(0.5) and test["p"] < level else ""
    return f"{test['ours']} and {test['theirs']} cannot be told apart{alone}: the first {share}", 0
