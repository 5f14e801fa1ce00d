"""The numbers of a report: reads the evaluations, logs and manifests of finished runs, and summarises them."""

import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from handbook_ext.core.errors import UserError
from handbook_ext.core.records import LABELLER
from handbook_ext.core.stage_settings import read_settings
from handbook_ext.objectives.metrics import Scores, comparable, compare_scores, summarise_scores
from handbook_ext.recipes.settings import FITTED
from handbook_ext.reports.evaluations import Json, judged_by_all, read_evaluation, read_json, read_labelled
from handbook_ext.reports.health import files_of, read_health
from handbook_ext.reports.training_logs import training_log
from handbook_ext.reports.world_health import world_health

STAGES = ("completions", "rankings", "logprobs", "pairs", "policy", "eval")


@dataclass(frozen=True)
class FinishedRun:
    """One seed of one recipe, as its stages left it.

    `policies` maps policy, then decoding, to scores; the policy that the loop starts from comes first. `history` maps an
    iteration to the logged steps of its training, `skipped` names the iterations without an evaluation. Where
    the judge labelled no pair, `labeller` is the ranker that did, and `labelled` has its scores in the form of `policies`.
    `unjudged` prompts of some decoding are left out, since the judge gave a policy's answer to them no readable verdict.
    """

    folder: Path
    recipe: str
    seed: int
    ranker: str
    ranker_id: str
    policies: dict[str, dict[str, Scores]]
    history: dict[str, list[Json]]
    stages: list[Json]
    pairs: list[Json]
    health: list[Json]
    skipped: list[str]
    labeller: str = ""
    labelled: dict[str, dict[str, Scores]] = field(default_factory=dict)
    unjudged: int = 0


def start_of(folder: Path) -> str:
    """Returns the folder of the policy that a run starts from, as its report.yaml has it."""
    return str(read_settings(folder / "report.yaml")["policies"][0])


def read_run(folder: Path, iterations: Sequence[str] | None = None) -> FinishedRun:
    """Returns what a report needs of a run, by default of every iter<N>; raises UserError where evaluations do not compare."""
    if iterations is None:
        iterations = iterations_of(folder)
    start = start_of(folder)
    if not (folder / start / "eval.json").is_file():
        raise UserError(f"{folder}: has no {start}/eval.json; evaluate the starting policy first")
    names = [start, *(name for name in iterations if (folder / name / "eval.json").is_file())]
    initial, evaluator = read_evaluation(folder / start / "eval.json")
    policies = {start: initial}
    for name in names[1:]:
        policies[name], other = read_evaluation(path := folder / name / "eval.json")
        if other != evaluator:
            found, wanted = tuple(other), tuple(evaluator)
            raise UserError(f"{path}: (seed, ranker, judge) is {found}, in {start} {wanted}; evaluate again with one")
        if not comparable(policies[name], initial):
            raise UserError(f"{path}: has not the prompts and decodings of {start}; evaluate both on the same")
    labelled = {name: read_labelled(folder / name / "eval.json") for name in names}
    policies, unjudged = judged_by_all(policies)
    logs = {name: training_log(folder / name / "policy") for name in names[1:]}
    steps = {name: [row for row in rows if "loss" in row and "step" in row] for name, rows in logs.items()}
    history = {name: rows for name, rows in steps.items() if rows}
    stages = [stage for name in ("data", "ranker", "judge", *names) for stage in read_stages(folder / name)]
    pairs = [read_pairs(folder / name / "pairs.jsonl") for name in names if (folder / name / "pairs.jsonl").is_file()]
    trained = [folder / name for name in names if (folder / name / "pairs.manifest.json").is_file()]
    # In the tiny world those before a reported one count too: it tells what the run has sampled so far.
    every = iterations_of(folder)
    world = world_health(folder, every[: max((every.index(name) + 1 for name in names if name in every), default=0)])
    health = [{"iteration": path.name, **read_health(files_of(path)), **world.get(path.name, {})} for path in trained]
    skipped = [name for name in iterations if name not in names]
    recipe = str(read_settings(folder / "report.yaml")["recipe"])
    return FinishedRun(
        folder, recipe, *evaluator, policies, history, stages, pairs, health, skipped, labelled[start][0],
        judged_by_all({name: scores for name, (_, scores) in labelled.items() if scores})[0], unjudged,
    )  # fmt: skip


def iterations_of(folder: Path) -> list[str]:
    """Returns the names of the iterations in a run's folder, in their order."""
    names = [path.name for path in folder.glob("iter*") if re.fullmatch(r"iter\d+", path.name)]
    return sorted(names, key=lambda name: int(name[4:]))  # As text, iter10 would precede iter2.


def judged_by(run: FinishedRun) -> str:
    """Returns the ranker and the temperature of each decoding, in words; runs that are reported together have equal ones."""
    start = next(iter(run.policies.values()))
    # Each seed trains a reward model of its own, whose id holds a hash: seeds agree in the words before it alone.
    ranker_id = FITTED.strip() if run.ranker_id.startswith(FITTED) else run.ranker_id
    decodings = ", ".join(f"{name} at {scores.temperature:g}" for name, scores in start.items())
    return f"{run.ranker}{ranker_id and f' ({ranker_id})'}, {decodings}"


def read_stages(folder: Path) -> list[Json]:
    """Returns one row per manifest in a folder of a run, in the order of the stages; None for what a manifest lacks."""
    stages = []
    for path in [*folder.glob("*.manifest.json"), *folder.glob("*/manifest.json")]:
        artifact = path.parent.name if path.name == "manifest.json" else path.name.removesuffix(".manifest.json")
        manifest = read_json(path)
        row = {"iteration": folder.name, "artifact": artifact, "stage": manifest.get("stage", artifact)}
        row |= {key: (manifest.get("counts") or {}).get(key) for key in ("in", "out", "dropped")}
        row |= {key: manifest.get(key) for key in ("seconds", "hardware", "packages", "seed")}
        stages.append(row | (manifest.get("code") or {}))
    order = {name: index for index, name in enumerate(STAGES)}
    return sorted(stages, key=lambda row: (order.get(row["artifact"], len(order)), row["artifact"]))


def read_pairs(path: Path) -> Json:
    """Returns the number of pairs, the shares of on-policy completions, and the share of swapped labels, of offline ones.

    Raises UserError where a line is broken.
    """
    totals, count, swapped = Counter({"chosen": 0, "rejected": 0}), 0, 0
    with path.open(encoding="utf-8") as lines:
        for count, line in enumerate(lines, start=1):
            try:
                row = json.loads(line)
                swapped += bool(row.get("swapped"))
                for side in ("chosen", "rejected"):
                    totals[side] += row[f"{side}_origin"] == "on_policy"
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise UserError(f"{path}:{count}: is not a pair ({error!r}); delete the file, select again") from error
    shares = {key: n / max(count, 1) for key, n in totals.items()}
    # Only an offline label can have been swapped (label noise); a ranker's verdict on samples has none.
    return {"iteration": path.parent.name, "pairs": count, **shares, "swapped": swapped / max(count - totals["chosen"], 1)}


def group_seeds(runs: Sequence[FinishedRun]) -> list[list[FinishedRun]]:
    """Returns the runs in one list per recipe, in the order of first appearance."""
    return [[run for run in runs if run.recipe == recipe] for recipe in dict.fromkeys(run.recipe for run in runs)]


def summarise(groups: Sequence[Sequence[FinishedRun]], *, title: str, resamples: int, confidence: float) -> Json:
    """Returns all numbers of the report; a group is the seeds of one recipe, ours first.

    resamples, confidence: those of the bootstrap intervals. Raises UserError where the runs were not judged alike.
    """
    ours = groups[0][0]
    for run in (run for group in groups for run in group):
        if (here := judged_by(run)) != (there := judged_by(ours)):
            raise UserError(f"{run.folder}: is judged by {here}, but {ours.folder} by {there}; report them apart")
    reward = "true reward" if ours.ranker == "oracle" else f"reward (by {ours.ranker})"
    bootstrap = {"resamples": resamples, "confidence": confidence}
    recipes = [summarise_recipe(group, **bootstrap) for group in groups]
    beside = [compare_recipes(groups[0], group, **bootstrap) for group in groups[1:]]
    # The decoding of headline and histogram: "sampled" where there is one, or else the first.
    primary = min(recipes[0]["temperatures"], key=lambda key: key != "sampled")
    summary = {"title": title, "ranker": ours.ranker, "reward": reward, "primary": primary, **bootstrap}
    labellers = [run.labeller for group in groups for run in group if run.labeller]
    summary |= {"labeller": labellers[0]} if labellers else {}
    return summary | {"recipes": recipes, "beside": beside}


def summarise_recipe(runs: Sequence[FinishedRun], **bootstrap: Any) -> Json:
    """Returns the numbers of one recipe, for the policies that every seed has; raises UserError where these are not its seeds."""
    if len({run.seed for run in runs}) < len(runs) or len({(run.recipe, *[*run.policies][:1]) for run in runs}) > 1:
        given = ", ".join(f"{run.folder} ({run.recipe}, seed {run.seed})" for run in runs)
        raise UserError(f"{given}: not seeds of one recipe; name each seed once, other recipes after --beside")
    # Means over different sets of seeds would differ by the seeds as well as by the policies.
    names = [name for name in runs[0].policies if all(name in run.policies for run in runs)]
    decodings = list(runs[0].policies[names[0]])
    known = {name for run in runs for name in [*run.policies, *run.skipped]}
    scores = {key: [[run.policies[name][key] for run in runs] for name in names] for key in decodings}
    table = {key: summarise_scores(column, **bootstrap) for key, column in scores.items()}
    if all(run.labelled for run in runs):
        for key in decodings:
            beside = summarise_scores([[run.labelled[name][key] for run in runs] for name in names], **bootstrap)
            table[key] = [own | {LABELLER: other["reward"]} for own, other in zip(table[key], beside, strict=True)]
    return {
        "recipe": runs[0].recipe,
        "start": names[0],
        "folders": [str(run.folder) for run in runs],
        "seeds": [run.seed for run in runs],
        "left_out": [sorted(known - run.policies.keys()) for run in runs],
        "unjudged": [run.unjudged for run in runs],
        "prompts": [len(one.prompt_ids) for one in scores[decodings[0]][0]],
        "temperatures": {key: column[0][0].temperature for key, column in scores.items()},
        "policies": [{"policy": name} | {key: table[key][i] for key in decodings} for i, name in enumerate(names)],
        "stages": [{"seed": run.seed} | row for run in runs for row in run.stages],
        "pairs": [{"seed": run.seed} | row for run in runs for row in run.pairs],
        "health": [{"seed": run.seed} | row for run in runs for row in run.health],
        "training": [
            {"seed": run.seed, "iteration": name, "first": rows[0], "last": rows[-1]}
            for run in runs
            for name, rows in run.history.items()
        ],
    }


def compare_recipes(ours: Sequence[FinishedRun], theirs: Sequence[FinishedRun], **bootstrap: Any) -> Json:
    """Returns win rate and gain by decoding of the last policy that both recipes have, on the seeds and prompts they share.

    No decodings where they share none.
    """
    shared = [name for name in ours[0].policies if all(name in run.policies for run in (*ours, *theirs))]
    seeds = [(our, their) for our in ours for their in theirs if our.seed == their.seed]
    # Reward models of the same kind but other weights have rewards on scales of their own.
    matched = [(our.policies, their.policies) for our, their in seeds if our.ranker_id == their.ranker_id]
    both = [(our[name], their[name]) for our, their in matched for name in shared[-1:]]
    pairs = [pair for pair in both if comparable(*pair)]
    compared = {
        key: compare_scores([our[key] for our, _ in pairs], [their[key] for _, their in pairs], **bootstrap)
        for key in (pairs[0][0] if pairs else ())
    }
    return {"recipe": theirs[0].recipe, "policy": shared[-1:], "seeds": len(pairs), "decodings": compared}
