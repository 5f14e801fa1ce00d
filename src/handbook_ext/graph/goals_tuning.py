"""Goals that tune: the trials of a table's methods, then their choice, each in a make of its own.

A trial that diverges must not keep the others from their end, and the choice counts it. So `tune-<table>` calls make for
`tune-<table>-trials`, which goes on where a stage fails, and then lets the choice look at what there is.
"""

from __future__ import annotations

from handbook_ext.core.errors import UserError
from handbook_ext.core.stage_settings import identity
from handbook_ext.graph.makefile import plain, targets_of
from handbook_ext.graph.planner import Planner
from handbook_ext.graph.run_rules import run_rules
from handbook_ext.recipes.names import TRIALS, TUNE
from handbook_ext.recipes.run import Run
from handbook_ext.recipes.table_files import read_table
from handbook_ext.recipes.trials import Method, artifact_of, methods_of

HANDED_ON = ("RUNS", "MODEL", "LAUNCH", "GPUS", "JOBS", "THREADS", "V")


class TuningPlanner(Planner):
    """Plans the goals of tuning."""

    def plan_tune(self, goal: str) -> None:
        """Plans the trials of a table's methods, or both these and the choice."""
        name = goal.removeprefix(TUNE).removesuffix(TRIALS)
        table = read_table(name, self.root, self.variables.get("MODEL") or None)
        methods = methods_of(table, self.root, engines=self.begun_with, **self.launch)
        for method in methods:
            check_trials(method)
        if goal.endswith(TRIALS):
            self._plan_trials(goal, methods)
            return
        words = [f"{each}={plain(value)}" for each in HANDED_ON if (value := self.variables.get(each))]
        options = [f"--{each.lower()} {plain(value)}" for each in ("RUNS", "MODEL") if (value := self.variables.get(each))]
        # A stage that fails ends this make and not the other: the choice tells what it makes of it.
        trials = " ".join(["+-@$(MAKE) --no-print-directory --keep-going", f"{goal}{TRIALS}", *words])
        self.plan.goal(goal, [], trials, " ".join(["@$(PYTHON) scripts/choose_settings.py", name, *options]))

    def _plan_trials(self, goal: str, methods: list[Method]) -> None:
        """Plans every trial that has not failed before."""
        files = []
        for method in methods:
            failed = method.failed_before(self.root)
            for trial in method.trials:
                for run in (self.plan.add(each) for each in trial.runs if (trial.text, each.settings.seed) not in failed):
                    self.plan.want(goal, run, artifact_of(run))
                    files += [f"{self.folder_of(run)}/{each}" for each in targets_of(artifact_of(run))]
        self.plan.wanted.setdefault(goal, {})
        self.plan.goal(goal, files, share=True)


def check_trials(method: Method) -> None:
    """Raises UserError where two trials of a method are one: an iteration states a setting itself, and wins over the trial."""
    seen: dict[str, str] = {}
    for trial in method.trials:
        what = _identity(trial.runs[0])
        if what in seen:
            raise UserError(
                f"{method.name.full}: the trials {seen[what]} and {trial.text} are the same run, since its iterations state what "
                f"is tried; give the setting of the iteration, such as iterations.iter1.train.beta, or take the axis away"
            )
        seen[what] = trial.text


def _identity(run: Run) -> str:
    """Returns what determines the stages of a run."""
    return repr([identity(rule.settings.model_dump(mode="json")) for rule in run_rules(run) if rule.settings.stage != "report"])
