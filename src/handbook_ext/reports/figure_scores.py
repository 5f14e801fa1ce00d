"""What a policy is scored by in a figure: a prompt set's measure where it was evaluated, else the loop's own evaluation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from handbook_ext.objectives.metrics import Interval
from handbook_ext.reports.figure_rows import FigureRow
from handbook_ext.reports.figure_sources import Sources

LOOP = "win rate against the start (%)"
NORMAL = 1.96  # Standard errors of a 95 % interval.
Points = Sequence[tuple[FigureRow, str]]


@dataclass(frozen=True)
class SetScore:
    """A measure of a prompt set, such as alpaca's lc_win_rate, and what an axis calls it."""

    set: str
    measure: str
    words: str

    @property
    def file(self) -> str:
        """The file that holds it, from a policy's folder."""
        return f"{self.set}/eval.json"


ALPACA_LC = SetScore("alpaca", "lc_win_rate", "AlpacaEval 2 LC win rate (%)")
ALPACA_VS_SFT = SetScore("alpaca", "vs_start", "AlpacaEval, win rate against SFT (%)")
MT_BENCH = SetScore("mtbench", "average", "MT-Bench score (1-10)")


@dataclass(frozen=True)
class Scored:
    """How the policies of a figure are scored: the words for an axis, a sentence for the caption, and the score of each."""

    words: str
    said: str
    of: Callable[[FigureRow, str], Interval | None]

    @property
    def level(self) -> float | None:
        """Where two equal policies stand, None for a score that compares nothing."""
        return 50.0 if "against" in self.words else None


def scored(sources: Sources, points: Points, wanted: SetScore) -> Scored:
    """Returns the set's measure where every policy that has been evaluated has it, else the win rate against its own start."""
    evaluated = [(row, policy) for row, policy in points if sources.files(row, policy)]
    if evaluated and all(of_set(sources, row, policy, wanted) is not None for row, policy in evaluated):
        return Scored(wanted.words, "", lambda row, policy: of_set(sources, row, policy, wanted))
    said = (
        "Scores are win rates against the policy that starts the loop, by the run's own ranker on held-out prompts: "
        f"{wanted.words} takes their place once every policy here has {wanted.file} (make <run>-eval SETS={wanted.set})."
    )
    return Scored(LOOP, said, lambda row, policy: percent(sources.win_rate(row, policy)))


def of_set(sources: Sources, row: FigureRow, policy: str, wanted: SetScore) -> Interval | None:
    """Returns a measure of a prompt set, a mean over the seeds that have it, with its 95 % interval; None where none has it.

    The interval is the normal one, of the measure's standard errors or of the spread of the seeds, whichever is wider.
    """
    found = []
    for path in (folder / policy / wanted.file for folder in row.folders.values()):
        measure = sources.set_evaluation(path).measures.get(wanted.measure) if path.is_file() else None
        if measure is not None and measure.value is not None:
            found.append((measure.value, measure.standard_error or 0.0))
    if not found:
        return None
    count, value = len(found), fmean(each for each, _ in found)
    spread = stdev(each for each, _ in found) if count > 1 else 0.0
    half = NORMAL * max(sum(error**2 for _, error in found) ** 0.5 / count, spread / count**0.5)
    return Interval(value, value - half, value + half)


def percent(interval: Interval | None) -> Interval | None:
    """Returns an interval of shares in %."""
    if interval is None:
        return None
    seeds = None if interval.seeds is None else 100 * interval.seeds
    return Interval(*(100 * each for each in (interval.value, interval.low, interval.high)), seeds)
