"""The claims of a paper in our values, each tested once and corrected for their number; and a filled table in one sentence."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from scipy.special import ndtr

from handbook_ext.objectives.paired_tests import holm
from handbook_ext.objectives.power import POWER, detectable_by_error
from handbook_ext.reports.measurements import Filling, difference, normal_interval
from handbook_ext.reports.paper_headings import PaperClaim
from handbook_ext.reports.paper_tables import PaperTable
from handbook_ext.reports.paper_verdicts import Verdicts, one_seed, run_to_run_error
from handbook_ext.reports.verdicts import NOT_RUN, VERDICTS, beats


@dataclass(frozen=True)
class Tested:
    """A claim's difference in ours with its standard error, in the unit of the column; or `why` there is no test of it."""

    gap: float = 0.0
    error: float = 0.0
    confidence: float = 0.0
    borrowed: bool = False
    why: str = ""

    @property
    def p(self) -> float:
        """The two-sided p-value of no difference, of a normal distribution with that error."""
        return 2 * float(ndtr(-abs(self.gap) / self.error)) if self.error else float(self.gap == 0)


def summary_of(table: PaperTable, filling: Filling, verdicts: Verdicts) -> str:
    """Returns a table's verdicts in one sentence: how many cells were run, how they came out, the paper's claims in ours."""
    counts = Counter(each.word for each in verdicts.cells.values())
    total, run = len(verdicts.cells), len(verdicts.cells) - counts[NOT_RUN]
    if not total:
        return "No cell of ours: the rows are quoted alone."
    told = ", ".join(f"{counts[word]} {word}" for word in VERDICTS if counts[word] and word != NOT_RUN)
    parts = [f"{run} of {total} cells were run{f': {told}' if told else ''}", *claims_in_ours(table, filling)]
    return "; ".join(parts) + "."


def stated_claims(table: PaperTable, filling: Filling) -> list[PaperClaim]:
    """Returns the claims about rows that something of ours stands for: of another model's rows nothing of ours is said."""
    return [
        each for each in table.heading.claims if not filling.stands or (each.group, each.better, each.column) in filling.stands
    ]


def claims_in_ours(table: PaperTable, filling: Filling, claims: Sequence[PaperClaim] | None = None) -> list[str]:
    """Returns the claims of the paper with their difference, and what ours says of each, with interval, after Holm's correction.

    claims: by default those that are stated of our rows.
    """
    stated = stated_claims(table, filling) if claims is None else claims
    found = [_tested(table, claim, filling) for claim in stated]
    known = [each for each in found if not each.why]
    corrected = iter(holm([each.p for each in known]))
    lines = []
    for claim, each in zip(stated, found, strict=True):
        better = (claim.group, claim.better, claim.column)
        paper, digits = table.number(*better) - table.number(claim.group, claim.worse, claim.column), table.grid[better].decimals
        said = f"{claim.words}: {paper:+.{digits}f} in the paper, "
        if each.why:
            lines.append(said + each.why)
            continue
        low, high = normal_interval(each.gap, each.error, each.confidence)
        smallest = detectable_by_error(each.error, each.confidence, tests=len(known))
        words = [
            beats(each.gap, each.error, each.confidence, next(corrected)),
            *(["one seed, run-to-run variance borrowed"] if each.borrowed else []),
            f"a difference of {smallest:.{digits}f} would have been told in {100 * POWER:g} of 100 such tables",
        ]
        lines.append(f"{said}{each.gap:+.{digits}f} [{low:+.{digits}f}, {high:+.{digits}f}] in ours ({'; '.join(words)})")
    return lines


def claim_rule(table: PaperTable, filling: Filling) -> list[str]:
    """Returns the line that says how the claims of a table were tested, none where none was."""
    known = [each for each in (_tested(table, claim, filling) for claim in stated_claims(table, filling)) if not each.why]
    if not known:
        return []
    many = f", corrected for the {len(known)} claims with values of ours (Holm)" if len(known) > 1 else ""
    return [
        f"Claims: one test each of a difference of 0, with the errors of both values as if independent{many}. The difference "
        "that would have been told is the true one that a repeat with these errors finds with a probability of 80 %."
    ]


def _tested(table: PaperTable, claim: PaperClaim, filling: Filling) -> Tested:
    """Returns the difference of a claim in ours; of one seed with the run-to-run variance that is borrowed, if there is any."""
    ours, theirs = (filling.ours.get((claim.group, row, claim.column)) for row in (claim.better, claim.worse))
    if ours is None or theirs is None:
        return Tested(why="not run in ours")
    gap, error = difference(ours, theirs)
    shown = f"{gap:+.{table.grid[claim.group, claim.better, claim.column].decimals}f} in ours"
    if error is None:
        return Tested(why=f"{shown}, without an interval")
    column = next(each for each in table.heading.columns if each.name == claim.column)
    single = one_seed(ours) or one_seed(theirs)
    if single and not run_to_run_error(column):
        return Tested(why=f"{shown}, one seed and so no verdict")
    error = math.hypot(error, run_to_run_error(column)) if single else error
    return Tested(gap, error, ours.confidence, single)
