"""Fills a printed table from the runs that are there: each cell from the eval.json of the policy that stands for it.

`runs/<recipe>/<policy>/<set>/eval.json`, and of further seeds `runs/<recipe>-seed<K>/...`. Nothing is run, and what is not there
is a reason, not an error.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from statistics import fmean

from handbook_ext.core.artifacts import START, json_object
from handbook_ext.core.errors import UserError
from handbook_ext.evaluation.set_evaluation import MeasuredValue, SetEvaluation, of_another_policy, read_set_evaluation
from handbook_ext.objectives.metrics import CONFIDENCE, hierarchical_interval
from handbook_ext.recipes.names import RECIPES
from handbook_ext.recipes.run import Run, resolve
from handbook_ext.reports.ledger import LEDGER, Entry, ledger_measurements
from handbook_ext.reports.matrix_measurements import win_of
from handbook_ext.reports.measurements import Filling, Key, Lack, Measurement, gain, normal_interval, normal_quantile, pooled
from handbook_ext.reports.paper_headings import MATRIX, RUN, Column, Stand
from handbook_ext.reports.paper_tables import PaperTable
from handbook_ext.reports.run_measurements import MEASURED_ON_RUNS
from handbook_ext.reports.scales import model_of, stands_of

RELEASED = "released-"
LENGTH = "length"


class NotRunError(Exception):
    """There is no value of ours, for the reason that it says."""

    def __init__(self, reason: str, recipe: str = "", policy: str = "", set_name: str = "") -> None:
        """Takes the reason, and where the whole evaluation is missing whose it is and on what."""
        super().__init__(reason)
        self.lack = Lack(reason, recipe, policy, set_name)


class Runs:
    """The runs of a folder, each evaluation read once; where one is missing, what verified ledgers of others hold."""

    def __init__(self, folder: Path, root: Path = RECIPES, ledger: Path = LEDGER) -> None:
        """Takes the folder of all runs, where their recipes are, and the folder of submitted ledgers."""
        self.folder = folder
        self._submitted: Callable[[], dict[tuple[str, str, str, str], Entry]] = lru_cache(lambda: ledger_measurements(ledger))
        self.resolved: Callable[[str], Run] = lru_cache(lambda recipe: resolve(recipe, root))
        self.evaluation: Callable[[Path], SetEvaluation] = lru_cache(read_set_evaluation)
        self.notes: dict[str, None] = {}

    def policy_of(self, stand: Stand, policy: str | None = None) -> str:
        """Returns the folder of the policy that stands for a cell, or of the one named: `start` is where its loop starts."""
        run = self.resolved(stand.recipe)
        name = policy or stand.policy or run.iterations[-1].name
        return run.start if name in (START, "sft") else name

    def measured(self, recipe: str, policy: str, column: Column) -> Measurement:
        """Returns the value of a policy in a column over all its seeds; raises NotRunError where there is none."""
        name, measure = str(column.set), str(column.measure)
        folders = seed_folders(self.folder, recipe) or [self.folder / recipe]
        found: list[tuple[Path, SetEvaluation]] = []
        for folder in folders:
            path = folder / policy / name / "eval.json"
            if path.is_file():
                found.append((path, self.evaluation(path)))
        entry = None if found else self._submitted().get((recipe, policy, name, measure))
        if entry is not None:
            self.notes[f"{recipe} {policy} on {name} is from ledger {entry.file}, measured on {entry.hardware}"] = None
            return self._value(Path(entry.file), entry.evaluation, measure)
        benchmarks = self.resolved(recipe).settings.benchmarks
        if not found and name not in benchmarks.evaluations:
            folder = self.resolved(recipe).file.parent
            raise NotRunError(f"the recipes in {folder} have no prompt set {name}; benchmarks.sets of one would state it")
        if not found:
            goal = f"{recipe}-{policy.removeprefix(RELEASED)}-eval"
            checkpoints = " CHECKPOINTS=released" if policy.startswith(RELEASED) else ""
            stopped = json_object(folders[0] / policy / name / ".eval.json.partial/stopped.json")
            if stopped is not None:
                raise NotRunError(
                    f"the judge stopped after {stopped['replies']} replies to {folders[0] / policy / name}: make {goal}"
                )
            there = f"{folders[0] / policy / name / 'eval.json'} is not there"
            raise NotRunError(f"{there}: make {goal} SETS={name}{checkpoints}", recipe, policy, name)
        found = self._current(found)
        alike = [self._value(path, each, measure) for path, each in found if _alike(each, found[0][1], measure)]
        for path, each in found:
            if not _alike(each, found[0][1], measure):
                self.notes[f"{path} is left out: another judge, decoding or set of prompts than {found[0][0]}"] = None
        return pooled(alike)

    def _value(self, path: Path, evaluation: SetEvaluation, measure: str) -> Measurement:
        """Returns one evaluation's value; raises NotRunError where it has none."""
        value = evaluation.measures.get(measure)
        if value is None:
            raise NotRunError(f"{path} has no measure {measure}; it has: {', '.join(evaluation.measures) or 'none'}")
        if value.value is None:
            raise NotRunError(value.not_run or f"{path} has no value of {measure}")
        seen = evaluation.contaminated.overlap
        low, high, way, error = _interval(value, evaluation, measure)
        return Measurement(
            value.value, low, high, way=way, over_prompts=error, n=value.n, missing=value.missing, judge=value.judge, seen=seen,
            prompts=evaluation.set.prompts, of=evaluation.set.of, judge_runs=value.runs, decoding=evaluation.decoding,
            checkpoint=evaluation.policy.checkpoint or (START if evaluation.policy.name == START else None),
        )  # fmt: skip

    def _current(self, found: Sequence[tuple[Path, SetEvaluation]]) -> list[tuple[Path, SetEvaluation]]:
        """Returns the evaluations of the policies that are there now; the others are told. Raises NotRunError where none is."""
        stale = {path: told for path, evaluation in found if (told := of_another_policy(path, evaluation)) is not None}
        if len(stale) == len(found):
            raise NotRunError(next(iter(stale.values())))
        self.notes |= dict.fromkeys(f"left out: {told}" for told in stale.values())
        return [(path, evaluation) for path, evaluation in found if path not in stale]


def seed_folders(runs: Path, recipe: str) -> list[Path]:
    """Returns the folders of a recipe's runs that there are: its own, then those of other seeds by their number."""
    pattern = re.compile(re.escape(recipe) + r"-seed(\d+)")
    found = {int(match[1]): path for path in runs.glob(f"{recipe}-seed*") if (match := pattern.fullmatch(path.name))}
    own = runs / recipe
    return [*([own] if own.is_dir() else []), *(found[number] for number in sorted(found))]


def read_filling(
    table: PaperTable, folder: Path, root: Path = RECIPES, *, model: str | None = None, released: bool = False
) -> Filling:
    """Returns what the runs of a folder have for a table's cells: of the papers' models, or with `model` of that one.

    With `released` also what released checkpoints have under our evaluation. Raises UserError for an evaluation that cannot be
    read, or a model that stands for no row.
    """
    runs = Runs(folder, root)
    ours: dict[Key, Measurement] = {}
    lacks: dict[Key, Lack] = {}
    checkpoints: dict[Key, Measurement] = {}
    checkpoint_lacks: dict[Key, Lack] = {}
    stands = stands_of(table, model, root)
    for key, stand in stands.cells.items():
        column = next(each for each in table.heading.columns if each.name == key[2])
        try:
            ours[key] = _cell(runs, table, stand, column)
        except NotRunError as reason:
            lacks[key] = reason.lack
        if released and column.set != RUN and column.measure != MATRIX:
            try:
                found = _released_cell(runs, table, stand, column)
                checkpoints |= {} if found is None else {key: found}
            except NotRunError as reason:
                checkpoint_lacks[key] = reason.lack
    return Filling(
        ours, lacks, checkpoints if released else None, checkpoint_lacks, stands.cells, None if stands.of_paper else model,
        [*runs.notes],
    )  # fmt: skip


def _cell(runs: Runs, table: PaperTable, stand: Stand, column: Column) -> Measurement:
    """Returns the value of a cell; raises NotRunError where there is none."""
    policy = runs.policy_of(stand)
    if column.measure == MATRIX:
        return _matrix_cell(runs, table, stand, column)
    if column.set == RUN:
        folder = runs.folder / stand.recipe
        try:
            against = None if column.against is None else runs.folder / column.against
            return MEASURED_ON_RUNS[str(column.measure)](folder / policy, against and against / policy)
        except FileNotFoundError as missing:
            recipe, iteration, *_ = Path(missing.filename).relative_to(runs.folder).parts
            raise NotRunError(f"{missing.filename} is not there: make {recipe}-{iteration}") from None
        except UserError as error:
            raise NotRunError(str(error)) from None
    value = runs.measured(stand.recipe, policy, column)
    return value if column.over is None else gain(value, runs.measured(stand.recipe, runs.policy_of(stand, column.over), column))


def _released_cell(runs: Runs, table: PaperTable, stand: Stand, column: Column) -> Measurement | None:
    """Returns the released checkpoint's value, None where the recipe names none; raises NotRunError where it has no value."""
    run, policy = runs.resolved(stand.recipe), runs.policy_of(stand)
    if policy == START:  # It is a released checkpoint itself.
        return _cell(runs, table, stand, column)
    if policy not in run.settings.benchmarks.released:
        return None
    value = runs.measured(stand.recipe, f"{RELEASED}{policy}", column)
    if column.over is None:
        return value
    return gain(value, runs.measured(stand.recipe, runs.policy_of(stand, column.over), column))


def _matrix_cell(runs: Runs, table: PaperTable, stand: Stand, column: Column) -> Measurement:
    """Returns what the policy of a row wins over that of the row called like the column; raises NotRunError where it has not."""
    others = [each for each in table.heading.stands if (each.group, each.row) == (stand.group, column.name)]
    other = others[0].model_copy(update={"recipe": f"{model_of(stand.recipe)}-{others[0].recipe.partition('-')[2]}"})
    names = [f"{each.recipe} {runs.policy_of(each)}" for each in (stand, other)]
    try:
        return win_of(runs.folder, str(column.set), *names)
    except LookupError:
        of = f'"{" ".join(dict.fromkeys(each.recipe for each in table.heading.stands))}"'
        raise NotRunError(f"no length-controlled matrix has both policies: make matrix OF={of} SETS={column.set}") from None


def _alike(evaluation: SetEvaluation, first: SetEvaluation, measure: str) -> bool:
    """Returns whether two evaluations of seeds asked the same judge on the same prompts with the same decoding."""
    judges = [each.measures[measure].judge if measure in each.measures else None for each in (evaluation, first)]
    return judges[0] == judges[1] and (evaluation.set, evaluation.decoding) == (first.set, first.decoding)


def _interval(value: MeasuredValue, evaluation: SetEvaluation, measure: str) -> tuple[float, float, str, float | None]:
    """Returns the ends of a value's interval, how it was made, and the standard error over prompts.

    Normal from the standard error where there is one, else a bootstrap over the prompts' verdicts, else none.
    """
    mean = float(value.value or 0.0)
    if value.standard_error is not None:
        return *normal_interval(mean, value.standard_error), "normal", value.standard_error
    if measure == LENGTH:  # Which no judge gives: the characters of the first answer.
        per_prompt = [float(len(row.answers[0].text)) if row.answers else None for row in evaluation.rows]
    else:
        per_prompt = [_mean(row.verdicts.get(measure, [])) for row in evaluation.rows]
    known = [each for each in per_prompt if each is not None]
    if len(known) < 2:
        return mean, mean, "none", None
    # A win is 1 among the verdicts, and 100 as a value in percent.
    scale = 100.0 if value.unit == "%" and max(map(abs, known)) <= 1 else 1.0
    drawn = hierarchical_interval([[scale * each for each in known]], confidence=CONFIDENCE)
    error = (drawn.high - drawn.low) / 2 / normal_quantile(CONFIDENCE)
    # The bootstrap's width around the value itself, which may be no plain mean of the verdicts.
    return mean + drawn.low - drawn.value, mean + drawn.high - drawn.value, "bootstrap", error


def _mean(verdicts: Sequence[Sequence[float | None]]) -> float | None:
    """Returns the mean verdict of a prompt over judge runs and turns, None where none was readable."""
    known = [each for run in verdicts for each in run if each is not None]
    return fmean(known) if known else None
