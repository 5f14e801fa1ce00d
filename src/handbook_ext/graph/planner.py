"""What every kind of goal is planned with: the variables of one call of make, its runs by name, their folders."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from handbook_ext.graph.folders import runs_folder
from handbook_ext.graph.makefile import begun_with, plain, targets_of
from handbook_ext.graph.plan import Plan
from handbook_ext.graph.rules_benchmarks import asked_for
from handbook_ext.graph.variables import AUTO
from handbook_ext.recipes.overrides import Override, parse_data, parse_set
from handbook_ext.recipes.run import Run, resolve
from handbook_ext.recipes.until import FIRST_SEEDS, Until, parse_until


class Planner:
    """The plan under the variables of one call of make, and what it is made with."""

    def __init__(self, variables: Mapping[str, str], root: Path) -> None:
        """Takes variables that were checked."""
        self.plan, self.root = Plan(), root
        self.folder, self.variables = runs_folder(variables), variables
        self.auto = variables.get("SEEDS") == AUTO
        self.seeds = range(1, 1 + (FIRST_SEEDS if self.auto else int(variables.get("SEEDS", "3"))))
        self.beside = variables.get("BESIDE", "").split()
        self.launch = {"launch": variables.get("LAUNCH") or None, "gpus": int(variables["GPUS"]) if "GPUS" in variables else None}
        self.cluster = bool(variables.get("CLUSTER"))
        self.data = parse_data(variables["DATA"]) if variables.get("DATA") else []
        self.sets = list(dict.fromkeys(variables.get("SETS", "").split()))
        self.released = bool(variables.get("CHECKPOINTS"))
        self.overrides: list[Override] = [*parse_set(variables.get("SET", "")), *self.data]

    def make(self, goal: str, run: Run, *artifacts: str, command: str | None = None, then: str | None = None) -> None:
        """Plans a goal that stands for artifacts of a run: make makes them, or submits what they need to the cluster.

        then: the goal that goes on from it, "" for none; with None it has an ending of its own.
        """
        for artifact in artifacts:
            self.plan.want(goal, run, artifact)
        if self.cluster:
            self.plan.goal(goal, [], f"+@$(SUBMIT) {goal}")  # With +, since -n is to print the scripts.
        else:
            files = [f"{self.folder_of(run)}/{each}" for artifact in artifacts for each in targets_of(artifact)]
            self.plan.goal(goal, files, *([command] if command else []))
            if then is not None:
                self.plan.endings[goal] = (run.name, artifacts, then)

    def run(
        self, name: str, overrides: Sequence[Override] | None = None, *, released: bool = False, all_sets: bool = False
    ) -> Run:
        """Returns a run by name, planned, under what overrides it: the command line's SET and DATA, or what is given."""
        overrides = self.overrides if overrides is None else overrides
        run = resolve(name, self.root, overrides=overrides, cluster=self.cluster, engines=self.begun_with, **self.launch)  # type: ignore[arg-type]
        return self.plan.add(asked_for(run, self.sets, released=released, all_sets=all_sets))

    def add_seeds(self, goal: str, report: str, until: Until) -> None:
        """Plans a goal that calls make with more and more seeds, until the intervals in the report's folder are narrow enough."""
        stop = parse_until(self.variables.get("UNTIL", ""), until)
        options = f"--report {plain(report)} --difference {stop.difference:g} --most {stop.seeds}"
        # Not $(MAKE), which would run this under -n as well.
        command = f"@$(PYTHON) scripts/add_seeds.py --make=$(call quoted,$(MAKE_COMMAND)) {options} $(said) -- {goal}"
        self.plan.goal(goal, [], command)

    def begun_with(self, name: str) -> str | None:
        """Returns the engine that a run has begun with."""
        return begun_with(Path(self.folder, name))

    def folder_of(self, run: Run) -> str:
        """Returns the folder of a run, spelt as run.mk spells it."""
        return str(Path(self.folder, run.name))

    def seeded(self, name: str) -> list[str]:
        """Returns the names of the runs of a recipe under all seeds; 1 is its own."""
        return [name if seed == 1 else f"{name}-seed{seed}" for seed in self.seeds]
