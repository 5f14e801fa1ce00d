"""What the papers' figures are drawn from, the files of policies in the folder of all runs, and what of it is not there."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from handbook_ext.evaluation.set_evaluation import SetEvaluation, read_set_evaluation
from handbook_ext.objectives.metrics import Interval, Scores, comparable, compare_scores
from handbook_ext.recipes.names import RECIPES
from handbook_ext.recipes.table_files import SMALLEST
from handbook_ext.reports.evaluations import Json, judged_by_all, read_evaluation, read_json
from handbook_ext.reports.figure_rows import FigureRow, figure_row, rows_of_model
from handbook_ext.reports.tables import kept_ids

HeldOut = dict[str, tuple[float, float, float]]
"""By prompt id: log pi - log pi_initial in nats, the ranker's reward (nan for none), and tokens, of one completion."""
SHOWN = 3  # Missing files of a group of goals that are named.


@dataclass
class Sources:
    """Finds what a figure needs, and remembers what was not there.

    seeds: those that are looked for; a row is drawn with those of its runs that have been begun. used: those of the files read,
    by run.
    """

    runs: Path
    models: Sequence[str] = (SMALLEST,)
    seeds: Sequence[int] = (1, 2, 3)
    root: Path = RECIPES
    missing: dict[str, list[str]] = field(default_factory=dict)
    used: dict[str, set[int]] = field(default_factory=dict)
    _read: dict[Path, Json] = field(default_factory=dict)
    _sets: dict[Path, SetEvaluation] = field(default_factory=dict)

    def rows(self, table: str, names: Sequence[str] | None = None, model: str | None = None) -> list[FigureRow]:
        """Returns the rows of a table for a model, by default the first: all of them, or those of these names in their order.

        A row whose run was never begun is missing, and among them all the same.
        """
        model = model or self.models[0]
        of_model = {row.name: row for row in rows_of_model(table, model, self.root)}
        found = [of_model[name] for name in (of_model if names is None else names) if name in of_model]
        if not found:
            self.lack("another MODEL has them", f"rows of {model} in {self.root}/tables/{table}.yaml")
        rows = [figure_row(row, table, self.runs, self.seeds, self.root) for row in found]
        for row in rows:
            if not row.folders:
                self.lack(row.goal(), str(self.runs / row.run.name))
        return rows

    def lack(self, goal: str, what: str) -> None:
        """Remembers a missing artifact under the goal that makes it."""
        known = self.missing.setdefault(goal, [])
        if what not in known:
            known.append(what)

    def told(self) -> str:
        """Returns in one line what is missing and which goals make it, those without SET together; "" where nothing is."""
        plain = [goal for goal in self.missing if re.fullmatch(r"make \S+", goal)]
        groups = [plain] if plain else []
        parts = []
        for goals in [*groups, *([goal] for goal in self.missing if goal not in plain)]:
            files = [file for goal in goals for file in self.missing[goal]]
            more = f" and {len(files) - SHOWN} more" if len(files) > SHOWN else ""
            parts.append(
                f"{', '.join(files[:SHOWN])}{more} ({goals[0]}{''.join(goal.removeprefix('make') for goal in goals[1:])})"
            )
        return "; ".join(parts)

    def seeds_told(self) -> str:
        """Returns which seeds were drawn, in a sentence; of which runs, where these differ; "" where nothing of ours was."""
        runs: dict[tuple[int, ...], list[str]] = {}
        for name, seeds in self.used.items():
            if seeds:
                runs.setdefault(tuple(sorted(seeds)), []).append(name)
        words = [
            ", ".join(map(str, seeds)) + (f" of {', '.join(names)}" if len(runs) > 1 else "") for seeds, names in runs.items()
        ]
        return f"Seeds: {'; '.join(words)}. Intervals have 95 %; over few seeds they are too narrow." if runs else ""

    def files(self, row: FigureRow, policy: str, name: str = "eval.json") -> dict[int, Path]:
        """Returns a policy's file by seed, for the seeds that have it; the others are missing."""
        found = {}
        for seed, folder in row.folders.items():
            path = folder / policy / name
            if path.is_file():
                found[seed] = path
            else:
                self.lack(row.goal(seed), str(path))
        self.used.setdefault(row.run.name, set()).update(found)
        return found

    def json(self, path: Path) -> Json:
        """Returns the object in a file, which is read once."""
        if path not in self._read:
            self._read[path] = read_json(path)
        return self._read[path]

    def set_evaluation(self, path: Path) -> SetEvaluation:
        """Returns a policy's evaluation on a prompt set, read once; raises UserError where it is unusable."""
        if path not in self._sets:
            self._sets[path] = read_set_evaluation(path)
        return self._sets[path]

    def against(
        self, ours: tuple[FigureRow, str], theirs: tuple[FigureRow, str], decoding: str = "sampled"
    ) -> list[tuple[Scores, Scores]]:
        """Returns the scores of two policies, a pair for each seed that has both, on the prompts with a verdict of both.

        decoding: `sampled` is that of the highest temperature where none is called so. A seed is left out where the two were
        not judged by the same model on the same prompts.
        """
        mine, other = (self.files(row, policy) for row, policy in (ours, theirs))
        pairs = []
        for seed in sorted(mine.keys() & other.keys()):
            (one, evaluator), (two, their_evaluator) = (read_evaluation(paths[seed]) for paths in (mine, other))
            if evaluator == their_evaluator and comparable(one, two):
                judged, _ = judged_by_all({"ours": one, "theirs": two})
                name = decoding if decoding in one else max(one, key=lambda each: one[each].temperature)
                pairs.append((judged["ours"][name], judged["theirs"][name]))
        return pairs

    def win_rate(self, row: FigureRow, policy: str) -> Interval | None:
        """Returns a policy's win rate (0 to 1) against the start of its loop by the run's ranker; None where it lacks files."""
        pairs = self.against((row, policy), (row, row.start))
        return compare_scores([our for our, _ in pairs], [their for _, their in pairs])["win_rate"] if pairs else None

    def rewards(self, row: FigureRow, policy: str, decoding: str) -> list[Scores]:
        """Returns the scores of a policy's answers under a decoding, those with a verdict, for each seed that has it."""
        found = []
        for path in self.files(row, policy).values():
            scores, _ = read_evaluation(path)
            if decoding in scores:
                judged, _ = judged_by_all({policy: {decoding: scores[decoding]}})
                found.append(judged[policy][decoding])
        return found

    def held_out(self, row: FigureRow, policy: str, side: str) -> dict[int, HeldOut]:
        """Returns implicit rewards of one side by seed: the held-out chosen or rejected, or `sample`, the policy's own.

        A seed whose evaluation has none is missing.
        """
        found = {}
        for seed, path in self.files(row, policy).items():
            rows = [each for each in (self.json(path).get("implicit") or {}).get("rows", []) if each["side"] == side]
            if not rows:
                self.lack(f"{row.goal(seed)}, with evaluate.implicit_reward: true", f"implicit rewards in {path}")
                continue
            found[seed] = {
                each["prompt_id"]: (each["log_ratio"], np.nan if each["reward"] is None else each["reward"], each["tokens"])
                for each in rows
            }
        return found

    def kept(self, row: FigureRow, iteration: str) -> dict[int, set[str]]:
        """Returns by seed the prompt ids of the offline pairs that an iteration trained on."""
        paths = self.files(row, iteration, "pairs.jsonl")
        return {seed: kept_ids(path.parent.parent, iteration) for seed, path in paths.items()}
