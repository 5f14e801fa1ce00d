"""Make's variables: the form of each, the goals that read it, and what sort of goal a word is."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from handbook_ext.core.errors import UserError
from handbook_ext.core.machine import IMITATED
from handbook_ext.graph.makefile import PLAIN
from handbook_ext.recipes.names import (
    COMPARE,
    KEEP,
    LEDGER,
    MATRIX,
    NEW,
    PAPER_FIGURE,
    PAPER_TABLE,
    PLANTED,
    PROJECT,
    RECIPES,
    TABLE,
    TUNE,
)
from handbook_ext.recipes.yaml_tree import nearest

CALIBRATE, STABILITY, FUZZ, TORTURE = "calibrate", "stability", "fuzz", "torture"
AUTO = "auto"  # Of SEEDS: as many as make the intervals narrow.
_NUMBER, _OF_NUMBER = r"[1-9][0-9]{0,3}", "a number from 1 to 9999"
_SIZE = r"[1-9][0-9]{0,4}(\.[0-9]+)?|0\.[0-9]*[1-9]"
READERS = {
    "run": "<run> and <run>-iter<N>",
    "seeds": "<run>-seeds",
    "table": f"{TABLE}<name>",
    "keep": f"{KEEP}{TABLE}<name>",
    "tune": f"{TUNE}<table>",
    "plan": "<run>-plan",
    "calibrate": CALIBRATE,
    "stability": STABILITY,
    "paper": PAPER_TABLE,
    "project": "bench, mutants",
    "eval": "<run>-eval and <run>-iter<N>-eval",
    "explain": "<run>-explain",
    "push": "<run>-iter<N>-push",
    "submit": "<run>-submit",
    "compare": COMPARE,
    "matrix": MATRIX,
    "figure": PAPER_FIGURE,
    "ledger": LEDGER,
    "fuzz": FUZZ,
    "torture": TORTURE,
    "new": NEW,
    "planted": PLANTED,
}
# Goals of the Makefile itself that read variables of their own.
READING = {
    CALIBRATE: "calibrate",
    STABILITY: "stability",
    PAPER_TABLE: "paper",
    PAPER_FIGURE: "figure",
    COMPARE: "compare",
    MATRIX: "matrix",
    LEDGER: "ledger",
    FUZZ: "fuzz",
    TORTURE: "torture",
    NEW: "new",
    PLANTED: "planted",
}
SUFFIXES = ("seeds", "plan", "eval", "explain", "push", "submit")
"""What stands behind a run's name for a kind of goal of its own; all others are kinds of `run`."""
RUN = {"run", "eval", "explain", "push", "submit"}
STARTING = {"run", "eval", "push", "submit", "seeds", "table", "planted", "tune"}
"""The kinds of goals that start stages."""
# Each variable of the command line: its form, what it should have been, and the kinds of goals that read it.
VARIABLES = {
    "RUNS": (PLAIN, "a folder whose name has letters, digits and . / + @ , _ - alone", {*READERS}),
    "SET": (r"[\s\S]*", "", {*RUN, "seeds", "plan", "planted", "stability"}),
    "DATA": (r"[\s\S]*", "", {*RUN, "seeds", "plan", "new"}),
    "NAME": (
        r"\w[\w.-]*(/\w[\w.-]*)?",
        "a name for your recipe, such as mine, or mine/dpo for recipes/mine/dpo.yaml",
        {"new"},
    ),
    "FROM": (r"\w[\w.-]*", "a recipe to begin from, such as smollm2-selm; make list shows all", {"new"}),
    "LAUNCH": (r"[\w.-]+", "a launch configuration, such as ddp", {*STARTING, "plan"}),
    "GPUS": (_NUMBER, _OF_NUMBER, {*STARTING, "plan"}),
    "CLUSTER": (r"slurm|", "slurm", {"run", "eval"}),
    "SEEDS": (r"[1-9][0-9]?|auto", "a number from 1 to 99, or auto", {"seeds", "table", "keep", "planted", "stability"}),
    "UNTIL": (r"[\w.=\s-]*", "where SEEDS=auto stops, such as difference=0.04 seeds=20", {"seeds", "table"}),
    "FIRST": (_NUMBER, _OF_NUMBER, {"stability"}),
    "MACHINES": (r"[\w\s-]*", f"machines that this one imitates, parted by blanks: {', '.join(IMITATED)}", {"stability"}),
    "BESIDE": (r"[\w.\s-]*", "recipes, parted by blanks", {"seeds"}),
    "JOBS": (_NUMBER, _OF_NUMBER, {*STARTING, "stability"}),
    "THREADS": (_NUMBER, _OF_NUMBER, {*STARTING, "plan", "calibrate", "stability"}),
    "V": (r"[01]?", "1, which prints each command before it runs", STARTING),
    "VRAM": (_SIZE, "the GB of one GPU, above 0 and below 100000, such as 24", {"plan"}),
    "RAM": (_SIZE, "the GB of main memory, above 0 and below 100000, such as 128", {"plan"}),
    "WRITE": (
        rf"{RECIPES}/\w[\w.-]*/\w[\w.-]*\.yaml",
        f"{RECIPES}/<folder>/<name>.yaml in letters, digits and . _ - alone, such as {RECIPES}/mine/small.yaml",
        {"plan"},
    ),
    "T": (
        r"[\w-]+",
        f"a table or figure of the papers, such as selm1; make {PAPER_TABLE} and make {PAPER_FIGURE} list them",
        {"paper", "figure"},
    ),
    "FORMAT": (r"md|latex|csv|html", "md, latex, csv or html", {"paper"}),
    "MODEL": (
        r"\w[\w.\s-]*",
        "a folder of recipes, such as zephyr; a figure may compare several",
        {"paper", "figure", "table", "keep", "tune"},
    ),
    "SETS": (r"[\w\s]*", "prompt sets of the recipe, parted by blanks", {"run", "eval", "matrix"}),
    "CHECKPOINTS": (r"released|", "released", {"eval", "paper", "table"}),
    "PAIR": (r"[\s\S]+", "a prompt_id of the run", {"explain"}),
    "OF": (r"[\w.+@,\s-]*", "runs, parted by blanks", {"compare", "matrix", "planted", "stability"}),
    "REPO": (r"[\w.-]+/[\w.-]+", "a repository on the hub, such as me/my-model", {"push"}),
    "DRY": (r"[01]?", "1, which uploads nothing", {"push"}),
    "ADD": (r"[01]?", "1, which keeps a file that passes in ledger/", {"ledger"}),
    "F": (r"[\s\S]+", "a file that make <run>-submit has written", {"ledger"}),
    "CASES": (r"[1-9][0-9]{0,5}", "how many cases, from 1 to 999999", {"fuzz"}),
    "MINUTES": (r"[1-9][0-9]{0,3}", "how many minutes, from 1 to 9999", {"torture"}),
    "ONLY": (r"survivors|missing|(?!-)[\w/.]+", "survivors, missing, or a file that is mutated", {"project"}),
}


def check_variables(variables: Mapping[str, str], given: Sequence[str], kinds: Mapping[str, str]) -> None:
    """Raises UserError for a variable that has another form than it should, or that no goal reads."""
    for name, value in variables.items():
        form, words, _ = VARIABLES[name]
        if not re.fullmatch(form, value):
            raise UserError(f"{name}: {value!r} is not {words}")
    for name in given:
        if name not in VARIABLES:
            raise UserError(f"nothing reads the variable {name}{nearest(name, VARIABLES)}; make reads: {', '.join(VARIABLES)}")
        readers = VARIABLES[name][2]
        if kinds and not readers & set(kinds.values()):
            raise UserError(
                f"{name} is read by {' and '.join(READERS[kind] for kind in READERS if kind in readers)}, and no goal here is "
                f"one of these: {' '.join(kinds)}; leave it out"
            )
    _check_auto(variables, kinds)


def _check_auto(variables: Mapping[str, str], kinds: Mapping[str, str]) -> None:
    """Raises UserError where SEEDS=auto is asked of a goal that has a fixed number of seeds, or UNTIL without it."""
    auto, takers = variables.get("SEEDS") == AUTO, VARIABLES["UNTIL"][2]
    if auto and (fixed := [goal for goal, kind in kinds.items() if kind in VARIABLES["SEEDS"][2] - takers]):
        words = " and ".join(READERS[kind] for kind in READERS if kind in takers)
        raise UserError(f"SEEDS={AUTO} is for {words}; give a number for: {' '.join(fixed)}")
    if variables.get("UNTIL") and not auto:
        raise UserError(f"UNTIL says where SEEDS={AUTO} stops, and SEEDS is {variables.get('SEEDS', '3')}; leave one of them out")


def check_cluster(kinds: Mapping[str, str]) -> None:
    """Raises UserError for a goal that is no run or iteration of one: what such goals do besides stages, no job would do."""
    for goal, kind in kinds.items():
        if kind not in ("run", "eval", "project") or "/" in goal:
            raise UserError(
                f"CLUSTER=slurm submits <run>, <run>-iter<N> and <run>-eval, and {goal} is none; submit its runs one by one, "
                f"then make {goal} without CLUSTER"
            )


def kind_of(goal: str) -> str:
    """Returns what sort of goal a word is; a UserError where its form is none of a goal."""
    if not re.fullmatch(PLAIN, goal):
        raise UserError(f"{goal!r} is no goal: those have letters, digits and . / + @ , _ - alone; make help shows some")
    if goal in PROJECT:
        return READING.get(goal, "project")
    if goal == "tables" or goal.startswith(TABLE):
        return "table"
    if goal == f"{KEEP}tables" or goal.startswith(f"{KEEP}{TABLE}"):
        return "keep"
    if goal.startswith(TUNE):
        return "tune"
    return next((suffix for suffix in SUFFIXES if goal.endswith(f"-{suffix}")), "run")
