"""Policy + prompt set -> answers.jsonl: `answer_prompts.py runs/<run>/iter<N>/<set>`; keeps its finished shards."""

from functools import partial

from handbook_ext.core.errors import run_main, stage_folder
from handbook_ext.core.jsonl import read_rows, write_rows
from handbook_ext.core.set_records import SetPrompt
from handbook_ext.core.stage import Stage
from handbook_ext.evaluation.set_answers import answered
from handbook_ext.graph.stages_benchmarks import AnswerStage
from handbook_ext.policies.launch import begin
from handbook_ext.policies.source import policy_of
from handbook_ext.sampling.engine import engine_facts, open_engine, shards_of


def main(argv: list[str]) -> None:
    """Answers every prompt of the set, turn by turn."""
    stage = Stage.open(stage_folder(argv), AnswerStage)
    launch = begin()
    settings, decoding = stage.settings, stage.settings.decoding
    source = policy_of(stage, launch)
    if launch.finished(stage):
        return
    encoder = source.encoder(settings.limits.model_dump())
    prompts = read_rows(stage.input("prompts"), SetPrompt)
    with open_engine(
        settings.engine, source, encoder, batch_size=decoding.batch_size, longest=settings.limits.max_length, launch=launch,
        workspace=stage.workspace,
    ) as engine:  # fmt: skip
        answers = answered(
            prompts, engine, encoder, decoding, launch, stage.workspace, seed=settings.seed, name=settings.set,
            cut=partial(shards_of, settings.engine, batch_size=decoding.batch_size, max_new_tokens=decoding.max_new_tokens),
        )  # fmt: skip
    if launch.main:
        write_rows(stage.out, answers)
        turns = [turn for row in answers for turn in row.answers]
        stage.publish(
            {"in": len(prompts), "out": len(answers)}, policy=source.sha256, prompts_cut=encoder.cut_prompts,
            engine=engine_facts(settings.engine.engine), cut_off=sum(turn.finish_reason == "length" for turn in turns),
        )  # fmt: skip
    launch.wait()


if __name__ == "__main__":
    run_main(main)
