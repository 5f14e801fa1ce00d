"""What trials came to: the reward of each on its spare seeds, and which of them failed.

All trials of a method answer the same held-out prompts of each seed. Those of a spare seed are drawn anew, as those of every
seed are, so a table's are others, but for the few that two draws from one world have in common.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from handbook_ext.core.artifacts import finished_manifest
from handbook_ext.core.errors import UserError
from handbook_ext.graph.run_rules import run_rules
from handbook_ext.objectives.metrics import Scores
from handbook_ext.recipes.run import Run
from handbook_ext.recipes.trials import Method, Trial, artifact_of
from handbook_ext.recipes.tuned import SeedOfTrial, TrialRecord
from handbook_ext.reports.evaluations import Evaluator, judged_by_all, read_evaluation

DIVERGED = ("has diverged", "the run stops here")
"""Words of the errors by which training, selection and a recipe's limits end a run that its settings have spoilt."""
DIGITS = 6  # Of a reward, in the file.


@dataclass(frozen=True)
class Measure:
    """What the trials of a seed were compared by: a decoding, the kind of judge, and the number of held-out prompts."""

    decoding: str
    judge: str
    prompts: int

    @property
    def words(self) -> str:
        """Returns it as a reader is told."""
        reward = "true reward" if self.judge == "oracle" else f"reward of the {self.judge.replace('_', ' ')}"
        return f"mean {reward}, {self.decoding}, of {self.prompts} held-out prompts of each seed"


@dataclass(frozen=True)
class Outcome:
    """The trials of a method: their records, or in `unfinished` the run folders of what is still to be made."""

    method: Method
    trials: tuple[TrialRecord, ...] = ()
    unfinished: tuple[Path, ...] = ()
    measure: Measure | None = None


def outcome_of(method: Method, runs: Path, root: Path) -> Outcome:
    """Returns what the trials of a method came to; `runs` is the folder of all runs.

    Raises UserError where trials of one seed were not evaluated alike.
    """
    before = method.failed_before(root)
    failed: dict[tuple[str, int], str] = {}
    found: dict[int, dict[str, tuple[dict[str, Scores], Evaluator]]] = {}
    unfinished = []
    for trial in method.trials:
        for run in trial.runs:
            folder, seed = runs / run.name, run.settings.seed
            path = folder / artifact_of(run)
            if finished_manifest(path) is not None:
                found.setdefault(seed, {})[trial.text] = read_evaluation(path)
            elif why := diverged(run, folder) or before.get((trial.text, seed)):
                failed[trial.text, seed] = why
            else:
                unfinished.append(folder)
    if unfinished:
        return Outcome(method, unfinished=tuple(unfinished))
    judged = {seed: _judged(seed, trials) for seed, trials in found.items()}
    means = {(trial, seed): each for seed, (_, trials) in judged.items() for trial, each in trials.items()}
    records = tuple(_record(trial, means, failed) for trial in method.trials)
    return Outcome(method, records, measure=next((measure for measure, _ in judged.values()), None))


def diverged(run: Run, folder: Path) -> str | None:
    """Returns the line by which a stage of a run has ended because its settings are no good; None where none has.

    The last attempt of a stage that is not finished counts, as its log has it. What a full disk, a kill or a bug ended is made
    again, and is no finding about the settings.
    """
    for rule in run_rules(run):
        log = (folder / rule.settings_file).with_suffix(".log")
        if not log.is_file() or finished_manifest(folder / rule.artifact) is not None:
            continue
        attempt = re.split(r"^--- ", log.read_text(encoding="utf-8", errors="replace"), flags=re.MULTILINE)[-1]
        errors = [line.removeprefix("error: ") for line in attempt.splitlines() if line.startswith("error: ")]
        if errors and any(words in errors[-1] for words in DIVERGED):
            return errors[-1].replace(f"{folder}/", "")  # The file goes with the repository, and to other machines.
    return None


def _judged(
    seed: int, trials: Mapping[str, tuple[dict[str, Scores], Evaluator]]
) -> tuple[Measure, dict[str, tuple[float, float]]]:
    """Returns what a seed's trials are compared by, and reward and tokens of each, on the prompts where all have a verdict."""
    evaluators = {evaluator for _, evaluator in trials.values()}
    asked = {tuple((name, one.temperature, one.prompt_ids) for name, one in scores.items()) for scores, _ in trials.values()}
    if len(evaluators) > 1 or len(asked) > 1:
        raise UserError(f"seed {seed}: its trials have not the same judge, prompts and decodings; evaluate all alike")
    scores, _ = judged_by_all({name: scores for name, (scores, _) in trials.items()})
    # As in tables: by samples where there are any, since greedy answers show one mode of the policy.
    decoding = min(next(iter(scores.values())), key=lambda name: name == "greedy")
    kept = {name: one[decoding] for name, one in scores.items()}
    measure = Measure(decoding, evaluators.pop().ranker, len(next(iter(kept.values())).prompt_ids))
    return measure, {name: (float(one.rewards.mean()), float(one.tokens.mean())) for name, one in kept.items()}


def _record(
    trial: Trial, means: Mapping[tuple[str, int], tuple[float, float]], failed: Mapping[tuple[str, int], str]
) -> TrialRecord:
    """Returns a trial as the file has it; where a seed failed it has no mean, and so counts as the least."""
    seeds = []
    for seed in (run.settings.seed for run in trial.runs):
        if (trial.text, seed) in failed:
            seeds.append(SeedOfTrial(seed=seed, failed=failed[trial.text, seed]))
        else:
            reward, tokens = means[trial.text, seed]
            seeds.append(SeedOfTrial(seed=seed, reward=round(reward, DIGITS), tokens=round(tokens, 2)))
    rewards = [each.reward for each in seeds if each.reward is not None]
    whole = len(rewards) == len(seeds)
    return TrialRecord(set=trial.point, reward=round(fmean(rewards), DIGITS) if whole else None, seeds=seeds)
