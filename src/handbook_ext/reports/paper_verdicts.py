"""The verdicts of a filled table: what noise a cell has, whether it can be compared at all, and by which rule."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from statistics import fmean

from handbook_ext.reports.measurements import Filling, Key, Measurement, difference
from handbook_ext.reports.paper_headings import HARNESS, RUN, Column, Judge
from handbook_ext.reports.paper_tables import PaperTable, read_paper_table
from handbook_ext.reports.verdicts import MARGIN, NOT_COMPARABLE, NOT_RUN, Noise, Verdict, verdict_of

POINTS = 9.0  # From 1 to 10.
PERCENT = 100.0
LC, MT_BENCH = "AlpacaEval 2 LC", "MT-Bench average"
"""The columns of which the authors' own two evaluations exist."""
ONE_SEED = "one seed, and no run-to-run variance is published for this measure"


@dataclass(frozen=True)
class Verdicts:
    """The verdicts of a table's cells of ours, and with released checkpoints those of the evaluation and of the training.

    `evaluation` is released less paper under our evaluation; `training` is ours less released, both evaluated by us.
    """

    cells: Mapping[Key, Verdict]
    evaluation: Mapping[Key, Verdict]
    training: Mapping[Key, Verdict]


def judged(table: PaperTable, filling: Filling) -> Verdicts:
    """Returns the verdict of every cell that something of ours stands for."""
    columns = {column.name: column for column in table.heading.columns}
    cells, evaluation, training = {}, {}, {}
    for key in [*filling.ours, *filling.lacks]:
        ours, column = filling.ours.get(key), columns[key[2]]
        cells[key] = against_paper(table, key, ours, filling.model) if ours else Verdict(NOT_RUN, why=filling.lacks[key].reason)
        released = (filling.released or {}).get(key)
        if released is not None:
            evaluation[key] = against_paper(table, key, released, filling.model)
            if ours is not None:
                training[key] = _against_released(ours, released, column, table.grid[key].number)
    return Verdicts(cells, evaluation, training)


def against_paper(table: PaperTable, key: Key, ours: Measurement, model: str | None = None) -> Verdict:
    """Returns the verdict of a value of ours about the paper's cell; `model` is whose value it is, where not the paper's own."""
    column = next(each for each in table.heading.columns if each.name == key[2])
    printed = table.grid[key].number
    if printed is None:
        return Verdict(NOT_COMPARABLE, why="the paper prints no number")
    gap = ours.value - printed
    why = _why_not(table, column, ours, model)
    if why:
        return Verdict(NOT_COMPARABLE, gap, why=why)
    noise = Noise(ours.error or 0.0, paper_error(column, ours), run_to_run_error(column))
    return verdict_of(gap, noise, margin_of(column, printed), ours.confidence)


def paper_error(column: Column, ours: Measurement) -> float:
    """Returns the standard error of the paper's value.

    For length-controlled win rates the one that the leaderboard publishes for Llama-3-8B-Instruct, assumed for every model. For
    all else none is published: it is assumed to be that of one evaluation of ours over its prompts, on the whole prompt set.
    """
    if column.measure == "lc_win_rate":
        error = _published_error()
    else:
        error = (ours.over_prompts or 0.0) * math.sqrt(ours.prompts / ours.of if ours.of else 1.0)
    # A gain is a difference of two of the paper's values; ours has both errors in it already.
    return error * (math.sqrt(2) if column.over is not None and column.measure == "lc_win_rate" else 1.0)


def run_to_run_error(column: Column) -> float:
    """Returns by how much two runs of one recipe differ: the root mean square between SELM's table 1 and its model cards.

    Training, judge and pipeline are in it, whatever of them the authors ran twice. Measured for length-controlled win rates and
    for MT-Bench; assumed equal for other judged measures in percent and on 1 to 10. For what no judge marks (harness, lengths, a
    run's own files) nobody publishes one: 0, and a value of one seed then has no verdict.
    """
    if column.set in (HARNESS, RUN) or column.measure == "length":
        return 0.0
    return pipeline_spread(MT_BENCH if scale_of(column) == POINTS else LC)[0]


@cache
def pipeline_spread(column: str) -> tuple[float, float, float, int]:
    """Returns root mean square, least and greatest absolute difference of SELM's cards and table 1 in a column, and how many.

    The rows of the two are the same model where the same recipe and policy stand for both.
    """
    table, cards = read_paper_table("selm1"), read_paper_table("selm-cards")
    printed = {(stand.recipe, stand.policy): (stand.group, stand.row) for stand in table.heading.stands}
    pairs = [
        (cards.number(stand.group, stand.row, column), table.number(*printed[stand.recipe, stand.policy], column))
        for stand in cards.heading.stands
        if (stand.recipe, stand.policy) in printed
    ]
    gaps = [abs(card - cell) for card, cell in pairs]
    return math.sqrt(fmean(gap**2 for gap in gaps)), min(gaps), max(gaps), len(gaps)


def margin_of(column: Column, printed: float) -> float:
    """Returns how far off a reproduced value may be: MARGIN of the scale, or of the paper's value where the scale has no end."""
    return MARGIN * (scale_of(column) or abs(printed))


def scale_of(column: Column) -> float | None:
    """Returns the length of a column's scale: 9 for 1 to 10, 100 for percent and points; None where it has no end."""
    if column.measure in ("length", "annotation_hours"):
        return None
    return POINTS if column.set == "mtbench" or column.measure == "single" else PERCENT


def rule_in_words(table: PaperTable, filling: Filling) -> list[str]:
    """Returns the lines that say by which rule and assumptions the verdicts of a table with values of ours came about."""
    if not filling.ours and not filling.released:
        return []
    judged_columns = [column for column in table.heading.columns if column.set is not None and run_to_run_error(column)]
    root, least, greatest, count = pipeline_spread(LC)
    lines = [
        f"Verdicts: reproduced, where the interval of the difference lies within {100 * MARGIN:g} % of the scale (5 points of a "
        "percentage, 0.45 of 1 to 10) or, where the scale has no end, of the paper's value; not reproduced, where it does not "
        "and holds no 0; within noise otherwise. The interval adds our error, the paper's, and that from run to run, all as if "
        "independent."
    ]
    if any(column.measure == "lc_win_rate" for column in table.heading.columns):
        lines.append(
            f"The paper's standard error of an LC win rate: {_published_error():g}, published for Llama-3-8B-Instruct and "
            "assumed for every model."
        )
    if any(column.set is not None and column.measure != "lc_win_rate" for column in table.heading.columns):
        lines.append("The paper publishes no standard error of the other columns: that of one evaluation of ours is assumed.")
    if judged_columns:
        marks = pipeline_spread(MT_BENCH)[0]
        lines.append(
            "From run to run (training, judge, pipeline): "
            f"the authors' model cards differ from their table 1 by {least:.1f} to {greatest:.1f} LC points "
            f"for the same {count} models (root mean square {root:.2f}; MT-Bench {marks:.2f}); assumed for the other judged "
            "columns of the same scale."
        )
    single = [key for key, each in filling.ours.items() if one_seed(each)]
    if single:
        lines.append(
            f"One seed ({len(single)} {'cell' if len(single) == 1 else 'cells'}): the interval is over prompts alone. What "
            "another seed would change is borrowed from that run-to-run variance; where there is none, there is no verdict."
        )
    return lines


@cache
def _published_error() -> float:
    """Returns the standard error of an LC win rate that the leaderboard has for Llama-3-8B-Instruct."""
    return read_paper_table("alpaca-eval").number("Quoted models", "Llama-3-8B-Instruct", "standard error of LC")


def _against_released(ours: Measurement, released: Measurement, column: Column, printed: float | None) -> Verdict:
    """Returns the verdict about ours less the released checkpoint's, both evaluated by us: the paper's judge plays no part."""
    gap, error = difference(ours, released)
    if ours.judge != released.judge or ours.decoding != released.decoding:
        return Verdict(NOT_COMPARABLE, gap, why="the released checkpoint was evaluated by another judge or decoding")
    if error is None:
        return Verdict(NOT_COMPARABLE, gap, why="without an interval")
    if one_seed(ours):
        if not run_to_run_error(column):
            return Verdict(NOT_COMPARABLE, gap, why=ONE_SEED)
        error = math.hypot(error, run_to_run_error(column))
    return verdict_of(gap, Noise(error), margin_of(column, printed if printed is not None else released.value), ours.confidence)


def _why_not(table: PaperTable, column: Column, ours: Measurement, model: str | None) -> str:
    """Returns why a value cannot be compared with the paper's, or nothing."""
    if model is not None:
        return f"another model: {model}"
    paper = judge_of(table, column)
    if ours.judge is not None and paper is not None and not paper.is_model(ours.judge.model):
        return f"another judge: {ours.judge.model}, where the paper has {paper.words}"
    if column.measure == "annotation_hours":
        return "another machine"
    if ours.error is None:
        return "no interval"
    return ONE_SEED if one_seed(ours) and not run_to_run_error(column) else ""


def one_seed(ours: Measurement) -> bool:
    """Returns whether a value is of one training of ours: how much another seed's differs is then not in its error."""
    return ours.seeds == 1 and ours.checkpoint is None


def judge_of(table: PaperTable, column: Column) -> Judge | None:
    """Returns who judged a column in the paper, or None."""
    return table.heading.judges.get(str(column.set), table.heading.judges.get("all"))
