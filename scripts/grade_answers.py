"""A policy's answers to a prompt set -> eval.json: `grade_answers.py runs/<run>/iter<N>/<set>`; nothing is asked twice."""

from pathlib import Path

from handbook_ext.core.artifacts import read_manifest
from handbook_ext.core.console import say
from handbook_ext.core.errors import UserError, run_main, stage_folder
from handbook_ext.core.jsonl import read_rows, write_json
from handbook_ext.core.set_records import SetAnswer, SetPrompt
from handbook_ext.core.stage import Stage
from handbook_ext.evaluation.set_evaluation import (
    Contamination,
    Decoding,
    EvaluatedPolicy,
    EvaluatedRow,
    EvaluatedSet,
    SetEvaluation,
)
from handbook_ext.evaluation.set_measures import Graded, SetGrader, replies_file
from handbook_ext.graph.stages_benchmarks import GradeStage
from handbook_ext.judging.verdict_cache import VerdictCache


def main(argv: list[str]) -> None:
    """Has the judge grade what it has not graded yet, and writes every measure of the set."""
    stage = Stage.open(stage_folder(argv), GradeStage)
    settings = stage.settings
    # Two policies may answer alike, and an evaluation says whose answers it has graded.
    stage.external = {"policy": read_manifest(stage.input("answers"))["policy"]}
    if settings.length_control is not None and Path(settings.length_control).is_file():
        stage.external[settings.length_control] = stage.hash_of(Path(settings.length_control))
    if stage.finished():
        return
    prompts, answers = read_rows(stage.input("prompts"), SetPrompt), read_rows(stage.input("answers"), SetAnswer)
    start = [row for path in stage.inputs("start_answers") for row in read_rows(path, SetAnswer)]
    asker = f"{settings.policy} {settings.set}"
    grader = SetGrader(settings, prompts, answers, start, lambda kind: VerdictCache(replies_file(stage.run), f"{asker} {kind}"))
    try:
        graded = grader.grade()
        refuse_silence(grader)
    except UserError:
        # For reports, which say how far it came.
        write_json(stage.workspace / "stopped.json", {"replies": grader.replies})
        raise
    evaluation = evaluated(stage, prompts, answers, graded)
    stage.out.write_text(evaluation.model_dump_json(indent=1), encoding="utf-8")
    stage.publish({"in": len(prompts), "out": len(prompts)}, **graded.facts)
    for name, each in evaluation.measures.items():
        value = f"not run: {each.not_run}" if each.value is None else f"{each.value:.2f} {each.unit}"
        missing = f", {each.missing} verdicts missing" if each.missing else ""
        say(f"grade: {asker}: {name} {value}{missing}")


def refuse_silence(grader: SetGrader) -> None:
    """Raises UserError where a judge was asked and has given nothing at all: what answers there is no judge, or is broken."""
    asked = sum(each.asked - each.refused for each in grader.clients)
    if asked and not any(each.from_cache or each.cache.totals()["replies"] for each in grader.clients):
        endpoint = grader.clients[0].endpoint
        raise UserError(
            f"{endpoint.setting}: {endpoint.name} answers, and none of {asked} questions with a reply that can be used; see what "
            "is served there, and run make again"
        )


def evaluated(stage: Stage[GradeStage], prompts: list[SetPrompt], answers: list[SetAnswer], graded: Graded) -> SetEvaluation:
    """Returns the content of eval.json."""
    settings, decoding = stage.settings, stage.settings.decoding
    answered, asked = read_manifest(stage.input("answers")), read_manifest(stage.input("prompts"))
    seen = [prompt.prompt_id for prompt in prompts if prompt.seen]
    rows = [
        EvaluatedRow(
            prompt_id=prompt.prompt_id, category=prompt.category, answers=answer.answers,
            verdicts={name: verdicts[place] for name, verdicts in graded.verdicts.items()},
        )
        for place, (prompt, answer) in enumerate(zip(prompts, answers, strict=True))
    ]  # fmt: skip
    return SetEvaluation(
        policy=EvaluatedPolicy(name=settings.policy, sha256=answered["policy"], checkpoint=settings.checkpoint),
        set=EvaluatedSet(name=settings.set, prompts=len(prompts), of=asked["of"], sha256=asked["sha256"]),
        seed=settings.seed,
        decoding=Decoding(
            temperature=decoding.temperature, top_p=decoding.top_p, max_new_tokens=decoding.max_new_tokens,
            temperatures=decoding.temperatures,
        ),
        contaminated=Contamination(overlap=len(seen), of=len(prompts), prompt_ids=seen),
        measures=graded.measures, rows=rows,
    )  # fmt: skip


if __name__ == "__main__":
    run_main(main)
