"""Whether verdicts can tell: a planted difference must be found, and two groups of equal runs must not be told apart.

Two arms of many seeds, none in both, since equal recipes under equal seeds make equal artifacts. From them small tables are
drawn, as a real one would be: a few seeds of either side, all their held-out prompts. A real table has the same seeds on both
sides, so that its two policies of a seed come from one SFT policy and answer the same prompts. Here each seed of one side stands
beside a random seed of the other, and prompt by prompt at random, and then the project's own verdict is asked:

- Of two groups of equal runs this pairing is exact: neither side is favoured, so whatever is told is told falsely. It is what
  the verdict assumes of its seeds under no difference (differences of seeds independent, symmetric about none).
- Of the planted difference it is the harder question. What a real table's pairing cancels, the luck of an SFT policy and of the
  prompts, stays in the difference here; where policies from one start are more alike than any two, as they should be, a real
  table tells such a difference more often. `gains` takes away the own SFT policy's reward, prompt by prompt, which is the part
  of its luck that can be taken away without a common one; at the price of that policy's noise.

`welch` is no verdict of the project's: it is the test that the design itself asks for, of two independent samples of seeds, and
shows what there is to be told. Seeds are drawn without replacement, as a table never has one twice. Of two groups of one arm the
difference of means then varies as that of new seeds would; of one group from each arm by a quarter less (5 of 20 seeds).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from handbook_ext.objectives.metrics import CONFIDENCE, RESAMPLES, Scores, outcomes
from handbook_ext.recipes.table_rows import Claim, TableRow
from handbook_ext.reports.claims import ALONE, ONE_SEED, VERDICTS, judge_claims
from handbook_ext.reports.evaluations import Evaluator, Json
from handbook_ext.reports.pairing import correct, paired
from handbook_ext.reports.tables import Measured

TOLD, CONFUSED = 0.9, 0.07
"""The least share of tables that must tell the planted difference, and the largest that may tell equal runs apart."""
PLANTED, EQUAL = "planted", ("equal, better arm", "equal, worse arm")
QUESTIONS = (PLANTED, *EQUAL)
WAYS = {
    "claim": "claim of a table",
    "test": "test of a comparison",
    "claim of gains": "claim of a table, of gains over the own SFT policy",
    "test of gains": "test of a comparison, of gains over the own SFT policy",
    "welch": "Welch's test over seeds, of win rates over the own SFT policy",
}
"""The ways in which a difference is told; the requirements are held against the first."""


@dataclass(frozen=True)
class Design:
    """How many tables are drawn, of how many seeds a side and prompts a seed, by which draw, and the bootstrap of each."""

    tables: int = 1000
    seeds: int = 5
    prompts: int = 300
    seed: int = 0
    resamples: int = RESAMPLES
    confidence: float = CONFIDENCE

    @property
    def bootstrap(self) -> dict[str, Any]:
        """Returns what the verdicts' intervals are made with."""
        return {"resamples": self.resamples, "confidence": self.confidence}


def shipped_verdicts(ours: Measured, theirs: Measured, decoding: str, **bootstrap: Any) -> dict[str, int]:
    """Returns what a table's claim and a comparison's test say of ours against theirs: 1 better, -1 worse, 0 cannot tell.

    The two are rows as tables measure them, of at least two seeds. This function alone knows how verdicts are asked for.
    """
    # What would hold alone is not told.
    sides = {word: side for side, word in VERDICTS.items()} | {ONE_SEED: 0} | dict.fromkeys(ALONE.values(), 0)
    claim = Claim(better="ours", worse="theirs", words="ours is better")
    (judged,) = judge_claims([claim], {"ours": ours, "theirs": theirs}, decoding, **bootstrap)
    pairs = list(zip(ours.scores[decoding], theirs.scores[decoding], strict=True))
    test = {"ours": "ours", "theirs": "theirs"} | paired(pairs, **bootstrap)
    correct([test], bootstrap["confidence"])
    return {"claim": sides[judged["verdict"]], "test": test["side"]}


def welch(ours: Measured, theirs: Measured, decoding: str, confidence: float) -> int:
    """Returns 1, -1 or 0 by Welch's test between the seeds' win rates over the policy that each started from."""
    first, second = (_rates(one, decoding) for one in (ours, theirs))
    moments = [number for each in (first, second) for number in (each.mean(), each.std(ddof=1), each.size)]
    found = stats.ttest_ind_from_stats(*moments, equal_var=False)
    return int(np.sign(found.statistic)) if found.pvalue < 1 - confidence else 0


def gains(measured: Measured, decoding: str) -> Measured:
    """Returns the row with the rewards of its policy less those of the policy that it started from, prompt by prompt."""
    pairs = zip(measured.scores[decoding], measured.initial_scores[decoding], strict=True)
    return replace(measured, scores={decoding: [replace(one, rewards=one.rewards - first.rewards) for one, first in pairs]})


def drawn(arm: Measured, seeds: NDArray[np.int64], decoding: str, prompts: int, rng: np.random.Generator) -> Measured:
    """Returns a row of some seeds of an arm, each with `prompts` of its own prompts in a random order.

    Seeds and prompts are renamed by their place, so that they pair with those at the same place of another row.
    """
    scores, initial = [], []
    for place, seed in enumerate(seeds):
        picks = rng.permutation(len(arm.scores[decoding][seed].prompt_ids))[:prompts]
        names = tuple(f"{place}.{number}" for number in range(prompts))
        for to, one in ((scores, arm.scores[decoding][seed]), (initial, arm.initial_scores[decoding][seed])):
            to.append(Scores(names, one.rewards[picks], one.tokens[picks], one.temperature))
    judge = arm.evaluators[0]
    evaluators = [Evaluator(place, judge.ranker, judge.ranker_id) for place in range(len(seeds))]
    row = TableRow(name=arm.row.name, recipe=arm.row.recipe)
    return Measured(row, arm.policy, {decoding: scores}, {decoding: initial}, {}, evaluators, [])


def resampled(
    better: Measured, worse: Measured, decoding: str, design: Design, tick: Callable[[], object] = lambda: None
) -> dict[str, dict[str, Counter[int]]]:
    """Returns by question and way how many of the drawn tables said 1, 0 and -1 of the first side; `tick` after each table.

    Raises ValueError where an arm has fewer than two tables' seeds, or a seed fewer prompts than the design asks for.
    """
    for arm in (better, worse):
        sizes = [len(one.prompt_ids) for one in arm.scores[decoding]]
        if len(sizes) < 2 * design.seeds or min(sizes) < design.prompts:
            raise ValueError(f"{arm.row.name} has {len(sizes)} seeds with {min(sizes)} prompts or more, too few for {design}")
    rng = np.random.default_rng(design.seed)
    counts: dict[str, dict[str, Counter[int]]] = {question: {way: Counter() for way in WAYS} for question in QUESTIONS}
    sides = {PLANTED: (better, worse), EQUAL[0]: (better, better), EQUAL[1]: (worse, worse)}
    for _ in range(design.tables):
        for question, (ours, theirs) in sides.items():
            first, second = (rng.permutation(len(each.scores[decoding])) for each in (ours, theirs))
            # Equal runs are two groups of one arm: the second group are the seeds that follow the first in one order.
            rest = first[design.seeds :] if ours is theirs else second
            rows = [drawn(arm, seeds[: design.seeds], decoding, design.prompts, rng)
                    for arm, seeds in ((ours, first), (theirs, rest))]  # fmt: skip
            for way, side in _told(*rows, decoding, design).items():
                counts[question][way][side] += 1
        tick()
    return counts


def _told(ours: Measured, theirs: Measured, decoding: str, design: Design) -> dict[str, int]:
    """Returns what each way says of a drawn table."""
    told = shipped_verdicts(ours, theirs, decoding, **design.bootstrap)
    of_gains = shipped_verdicts(gains(ours, decoding), gains(theirs, decoding), decoding, **design.bootstrap)
    told |= {f"{way} of gains": side for way, side in of_gains.items()}
    return told | {"welch": welch(ours, theirs, decoding, design.confidence)}


def summary_of(counts: dict[str, dict[str, Counter[int]]], confidence: float = CONFIDENCE) -> list[Json]:
    """Returns a row per way and question: how many tables said better, worse and neither, and the share that counts.

    That is the share of better for the planted difference, of either for equal runs, with the exact binomial interval (Clopper
    and Pearson 1934): of the draws alone, since the seeds that they are drawn from stay the same.
    """
    rows = []
    for way in WAYS:
        for question in QUESTIONS:
            found = counts[question][way]
            told, tables = found[1] + (found[-1] if question in EQUAL else 0), found.total()
            interval = stats.binomtest(told, tables).proportion_ci(confidence)
            rows.append({
                "way": way, "question": question, "tables": tables, "better": found[1], "neither": found[0], "worse": found[-1],
                "told": told, "share": told / tables, "low": float(interval.low), "high": float(interval.high),
            })  # fmt: skip
    return rows


def missed(summary: Sequence[Json]) -> list[str]:
    """Returns a sentence for each requirement that the claim of a table does not meet."""
    lines = []
    for row in summary:
        if row["way"] != next(iter(WAYS)):
            continue
        if row["question"] == PLANTED and row["share"] < TOLD:
            lines.append(f"the planted difference is told in {_counted(row)}; at least {TOLD:.0%} must be")
        if row["question"] in EQUAL and row["share"] > CONFUSED:
            lines.append(
                f"runs of the {row['question'].split(', ')[1]} are told apart in {_counted(row)}; at most {CONFUSED:.0%} may be"
            )
    return lines


def page_of(about: Sequence[str], summary: Sequence[Json], design: Design, wrong: Sequence[str] | None) -> str:
    """Returns the page: what was run, a table with a line per way and a column per question, and what was required.

    about: lines on the runs. wrong: the requirements that are not met; None where none are held against these tables.
    """
    head = ["told by", "planted difference: better", "worse", *(f"{question}: told apart" for question in EQUAL)]
    lines = [*about, "", f"| {' | '.join(head)} |", f"|---|{'---:|' * (len(head) - 1)}"]
    for way, words in WAYS.items():
        of = {row["question"]: row for row in summary if row["way"] == way}
        cells = [_counted(of[PLANTED]), f"{of[PLANTED]['worse']:,}", *(_counted(of[question]) for question in EQUAL)]
        lines.append(f"| {words} | {' | '.join(cells)} |")
    held = "; ".join(wrong or ()) or "both are met"
    judged = f"Of the claim of a table at least {TOLD:.0%} and at most {CONFUSED:.0%} are required: {held}."
    size = f"Tables of {design.seeds} seeds a side and {design.prompts} prompts a seed, drawn {design.tables:,} times."
    brackets = "In brackets the exact binomial interval of the draws alone: other seeds would give other shares."
    asked = judged if wrong is not None else "Smaller than real tables, so nothing is required of them."
    lines += ["", f"{size} {brackets} {asked}"]
    return "\n".join(lines) + "\n"


def _counted(row: Json) -> str:
    """Returns how many tables told, in words."""
    return f"{row['told']:,} of {row['tables']:,} ({100 * row['share']:.1f} % [{100 * row['low']:.1f}, {100 * row['high']:.1f}])"


def _rates(measured: Measured, decoding: str) -> NDArray[np.float64]:
    """Returns the win rate of each seed over the policy that it started from, (seeds,)."""
    pairs = zip(measured.scores[decoding], measured.initial_scores[decoding], strict=True)
    return np.array([outcomes(one.rewards, first.rewards).mean() for one, first in pairs])
