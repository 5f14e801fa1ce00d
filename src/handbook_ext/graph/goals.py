"""Make's goals and variables, checked by form and meaning, and the makefile text that they stand for.

Whatever the command line says reaches Python as it was typed. Only names that passed here are written into what make reads.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from handbook_ext.core.errors import UserError
from handbook_ext.graph.folders import check_matrix, distinct_seeds, hardware_request, request_file, runs_folder
from handbook_ext.graph.goals_tables import TablePlanner
from handbook_ext.graph.makefile import plain, targets_of
from handbook_ext.graph.plan import Plan
from handbook_ext.graph.rule import CHECK
from handbook_ext.graph.rules_benchmarks import RELEASED, evaluated_policies
from handbook_ext.graph.run_rules import run_rules
from handbook_ext.graph.variables import VARIABLES, check_cluster, check_variables, kind_of
from handbook_ext.recipes.names import RECIPES
from handbook_ext.recipes.run import resolve
from handbook_ext.recipes.until import FIRST_SEEDS, Until
from handbook_ext.recipes.yaml_tree import nearest

__all__ = ["VARIABLES", "WHY", "Plan", "check_variables", "plan_goals", "runs_folder"]

WHY = "why.txt"


def plan_goals(goals: Sequence[str], variables: Mapping[str, str], given: Sequence[str] = (), root: Path = RECIPES) -> Plan:
    """Returns the plan of make's goals; `given` are the variables of the command line itself, each of which a goal must read.

    Raises UserError for a goal or variable that means nothing, or whose form could mean something else to make or a shell.
    """
    kinds = {goal: kind_of(goal) for goal in goals}
    check_variables(variables, given, kinds)
    if variables.get("CLUSTER"):
        check_cluster(kinds)
    if set(kinds.values()) == {"new"}:  # Which looks at the rows itself.
        variables = {name: value for name, value in variables.items() if name != "DATA"}
    planner = _Goals(variables, root)
    for goal, kind in kinds.items():
        getattr(planner, f"plan_{kind}")(goal)
    plan = planner.plan
    on_cpu = all(run.launch.name == "cpu" for run in plan.runs.values())
    # Stages that share GPUs run one at a time; on a CPU the evaluation of an iteration runs beside the sampling of the next.
    # What runs no stage itself leaves the jobs to the make that it calls; goals that call make follow one another, since two
    # would make the same runs.
    calling = planner.auto or (not plan.runs and set(kinds.values()) == {"tune"})
    plan.lines.append("MAKEFLAGS += -j$(JOBS)" if on_cpu and not calling else ".NOTPARALLEL:")
    return plan


class _Goals(TablePlanner):
    """Turns goals into rules, a method for each kind of goal."""

    def plan_project(self, goal: str) -> None:
        """Plans nothing: the Makefile has these."""

    plan_calibrate = plan_paper = plan_figure = plan_compare = plan_ledger = plan_fuzz = plan_torture = plan_new = plan_project
    plan_stability = plan_project

    def plan_matrix(self, goal: str) -> None:
        """Plans nothing either; refuses what has nothing to compare before make installs what compares."""
        check_matrix([Path(self.folder, name) for name in self.variables.get("OF", "").split()], self.variables.get("SETS", ""))

    def plan_plan(self, goal: str) -> None:
        """Plans the plan of a run's hardware: its launch is chosen there, so GPUS and LAUNCH are handed on."""
        name = goal.removesuffix("-plan")
        # With GPUS the recipe's own launch need not meet its batches: the one that is chosen has to.
        own = "GPUS" not in self.variables
        run = resolve(name, self.root, overrides=self.overrides, engines=self.begun_with, batches=own)
        request = self.plan.planned[run.name] = hardware_request(name, self.variables)
        self.plan.goal(goal, [], f"@$(PYTHON) scripts/plan_hardware.py {plain(f'{self.folder_of(run)}/{request_file(request)}')}")

    def plan_run(self, goal: str) -> None:
        """Plans a run's report, an iteration, the reasons why stages would run, what is still as it was made, or a file."""
        if "/" in goal:
            self._plan_file(goal)
            return
        # One suffix: whatever is left must be the name of a run.
        name, suffix = re.fullmatch(r"(.+?)(-iter[0-9]+|-report|-why|-check|-verify)?", goal).groups()  # type: ignore[union-attr]
        run = self.run(name)
        folder = self.folder_of(run)
        if suffix is not None and suffix.startswith("-iter"):
            self.make(goal, run, f"{run.iteration(suffix[1:]).name}/policy", then=f"{name}-report")
        elif suffix == "-why":
            self.plan.explained.append(run.name)
            self.plan.goal(goal, [], f"@cat {folder}/{WHY}")
        elif suffix == "-verify":
            self.plan.goal(goal, [], f"@$(PYTHON) scripts/verify_run.py $(said) -- {goal}")
        elif suffix == "-check":
            # What the whole run would lack is told, but nothing of it is made.
            self.plan.want(goal, run, "report")
            request = self.plan.planned[run.name] = hardware_request(name, self.variables)
            show = f"@$(PYTHON) scripts/show_check.py {plain(f'{folder}/{request_file(request)}')}"
            self.plan.goal(goal, [f"{folder}/{each}" for each in targets_of(CHECK)], show)
        else:
            evaluations = [f"{each}/{chosen}/eval.json" for chosen in run.sets for each in evaluated_policies(run)]
            # The report shows whatever sets policies were evaluated on, at whatever time: so it is asked to look again.
            look = bool(evaluations or any(Path(folder).glob("*/*/eval.json")))
            report = f"@$(PYTHON) scripts/write_report.py {folder}" if look else None
            self.make(goal, run, "report", *evaluations, command=report, then="")

    def plan_eval(self, goal: str) -> None:
        """Plans the evaluation of a run's policies, or of one, on prompt sets: by default on all of the recipe's."""
        name, policy = re.fullmatch(r"(.+?)(?:-(iter[0-9]+(?:@[0-9.]+)?|start|sft))?-eval", goal).groups()  # type: ignore[union-attr]
        run = self.run(name, released=self.released, all_sets=not self.sets)
        policies = evaluated_policies(run)
        if policy is not None:
            wanted = f"{RELEASED}{policy}" if self.released else policy
            if wanted not in policies:
                raise UserError(
                    f"{goal}: {run.recipe} has no policy {wanted}{nearest(wanted, policies)}; it has: {', '.join(policies)}"
                )
            policies = [wanted]
        self.make(goal, run, *(f"{each}/{chosen}/eval.json" for each in policies for chosen in run.sets), then=f"{name}-report")

    def plan_explain(self, goal: str) -> None:
        """Plans the walk of one pair through a run; nothing is made for it."""
        folder = self.folder_of(self.run(goal.removesuffix("-explain")))
        self.plan.goal(goal, [], f"@$(PYTHON) scripts/explain_pair.py {folder} --pair=$(call quoted,$(value PAIR))")

    def plan_push(self, goal: str) -> None:
        """Plans the upload of a policy, which is made first; DRY=1 shows what would go."""
        found = re.fullmatch(r"(.+)-(iter[0-9]+|sft)-push", goal)
        if found is None:
            raise UserError(f"{goal}: name the policy to be uploaded, such as {goal.removesuffix('-push')}-iter1-push")
        run = self.run(found[1])
        policy = found[2] if found[2] == run.start else run.iteration(found[2]).name
        words = [f"{self.folder_of(run)}/{policy}"]
        words += [f"--repo {plain(self.variables['REPO'])}"] if self.variables.get("REPO") else []
        words += ["--dry"] if self.variables.get("DRY") == "1" else []
        # The card shows what was measured on the policy, beside the one that the loop starts from.
        needed = [f"{policy}/policy", *(f"{each}/eval.json" for each in dict.fromkeys([run.start, policy]))]
        self.make(goal, run, *needed, command=f"@$(PYTHON) scripts/push_policy.py {' '.join(words)}")

    def plan_submit(self, goal: str) -> None:
        """Plans the file that holds a run without its weights, for others to check."""
        run = self.run(goal.removesuffix("-submit"))
        self.make(goal, run, "report", command=f"@$(PYTHON) scripts/pack_run.py {self.folder_of(run)}")

    def plan_seeds(self, goal: str) -> None:
        """Plans the seeds of a recipe, with those of other recipes beside, and one report of all."""
        name = goal.removesuffix("-seeds")
        if self.auto:
            # A mistake is told at once; the makes that are called plan the runs.
            first = _Goals({**self.variables, "SEEDS": str(FIRST_SEEDS)}, self.root)
            first.plan_seeds(goal)
            self.add_seeds(goal, self.report_of(next(iter(first.plan.runs.values())).recipe), Until())
            return
        ours = distinct_seeds([self.run(each) for each in self.seeded(name)])
        # A try stands beside what its recipe says without SET, on the same data.
        theirs = [
            run for other in self.beside for run in distinct_seeds([self.run(each, self.data) for each in self.seeded(other)])
        ]
        if twice := {run.name for run in ours} & {run.name for run in theirs}:
            raise UserError(f"BESIDE: {min(twice)} is a run of {goal} itself; name another recipe")
        for run in (*ours, *theirs):
            self.plan.want(goal, run, "report")
        folders = [[self.folder_of(run) for run in runs] for runs in (ours, theirs)]
        command = ["$(PYTHON) scripts/write_report.py", *folders[0], *(["--beside", *folders[1]] if theirs else [])]
        reports = [f"{folder}/report/manifest.json" for each in folders for folder in each]
        self.plan.goal(goal, reports, " ".join([*command, "--out", self.report_of(ours[0].recipe)]), share=True)

    def report_of(self, recipe: str) -> str:
        """Returns the folder of the report of a recipe's seeds."""
        return f"{Path(self.folder, recipe)}-seeds/report"

    def _plan_file(self, goal: str) -> None:
        """Plans a file of a run; a UserError names the files that the run's stages make."""
        prefix = f"{self.folder.rstrip('/')}/"
        if not goal.startswith(prefix):
            raise UserError(f"'{goal}' is no goal: a file is one of {prefix}<run>/, such as {prefix}tiny-selm/iter1/pairs.jsonl")
        name, _, rest = goal.removeprefix(prefix).partition("/")
        # A try's folder has in its name what SET and DATA say, which must be given again: `mine-selm+train.beta-0.5-seed2`.
        labels = re.fullmatch(r"(.+?)(\+.+?)(-seed[0-9]+)?", name)
        run = self.run(labels[1] + (labels[3] or "") if labels else name)
        if run.name != name:
            raise UserError(
                f"'{goal}' is a file of another run than SET and DATA make here: theirs is {prefix}{run.name}/; "
                "give the same words as for its run, or leave them out"
            )
        run = self.plan.add(replace(run, sets=run.settings.benchmarks.evaluations))
        targets = {target: rule.artifact for rule in run_rules(run) for target in targets_of(rule.artifact)}
        if rest not in targets:
            raise UserError(f"no stage of {run.name} makes {rest}{nearest(rest, targets)}; they make: {', '.join(targets)}")
        self.plan.want(goal, run, targets[rest])
