"""The runs behind a planted difference: read seed by seed, held to one recipe per arm, and written down for others to check."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from handbook_ext.core.artifacts import read_manifest
from handbook_ext.core.errors import UserError
from handbook_ext.core.stage_settings import read_settings
from handbook_ext.objectives.metrics import FloatArray
from handbook_ext.recipes.table_rows import TableRow
from handbook_ext.reports.evaluations import Json
from handbook_ext.reports.settings_diff import facts_of, read_manifests, settings_of
from handbook_ext.reports.tables import Measured, measure

SEEDED = {"seed", "stages"}
"""What of a run's settings differs between its seeds, or tells of evaluations besides those that are read here."""


@dataclass(frozen=True)
class Arm:
    """The runs of one recipe: as a table measures them, and a row for each seed, in the order of their folders."""

    name: str
    measured: Measured
    rows: list[Json]
    overrides: list[str]

    @property
    def seeds(self) -> list[int]:
        """Returns the seeds of its runs."""
        return [each.seed for each in self.measured.evaluators]

    @property
    def decoding(self) -> str:
        """Returns the decoding by which tables judge claims: samples where there are any."""
        return min(self.measured.scores, key=lambda name: name == "greedy")


def read_arm(name: str, folders: Sequence[Path]) -> Arm:
    """Returns an arm from its run folders: the last policy of each, and the one that it started from.

    Raises UserError where two runs have one seed, other settings than the seed apart, or no finished evaluation.
    """
    settings = [read_settings(folder / "report.yaml") for folder in folders]
    ends = {(str(each["policies"][0]), str(each["policies"][-1])) for each in settings}
    if len(ends) > 1:
        raise UserError(f"{name}: its runs go from and to other policies ({sorted(ends)}); name the seeds of one recipe")
    [(start, last)] = ends
    recipe = str(settings[0]["recipe"])
    measured = measure(TableRow(name=name, recipe=recipe), folders, start, last)
    rows = [_row_of(name, recipe, folder, measured, place, start) for place, folder in enumerate(folders)]
    arm = Arm(name, measured, rows, [str(each) for each in settings[0].get("overrides", [])])
    if len(set(arm.seeds)) < len(arm.seeds):
        raise UserError(f"{name}: seeds {' '.join(map(str, arm.seeds))}: one is there twice; name each once")
    if odd := [row["run"] for row in rows if row["settings"] != rows[0]["settings"]]:
        raise UserError(f"{name}: {', '.join(odd)} has other settings than {rows[0]['run']}; make the arm's runs with one recipe")
    return arm


def check_apart(better: Arm, worse: Arm) -> None:
    """Raises UserError where the arms share a seed, whose runs may share artifacts, or another judge marked one of them."""
    if shared := sorted({*better.seeds} & {*worse.seeds}):
        raise UserError(f"both arms have seed {shared[0]}; give each seeds of its own, since runs of one seed share their start")
    judges = {each[1:] for arm in (better, worse) for each in arm.measured.evaluators}
    if len(judges) > 1:
        raise UserError(f"the runs were judged by {' and '.join(sorted(' '.join(each).strip() for each in judges))}; by one only")


def prompt_rewards(arm: Arm) -> dict[str, FloatArray]:
    """Returns the rewards of each run, (prompts,) in the order of prompt ids: `better.seed3.sampled.iter3` and so on."""
    found = {}
    for place, row in enumerate(arm.rows):
        for policy, scores in zip(
            (row["initial_policy"], row["policy"]), (arm.measured.initial_scores, arm.measured.scores), strict=True
        ):
            for decoding, each in scores.items():
                found[f"{arm.name}.seed{row['seed']}.{decoding}.{policy}"] = each[place].rewards
    return found


def in_words(arm: Arm) -> str:
    """Returns an arm's mean rewards over its seeds in a sentence: last policy and start, each with the spread of the seeds."""
    told = []
    for policy in (arm.rows[0]["policy"], arm.rows[0]["initial_policy"]):
        means = np.array([row["rewards"][arm.decoding][policy] for row in arm.rows])
        told.append(f"{policy} {means.mean():.3f} (standard deviation over seeds {means.std(ddof=1):.3f})")
    return f"{arm.name}: {arm.rows[0]['recipe']}, {len(arm.rows)} seeds, mean reward {arm.decoding}: {', '.join(told)}"


def command_of(better: Arm, worse: Arm) -> str:
    """Returns the goal of make that makes the runs of two arms and measures them."""
    recipes = " ".join(arm.rows[0]["recipe"].partition("+")[0] for arm in (better, worse))
    tried = f' SET="{" ".join(better.overrides)}"' if better.overrides else ""
    return f'make planted OF="{recipes}" SEEDS={len(better.rows)}{tried}'


def _row_of(name: str, recipe: str, folder: Path, measured: Measured, place: int, start: str) -> Json:
    """Returns what is written down of a seed: its settings' digest, the key of its evaluation, what made it, its mean rewards."""
    policy = measured.policy
    # Evaluations on the way are made by some goals and not by others, and say nothing of the last policy.
    manifests = [
        (where, each) for where, each in read_manifests(folder) if each["stage"] != "evaluate" or where in (start, policy)
    ]
    settings = {key: value for key, value in settings_of(manifests).items() if key not in SEEDED}
    return {
        "arm": name, "recipe": recipe, "seed": measured.evaluators[place].seed, "run": folder.name,
        "settings": hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest(),
        "key": read_manifest(folder / policy / "eval.json")["key"],
        "made": {key: value for key, value in facts_of(manifests).items() if key.split(".")[0] in ("code commit", "hardware")},
        "initial_policy": start, "policy": policy, "prompts": len(next(iter(measured.scores.values()))[place].prompt_ids),
        "rewards": {
            decoding: {policy: float(measured.scores[decoding][place].rewards.mean()),
                       start: float(measured.initial_scores[decoding][place].rewards.mean())}
            for decoding in measured.scores
        },
    }  # fmt: skip
