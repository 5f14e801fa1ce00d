"""Goals that stand for tables: the evaluations that a table needs under each of its seeds, and the command that writes it."""

from __future__ import annotations

from pathlib import Path

from handbook_ext.core.errors import UserError
from handbook_ext.graph.folders import distinct_seeds
from handbook_ext.graph.goals_tuning import TuningPlanner
from handbook_ext.graph.makefile import plain, targets_of
from handbook_ext.graph.measured import RowUnderSeed, row_under_seed, told_of
from handbook_ext.graph.rules_benchmarks import RELEASED, asked_for
from handbook_ext.recipes.names import KEEP, TABLE
from handbook_ext.recipes.table_files import (
    SMALLEST,
    Table,
    TableRow,
    read_table,
    run_of_row,
    table_names,
    table_run,
    written_table,
)

PLANTED_ARMS = ("tiny-sera-truth", "tiny-sera-coin")
LEAST_SEEDS = 4
"""Runs of an arm of which two groups of two can be drawn: one seed has no verdict."""


class TablePlanner(TuningPlanner):
    """Turns the goals of tables into rules."""

    def plan_table(self, goal: str) -> None:
        """Plans a table of MODEL, or all that it has: the evaluations of its rows under each seed, and the table itself."""
        model = self.variables.get("MODEL") or None
        if goal == "tables":
            names = table_names(self.root, model or SMALLEST)
            for name in names:
                self.plan_table(f"{TABLE}{name}")
            self.plan.goal(goal, [f"{TABLE}{name}" for name in names])
            return
        name = goal.removeprefix(TABLE)
        table = read_table(name, self.root, model)
        if self.auto:
            for row in table.rows:
                run_of_row(row, name, 1, self.root, engines=self.begun_with, **self.launch)
            report = Path(self.folder, table_run(name, model), "report")
            self.add_seeds(goal, str(report), written_table(name, self.root).until)
            return
        units = {row.name: self._under_seeds(name, table, row) for row in table.rows}
        # Answers to prompt sets, and grades of them, are not kept.
        self.plan.notes += told_of(goal, units) if not table.sets else []
        absent = [each for row in units.values() for each in row if table.sets or each.measured is None]
        self.plan.wanted.setdefault(goal, {})
        needed = [file for each in absent for file in self._files_of(goal, table, each)]
        seeds = " ".join(map(str, self.seeds))
        of_model = f" --model {plain(model)}" if model is not None else ""
        commands = [f"$(PYTHON) scripts/write_table.py {name}{of_model} --seeds {seeds} --runs {self.folder}"]
        # Where prompt sets were evaluated on, the paper's own table is filled as well.
        beside = f"{of_model}{' --checkpoints released' if self.released else ''} --runs {self.folder}"
        printed = dict.fromkeys(row.printed.table for row in table.rows if row.printed is not None and table.sets)
        commands += [f"@$(PYTHON) scripts/paper_table.py {plain(each)}{beside}" for each in printed]
        self.plan.goal(goal, needed, *commands, share=True)

    def _under_seeds(self, name: str, table: Table, row: TableRow) -> list[RowUnderSeed]:
        """Returns a row under each seed."""
        runs = [run_of_row(row, name, seed, self.root, engines=self.begun_with, **self.launch) for seed in self.seeds]
        return [row_under_seed(table, row, run, Path(self.folder)) for run in distinct_seeds(runs)]

    def _files_of(self, goal: str, table: Table, unit: RowUnderSeed) -> list[str]:
        """Plans the run of a row under a seed; returns the files that the table waits for."""
        known = unit.run.settings.benchmarks.released if self.released and table.sets else ()
        run = self.plan.add(asked_for(unit.run, table.sets, released=bool(known)))
        files = []
        for policy in (run.start, unit.policy):
            artifacts = [f"{policy}/eval.json", *(f"{policy}/{chosen}/eval.json" for chosen in table.sets)]
            if policy in known:
                artifacts += [f"{RELEASED}{policy}/{chosen}/eval.json" for chosen in table.sets]
            for artifact in artifacts:
                self.plan.want(goal, run, artifact)
                files += [f"{self.folder_of(run)}/{each}" for each in targets_of(artifact)]
        return files

    def plan_keep(self, goal: str) -> None:
        """Plans to keep what tables read of their finished runs; no stage starts for it."""
        model = self.variables.get("MODEL") or None
        asked = goal.removeprefix(KEEP)
        names = table_names(self.root, model or SMALLEST) if asked == "tables" else [asked.removeprefix(TABLE)]
        for name in names:
            table = read_table(name, self.root, model)
            if table.sets:
                raise UserError(
                    f"{goal}: the rows of {name} are answers to {', '.join(table.sets)}, of which nothing is kept; "
                    "make <run>-submit packs such a run without its weights"
                )
            for row in table.rows:
                distinct_seeds([run_of_row(row, name, seed, self.root, engines=self.begun_with) for seed in self.seeds])
        words = [*map(plain, names), *(["--model", plain(model)] if model is not None else [])]
        seeds = " ".join(map(str, self.seeds))
        command = f"@$(PYTHON) scripts/keep_rows.py {' '.join(words)} --seeds {seeds} --runs {self.folder}"
        self.plan.goal(goal, [], command)

    def plan_planted(self, goal: str) -> None:
        """Plans two arms of SEEDS runs each, no seed in both, the better recipe first, and whether verdicts tell them apart.

        The seeds alternate, so that more of them go on from what is there. Each is in the run's name, the recipe's own too.
        """
        arms = self.variables.get("OF", "").split() or [*PLANTED_ARMS]
        if len(arms) != 2 or len(self.seeds) < LEAST_SEEDS:
            told = f'OF="{" ".join(arms)}" SEEDS={len(self.seeds)}'
            raise UserError(f"{goal}: OF names two recipes, the better one first, and SEEDS is {LEAST_SEEDS} or more, not {told}")
        words, needed = [], []
        for side, recipe in enumerate(arms):
            runs = [self.run(f"{recipe}-seed{2 * seed - 1 + side}") for seed in self.seeds]
            for run in runs:
                for artifact in (f"{policy}/eval.json" for policy in (run.start, run.iterations[-1].name)):
                    self.plan.want(goal, run, artifact)
                    needed += [f"{self.folder_of(run)}/{each}" for each in targets_of(artifact)]
            words += [f"--{('better', 'worse')[side]}", *(plain(self.folder_of(run)) for run in runs)]
        command = f"@$(PYTHON) scripts/measure_planted.py {' '.join(words)} --out {Path(self.folder, goal)}"
        self.plan.goal(goal, needed, command, share=True)
