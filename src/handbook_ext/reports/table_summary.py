"""A table over finished runs: the files that it is made from, and all its numbers."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from handbook_ext.core.errors import UserError
from handbook_ext.core.kept import iteration_of
from handbook_ext.recipes.table_files import Table
from handbook_ext.reports.claims import judge_claims
from handbook_ext.reports.evaluations import Json
from handbook_ext.reports.row_sources import Source, made_of
from handbook_ext.reports.tables import (
    Measured,
    measure,
    overlap_between_iterations,
    overlap_between_rows,
    summarise_row,
)


@dataclass(frozen=True)
class RowRuns:
    """The runs behind a row of a table: the policy their loop starts from, their last iteration, a folder or kept row a seed."""

    start: str
    last: str
    sources: list[Source]


@dataclass(frozen=True)
class TableNumbers:
    """The numbers of a table: rows and claims as they are shown, and the scores behind each row, by its name.

    `decodings` has that of the claims first. The overlaps are Jaccard similarities of kept offline pairs, {} where the table
    asks for none. `bootstrap` holds resamples and confidence of all intervals. `made` says of each row under each seed on which
    machines and on which day it was made, and whether its run is here; of runs without manifests it says nothing.
    """

    table: Table
    runs: dict[str, RowRuns]
    measured: dict[str, Measured]
    rows: list[Json]
    claims: list[Json]
    decodings: list[str]
    overlap_between_rows: dict[tuple[str, str], float]
    overlap_between_iterations: dict[str, float]
    bootstrap: dict[str, Any]
    made: list[Json] = field(default_factory=list)

    def summary(self) -> Json:
        """Returns what the table's summary.json holds."""
        summary: Json = {"rows": self.rows, "claims": self.claims}
        if self.made:
            summary["made"] = self.made
        if self.table.similarity:
            overlaps = [{"rows": list(names), "jaccard": value} for names, value in self.overlap_between_rows.items()]
            summary["overlap_between_rows"] = overlaps
            summary["overlap_between_iterations"] = self.overlap_between_iterations
        return summary


def table_inputs(table: Table, runs: dict[str, RowRuns]) -> list[Path]:
    """Returns the evaluations and pairs that a table is made from, each once; runs are by the name of their row.

    Rows that were kept have none.
    """
    inputs = []
    for row in table.rows:
        of_row = runs[row.name]
        policy = row.shown(of_row.start, of_row.last)
        # The starting policy trained on no pairs; similarities are of the rows that show their recipe's last iteration.
        own = [iteration_of(policy)] if policy != of_row.start else []
        trained = {*own, *(table.similarity if row.policy is None else [])}
        for folder in (each for each in of_row.sources if isinstance(each, Path)):
            inputs += [folder / of_row.start / "eval.json", folder / policy / "eval.json"]
            inputs += [folder / iteration / "pairs.jsonl" for iteration in sorted(trained)]
    return list(dict.fromkeys(inputs))


def summarise_table(table: Table, runs: dict[str, RowRuns], **bootstrap: Any) -> TableNumbers:
    """Returns the numbers of a table, read from its runs, which are by the name of their row.

    Raises UserError where rows were not decoded alike, or where a run lacks what the table needs.
    """
    measured = {}
    for row in table.rows:
        of_row = runs[row.name]
        measured[row.name] = measure(row, of_row.sources, of_row.start, of_row.last)
    if len({tuple(each.scores) for each in measured.values()}) > 1:
        raise UserError(f"table {table.title}: its rows are not sampled at the same temperatures; give all one `evaluate`")
    rows = [summarise_row(each, **bootstrap) for each in measured.values()]
    # Claims are judged by samples where there are any: greedy answers show one mode of the policy.
    decodings = sorted(rows[0]["decodings"], key=lambda name: name == "greedy")
    claims = judge_claims(table.claims, measured, decodings[0], **bootstrap)
    between_rows, between_iterations = {}, {}
    if table.similarity:
        compared = {row.name: runs[row.name].sources for row in table.rows if row.policy is None}
        between_rows = overlap_between_rows(compared, table.similarity[-1])
        if len(table.similarity) == 2:
            between_iterations = {name: overlap_between_iterations(each, table.similarity) for name, each in compared.items()}
    made = [each for row in table.rows for each in made_by_seed(measured[row.name], runs[row.name])]
    return TableNumbers(table, runs, measured, rows, claims, decodings, between_rows, between_iterations, bootstrap, made)


def made_by_seed(measured: Measured, runs: RowRuns) -> list[Json]:
    """Returns where and when a row was made under each seed; nothing of a run whose manifests do not say."""
    found = []
    for source, evaluator in zip(runs.sources, measured.evaluators, strict=True):
        if (made := made_of(source, runs.start, measured.policy)) is not None:
            about: Json = {"row": measured.row.name, "seed": evaluator.seed, "kept": not isinstance(source, Path)}
            found.append(about | {"machines": made.machines, "date": made.date, "commit": made.code.get("commit")})
    return found
