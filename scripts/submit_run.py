"""The stages that a goal still needs -> jobs of Slurm, each after those that it waits for; prints them with --print.

Make calls this for a goal under CLUSTER=slurm, once scripts/plan_goals.py has written the settings of the stages.
"""

import argparse
import sys
from pathlib import Path

from handbook_ext.core.errors import run_main
from handbook_ext.graph.goals import VARIABLES, plan_goals, runs_folder
from handbook_ext.graph.slurm import FOLDER, jobs_of
from handbook_ext.graph.slurm_queue import read_queue, submit, submitting
from handbook_ext.planning.preflight import unfinished


def main(argv: list[str]) -> None:
    """Submits what is not in the queue yet, and says for each job its id and its log."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("goal", help="a goal of make: a run, or an iteration of one")
    parser.add_argument("--variable", action="append", default=[], metavar="NAME=VALUE", help="a variable as make knows it")
    parser.add_argument("--given", action="append", default=[], metavar="NAME", help="a variable of make's command line")
    parser.add_argument("--print", action="store_true", help="print the scripts, and submit nothing")
    arguments = parser.parse_args(argv)
    variables = dict.fromkeys(arguments.given, "") | dict(each.split("=", 1) for each in arguments.variable)
    variables = {name: value for name, value in variables.items() if name in VARIABLES}
    plan = plan_goals([arguments.goal], variables)
    runs, threads = Path(runs_folder(variables)), variables.get("THREADS", "1")
    [run] = plan.runs.values()
    folder = runs / run.name
    if arguments.print:
        for job in jobs_of(run, unfinished(run, plan.wanted[arguments.goal], runs), str(folder), threads):
            waits = f", after {' '.join(job.after)}" if job.after else ""
            sys.stdout.write(f"# {job.script_file}: {job.artifact}{waits}\n{job.script}\n")
        return
    with submitting(folder):
        # First the queue: what ends between the two looks is finished then, and not missing from both.
        queue = read_queue()
        jobs = jobs_of(run, unfinished(run, plan.wanted[arguments.goal], runs), str(folder), threads)
        new, old = submit(jobs, folder, queue)
    if not jobs:
        sys.stderr.write(f"{arguments.goal} is finished; nothing was submitted\n")
        return
    sys.stderr.write(
        f"{arguments.goal}: {new} submitted, {old} already in the queue; squeue --me shows them, {folder / FOLDER} has scripts "
        "and logs; repeated, this command goes on where they stand\n"
    )


if __name__ == "__main__":
    run_main(main)
