"""Which rows of a table need no run: they were measured under equal settings and kept, and the run is not here."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from handbook_ext.core.kept import iteration_of
from handbook_ext.core.stage_settings import differences, identity, shortened
from handbook_ext.graph.makefile import begun_with
from handbook_ext.graph.rule import StageRule, whole_of
from handbook_ext.graph.run_rules import run_rules
from handbook_ext.graph.why import states
from handbook_ext.recipes.measured_rows import MeasuredRow, measured_file, read_measured
from handbook_ext.recipes.names import RECIPES
from handbook_ext.recipes.run import Run
from handbook_ext.recipes.table_files import Table, TableRow, policy_of_row, run_of_row


@dataclass(frozen=True)
class RowUnderSeed:
    """A row of a table under one seed: its run, the policy that it shows, and the iterations whose pairs the table reads.

    Of those in `compared` it reads which pairs these are as well. `folder` is that of the run, `implicit` tells whether a
    picture of the table shows its implicit rewards.
    """

    run: Run
    policy: str
    iterations: tuple[str, ...]
    compared: tuple[str, ...]
    folder: Path
    implicit: bool = False

    @property
    def file(self) -> Path:
        """Returns where the row is kept."""
        return measured_file(self.run.file.parent, self.run.name, self.policy)

    @cached_property
    def rules(self) -> list[StageRule]:
        """Returns the stages that determine what the table reads, in their order; the last are the evaluations."""
        rules = run_rules(self.run)
        needed = {f"{self.run.start}/eval.json", f"{self.policy}/eval.json"}
        for rule in reversed(rules):
            if rule.artifact in needed:
                needed |= {whole_of(each) for each in rule.inputs}
        return [rule for rule in rules if rule.artifact in needed]

    @cached_property
    def settings(self) -> dict[str, dict[str, object]]:
        """Returns the settings that determine these stages, by artifact; neither recipe nor run are named in them."""
        return {rule.artifact: identity(rule.settings.model_dump(mode="json")) for rule in self.rules}

    @property
    def outside(self) -> list[Path]:
        """Returns the files outside the run that its stages read: of what they held, settings say nothing."""
        return [path for rule in self.rules for path in rule.external]

    @cached_property
    def lacking(self) -> list[str]:
        """Returns the artifacts that the run's folder lacks, or has of other settings or inputs, in the order of the stages."""
        if not self.folder.is_dir():
            return [rule.artifact for rule in self.rules]
        wanted = {rule.artifact for rule in self.rules}
        return [each.artifact for each in states(run_rules(self.run), self.folder) if each.artifact in wanted and each.why]

    @cached_property
    def kept(self) -> MeasuredRow | None:
        """Returns the row as it was kept, whatever the settings; raises UserError for one that was changed since."""
        return None if self.outside else read_measured(self.file)

    @cached_property
    def stale(self) -> str | None:
        """Returns why the row that was kept is not this one; None where it is, or where none was kept."""
        if self.kept is None:
            return None
        before = self.kept.settings
        for artifact in {**self.settings, **before}:
            if changed := differences(before.get(artifact, {}), self.settings.get(artifact, {})):
                name, old, new = changed[0]
                return f"measured under other settings: {artifact}: {name} {shortened(new)}, was {shortened(old)}"
        pairs = self.kept.pairs
        missing = [
            each for each in self.iterations if each not in pairs or (each in self.compared and pairs[each].offline is None)
        ]
        if missing:
            return f"kept without the pairs of {', '.join(missing)}, which this table reads"
        if self.implicit and self.kept.policies[self.policy].log_ratios is None:
            return "kept without its implicit rewards, which this table draws"
        return None

    @property
    def measured(self) -> MeasuredRow | None:
        """Returns the kept row where it stands for the run: equal settings, and a run that is not all here."""
        return self.kept if self.kept is not None and self.stale is None and self.lacking else None


def row_under_seed(table: Table, row: TableRow, run: Run, runs: Path) -> RowUnderSeed:
    """Returns a row of a table under the seed of a run; runs: the folder of all runs."""
    policy = policy_of_row(row, run)
    # The starting policy trained on no pairs; similarities are of the rows that show their recipe's last iteration.
    own = {iteration_of(policy)} if policy != run.start else set()
    compared = {*table.similarity} if row.policy is None else set()
    if any(claim.by == "flipped labels" and row.name in (claim.better, claim.worse) for claim in table.claims):
        compared |= own
    trained, of_picture = tuple(sorted(own | compared)), row.name in table.differences
    return RowUnderSeed(run, policy, trained, tuple(sorted(compared)), runs / run.name, of_picture)


def told_of(goal: str, rows: Mapping[str, Sequence[RowUnderSeed]]) -> list[str]:
    """Returns a line on how many rows of a table need no run, and one for each reason why some that were kept do not stand."""
    lines = []
    for row, units in rows.items():
        stale = [each.stale for each in units if each.stale is not None and each.lacking]
        lines += [f"row '{row}': {reason}; {stale.count(reason)} of its runs made anew" for reason in dict.fromkeys(stale)]
    whole = [each for units in rows.values() for each in units]
    if used := [each.measured for each in whole if each.measured is not None]:
        days = ", ".join(sorted({each.made.date for each in used}))
        lines.append(f"{goal}: kept rows of {days} stand for {len(used)} of its {len(whole)} rows under a seed")
    return lines


def rows_under_seeds(
    table: Table, name: str, seeds: Collection[int], runs: Path, root: Path = RECIPES
) -> dict[str, list[RowUnderSeed]]:
    """Returns each row of a table under each seed, by the row's name; 1 is a recipe's own seed."""

    def engines(run: str) -> str | None:
        """Returns what a run has begun to sample with."""
        return begun_with(runs / run)

    return {
        row.name: [row_under_seed(table, row, run_of_row(row, name, seed, root, engines=engines), runs) for seed in seeds]
        for row in table.rows
    }
