"""Policy -> eval.json of academic benchmarks, by lm-evaluation-harness: `run_harness.py runs/<run>/<policy>/harness`."""

import json

from handbook_ext.core.console import say
from handbook_ext.core.errors import run_main, stage_folder
from handbook_ext.core.records import content_id
from handbook_ext.core.stage import Stage
from handbook_ext.evaluation.harness import KEPT, Bench, own_task_hashes, run_harness
from handbook_ext.evaluation.harness_measures import facts_of, harness_evaluation
from handbook_ext.evaluation.set_evaluation import EvaluatedPolicy
from handbook_ext.graph.stages_benchmarks import HarnessStage
from handbook_ext.policies.launch import begin
from handbook_ext.policies.source import policy_of


def main(argv: list[str]) -> None:
    """Runs each task of the settings; one whose data cannot be had here is left out with the reason."""
    stage = Stage.open(stage_folder(argv), HarnessStage)
    launch = begin()
    settings = stage.settings
    source = policy_of(stage, launch)
    stage.external |= launch.first_alone(lambda: own_task_hashes(settings.harness, stage.hash_of))
    if launch.finished(stage):
        return
    determined_by = content_id(stage.hashes, stage.external, settings.model.model_dump(mode="json"), settings.engine.model_dump())
    bench = Bench(launch, settings.seed, stage.workspace, stage.artifact.parent / KEPT, determined_by)
    results = run_harness(source, settings.harness, bench, settings.engine)
    if launch.main:
        policy = EvaluatedPolicy(name=settings.policy, sha256=source.sha256, checkpoint=settings.checkpoint)
        found = harness_evaluation(policy, results, seed=settings.seed)
        stage.out.write_text(json.dumps(found.model_dump(), indent=1), encoding="utf-8")
        asked, measured = found.set.of, found.set.prompts
        stage.publish({"in": asked, "out": measured, "dropped": {"beyond limit": asked - measured}}, harness=facts_of(results))
        absent = [each.task for each in results if each.not_run is not None]
        if absent:
            names = ", ".join(absent)
            say(f"harness: {names} not run; to run what can be then, delete {stage.artifact} and repeat")
    launch.wait()


if __name__ == "__main__":
    run_main(main)
