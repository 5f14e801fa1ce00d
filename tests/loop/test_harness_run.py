"""lm-evaluation-harness as a stage of a run: killed and repeated, one process and two, up to date, and stale."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from handbook_ext.evaluation.set_evaluation import SetEvaluation, read_set_evaluation
from tests.evaluation.harness_data import own_tasks
from tests.workspace import MICRO, Workspace

FOLDER = Path("runs/mine-micro/sft/harness")
TIMES = 8  # Of 4 questions with 3 answers each.
RECIPE = f"{MICRO}\nbenchmarks:\n  harness: {{tasks: [own_choice, gsm8k_cot, own_text], include_path: tasks, batch_size: 1}}\n"


def file_goal(space: Workspace, *variables: str) -> str:
    """Returns the one command that make would run for the evaluation."""
    done = space.make("-n", "mine-micro-sft-eval", *variables)
    [command] = [line for line in done.stdout.splitlines() if "scripts/" in line]
    return command


@pytest.fixture(scope="module")
def space(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """A run whose first policy was evaluated, after a kill between two shards."""
    space = Workspace(tmp_path_factory.mktemp("harness"), RECIPE)
    own_tasks(space.folder / "recipes/mine/tasks", times=TIMES)
    *before, command = space.commands("mine-micro-sft-eval")
    assert "scripts/run_harness.py runs/mine-micro/sft/harness" in command
    for each in before:
        assert space.execute(each)[0] == 0
    shards = space.folder / FOLDER / ".eval.json.partial/own_choice/loglikelihood"
    assert space.execute(command, kill_when=(shards / "shard-000002.jsonl").exists)[0] != 0
    assert 3 <= len([*shards.glob("*.jsonl")]) < 3 * 4 * TIMES / 8
    log = space.folder / "resumed"
    status, said = space.execute(command)
    assert status == 0, said
    log.write_text(said)
    return space


def evaluation(space: Workspace) -> SetEvaluation:
    return read_set_evaluation(space.folder / FOLDER / "eval.json")


def test_eval_json_has_a_measure_per_task_and_says_what_was_not_run(space: Workspace) -> None:
    found = evaluation(space)
    choice, gsm8k, text = (found.measures[name] for name in ("own_choice", "gsm8k_cot", "own_text"))
    assert (choice.n, choice.unit, choice.not_run, text.n) == (4 * TIMES, "%", None, 4 * TIMES)
    assert choice.value is not None and 0 <= choice.value <= 100 and choice.standard_error is not None
    assert gsm8k.value is None and gsm8k.n == 0 and "openai/gsm8k" in str(gsm8k.not_run)
    assert (found.set.name, found.set.prompts, found.set.of, found.rows, found.decoding) == ("harness", 64, 64, [], None)
    manifest = json.loads((space.folder / FOLDER / "eval.manifest.json").read_text())
    assert found.policy.sha256 == json.loads((space.folder / "runs/mine-micro/sft/policy/manifest.json").read_text())["policy"]
    assert manifest["harness"]["version"] == manifest["packages"]["lm-eval"] and found.seed == manifest["seed"]
    task = manifest["harness"]["tasks"]["own_choice"]
    assert (task["metric"], task["version"], task["num_fewshot"]) == ("acc,none", 7.0, 0)
    assert {Path(name).name for name in manifest["external"]} >= {"own_choice.yaml", "own_text.yaml", "rows.jsonl"}
    assert (
        "gsm8k_cot not run; to run what can be then, delete runs/mine-micro/sft/harness/eval.json and repeat"
        in (space.folder / "resumed").read_text()
    )


def test_a_repeat_does_nothing_and_a_deleted_result_is_made_of_what_is_kept(space: Workspace) -> None:
    before = evaluation(space)
    command = "python scripts/run_harness.py " + str(FOLDER)
    assert "is up to date" in space.execute(command)[1]
    (space.folder / FOLDER / "eval.json").unlink()
    status, said = space.execute(command)
    assert status == 0 and evaluation(space) == before
    assert said.count("kept from before") == 2 and "harness own_choice: " not in said


@pytest.mark.slow
def test_another_task_file_is_another_evaluation(space: Workspace) -> None:
    task = space.folder / "recipes/mine/tasks/own_text.yaml"
    whole = task.read_text()
    task.write_text(whole.replace('"max_gen_toks": 8', '"max_gen_toks": 2'))
    status, said = space.execute(file_goal(space))
    assert status == 0 and "kept from before" not in said
    task.write_text(whole)
    assert space.execute(file_goal(space))[0] == 0


@pytest.mark.slow
def test_two_processes_share_the_requests_and_find_the_same_as_one(space: Workspace) -> None:
    limit = "SET=benchmarks.harness.limit=30"
    command = file_goal(space, "LAUNCH=ddp-cpu", limit)
    assert "handbook_ext.core.per_device --processes 2" in command
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        ["bash", "-c", command], cwd=space.folder, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    shared = evaluation(space)
    assert done.stderr.count("harness: own_choice ") == 1 and shared.measures["own_choice"].n == 30
    (space.folder / FOLDER / "eval.json").unlink()
    shutil.rmtree(space.folder / FOLDER / ".tasks")
    status, said = space.execute(file_goal(space, limit))
    assert status == 0 and "kept from before" not in said
    assert evaluation(space) == shared
