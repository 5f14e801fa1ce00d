"""Writes the report of a recipe: one run, or several seeds of it, with other recipes beside.

python scripts/write_report.py runs/tiny-selm
python scripts/write_report.py runs/tiny-selm runs/tiny-selm-seed2 --beside runs/tiny-dpo --out runs/seeds/report
"""

import argparse
import os
from pathlib import Path

from handbook_ext.core.artifacts import manifest_path, sha256_of
from handbook_ext.core.console import results_width, show
from handbook_ext.core.errors import run_main
from handbook_ext.core.goal_progress import PROGRESS
from handbook_ext.core.stage import Stage
from handbook_ext.evaluation.set_evaluation import set_evaluations
from handbook_ext.graph.stages import ReportStage
from handbook_ext.reports.answers import shown_answers
from handbook_ext.reports.endings import WIDTH, report_lines
from handbook_ext.reports.pages import render_report
from handbook_ext.reports.reproduction import reproduction
from handbook_ext.reports.run_report import group_seeds, read_run, start_of, summarise
from handbook_ext.reports.run_sets import sets_of
from handbook_ext.reports.training_pairs import shown_pairs


def open_stage(arguments: argparse.Namespace) -> Stage[ReportStage]:
    """Returns the report's stage: that of the run, or of several runs with the artifacts of all as inputs."""
    stage = Stage.open(arguments.runs[0], ReportStage)
    if len(arguments.runs) == 1 and not (arguments.beside or arguments.iterations or arguments.out):
        return stage
    starts = {run: start_of(run) for run in (*arguments.runs, *arguments.beside)}
    iterations = [name for name in arguments.iterations or stage.settings.policies[1:] if name not in starts.values()]
    policies = [starts[arguments.runs[0]], *iterations]
    artifact = arguments.out or stage.artifact
    # Win rates are against the policy that a run starts from, so its evaluation is read whatever is asked for.
    folders = [run / name for run, start in starts.items() for name in (start, *iterations)]
    paths = [folder / part for folder in folders for part in ("eval.json", "policy", "pairs.jsonl")]
    inputs = {"artifacts": [os.path.relpath(path, artifact.parent) for path in paths if manifest_path(path).is_file()]}
    shown = [run.name for run in arguments.runs]
    beside = [run.name for run in arguments.beside]
    changes = {"inputs": inputs, "policies": policies, "shown": shown, "beside": beside}
    return Stage(artifact, stage.settings.model_copy(update=changes))


def main(argv: list[str]) -> None:
    """Reads the runs, writes the report, prints the headline table and where the report lies."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, help="run folders: the seeds of one recipe")
    parser.add_argument("--beside", nargs="+", type=Path, default=[], help="run folders of other recipes")
    parser.add_argument("--iterations", nargs="+", help="the iterations, in order; by default all that were evaluated")
    parser.add_argument("--out", type=Path, help="folder of the report; by default report/ in the first run")
    arguments = parser.parse_args(argv)
    stage = open_stage(arguments)
    # Evaluations on prompt sets are made whenever somebody asks for them: a report is made again where they have changed.
    stage.external = {
        os.path.relpath(path, stage.run): sha256_of(path) for run in arguments.runs for path in set_evaluations(run).values()
    }
    if not stage.finished():
        write_report(stage, arguments)
    # Make shows the results once the whole goal is reached; those of several runs are a goal of their own.
    if PROGRESS not in os.environ or arguments.out is not None:
        for line in [*report_lines(stage.artifact, results_width(WIDTH)), f"report: {stage.artifact / 'report.html'}"]:
            show(line)


def write_report(stage: Stage[ReportStage], arguments: argparse.Namespace) -> None:
    """Reads the runs and publishes their report."""
    iterations = stage.settings.policies[1:]
    groups = [[read_run(folder, iterations) for folder in arguments.runs]]
    groups += group_seeds([read_run(folder, iterations) for folder in arguments.beside])
    report = stage.settings.report
    title = stage.settings.title + (f", {len(arguments.runs)} seeds" if len(arguments.runs) > 1 else "")
    summary = summarise(groups, title=title, resamples=report.bootstrap_resamples, confidence=report.confidence)
    first = groups[0][0]
    last = [*first.policies][-1]
    summary["answers"] = shown_answers(first.folder, list(dict.fromkeys([*[*first.policies][:1], last])), summary["primary"])
    summary["training_pairs"] = shown_pairs(first.folder / last)
    summary["paper"] = reproduction(first.folder, first.recipe)
    summary["sets"] = sets_of(first.folder, first.policies)
    files = render_report(groups, summary)
    stage.out.mkdir(exist_ok=True)
    for name, content in files.items():
        (stage.out / name).write_bytes(content)
    shown = sum(map(len, groups))
    stage.publish({"in": shown, "out": shown})


if __name__ == "__main__":
    run_main(main)
