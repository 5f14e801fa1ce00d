"""Answers of policies to AlpacaEval's prompts -> matrix.json: what each wins over each other (SELM, figure 2).

`compare_answers.py runs/zephyr-selm runs/zephyr-dpo --set alpaca`: all policies of the runs that have answered the set.
"""

import argparse
import os
import sys
from dataclasses import asdict
from pathlib import Path

from handbook_ext.core.artifacts import read_manifest, sha256_of
from handbook_ext.core.errors import UserError, run_main
from handbook_ext.core.jsonl import read_rows, write_json
from handbook_ext.core.set_records import SetAnswer, SetPrompt
from handbook_ext.core.stage import Stage
from handbook_ext.core.stage_settings import read_settings_as
from handbook_ext.data.prompt_sets import fetched
from handbook_ext.evaluation.alpaca_eval import AlpacaJudge, Outputs, pairwise_matrix
from handbook_ext.evaluation.set_measures import endpoint_of, replies_file
from handbook_ext.graph.folders import answers_of, check_matrix
from handbook_ext.graph.stages_benchmarks import GradeStage, MatrixStage
from handbook_ext.judging.verdict_cache import VerdictCache

MATRIX = "matrix"


def main(argv: list[str]) -> None:
    """Has the judge of the first run's set compare every two policies once, and keeps what it has replied."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", nargs="*", type=Path, help="folders of runs")
    parser.add_argument("--set", required=True, help="a prompt set that their policies have answered, such as alpaca")
    arguments = parser.parse_args(argv)
    check_matrix(arguments.runs, arguments.set)
    answers = [path for run in arguments.runs for path in answers_of(run, arguments.set)]
    prompts = [run / "prompts" / arguments.set / "prompts.jsonl" for run in arguments.runs]
    if len({read_manifest(path)["sha256"] for path in prompts}) > 1:
        raise UserError(f"{' and '.join(map(str, prompts))} differ; compare runs that were evaluated on the same prompts")
    graded, _ = read_settings_as(GradeStage, answers[0].parent / GradeStage.file)
    if graded.judge is None:
        raise UserError("no judge compares the policies; name one in benchmarks.judge, and evaluate again")
    folder = arguments.runs[0].parent / MATRIX / arguments.set / "+".join(run.name for run in arguments.runs)
    names = [f"{path.parts[-4]} {path.parts[-3]}" for path in answers]
    inputs = {"prompts": os.path.relpath(prompts[0], folder), "answers": [os.path.relpath(path, folder) for path in answers]}
    settings = MatrixStage(
        stage=MATRIX, recipe=arguments.runs[0].name, inputs=inputs, set=arguments.set, policies=names,
        length_control=graded.length_control, judge=graded.judge,
    )  # fmt: skip
    stage = Stage(folder / MatrixStage.artifact, settings)
    if graded.length_control is not None and Path(graded.length_control).is_file():
        stage.external = {graded.length_control: sha256_of(Path(graded.length_control))}
    if not stage.finished():
        judge = AlpacaJudge(graded.judge.model, endpoint_of(graded.judge), cache=VerdictCache(replies_file(folder), MATRIX))
        instructions = [row.prompt[-1]["content"] for row in read_rows(prompts[0], SetPrompt)]
        policies = [
            Outputs(name, [row.answers[0].text for row in read_rows(path, SetAnswer)])
            for name, path in zip(names, answers, strict=True)
        ]
        control = None if graded.length_control is None else fetched(graded.length_control)
        matrix = pairwise_matrix(judge, instructions, policies, gamed=control)
        write_json(
            stage.out, {**asdict(matrix), "set": arguments.set, "judge": graded.judge.model, "n": len(instructions)}, indent=1
        )
        stage.publish({"in": len(names), "out": len(names)}, **judge.facts())
    sys.stdout.write(f"{MATRIX}: {stage.artifact}\n")


if __name__ == "__main__":
    run_main(main)
