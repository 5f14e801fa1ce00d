"""Make looks at times alone: planning lets it see each artifact that other settings made. Names of runs are their settings'."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

import pytest

from handbook_ext.core.artifacts import manifest_path
from handbook_ext.core.errors import UserError
from handbook_ext.core.stage import Stage
from handbook_ext.graph.goals import Plan, plan_goals
from handbook_ext.graph.makefile import write_run
from handbook_ext.graph.stages import DataStage, SFTStage
from handbook_ext.recipes.run import Run
from tests.recipe_folder import enter_folder, mine

RUN = Path("runs/mine-selm")
SETTINGS, POLICY = RUN / "sft/sft.yaml", RUN / "sft/policy"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder of a test."""
    return enter_folder(tmp_path, monkeypatch)


def epochs(number: int) -> Run:
    return mine(f"sft: {{num_train_epochs: {number}}}\n")


def opened() -> Stage[SFTStage]:
    """The SFT stage with an input that is there already."""
    rows = RUN / "data/rows"
    if not manifest_path(rows).is_file():
        stage = Stage.open(RUN, DataStage)
        assert not stage.finished()
        stage.out.mkdir()
        (stage.out / "sft.jsonl").write_text("{}\n")
        stage.publish({"in": 1, "out": 1})
    return Stage.open(RUN, SFTStage)


def finish(stage: Stage[SFTStage], text: str = "weights") -> None:
    assert not stage.finished()
    publish(stage, text)


def publish(stage: Stage[SFTStage], text: str = "weights") -> None:
    stage.out.mkdir()
    for name in ("model.safetensors", "config.json"):
        (stage.out / name).write_text(text)
    stage.publish({"in": 1, "out": 1})


def make_would_run() -> bool:
    return SETTINGS.stat().st_mtime_ns > manifest_path(POLICY).stat().st_mtime_ns


def test_a_recipe_that_is_changed_and_planned_while_a_stage_runs_makes_the_stage_again(folder: Path) -> None:
    write_run(epochs(1), Path("runs"))
    stage = opened()
    assert not stage.finished()
    write_run(epochs(2), Path("runs"))
    publish(stage)
    assert not make_would_run()  # By the times it is finished, and was made by other settings.
    write_run(epochs(2), Path("runs"))
    assert make_would_run()
    finish(opened())
    for _ in range(2):
        write_run(epochs(2), Path("runs"))
        assert not make_would_run()


def test_an_artifact_whose_clock_was_ahead_is_made_again(folder: Path) -> None:
    write_run(epochs(1), Path("runs"))
    finish(opened())
    ahead = time.time_ns() + 300_000_000_000
    for path in (POLICY, manifest_path(POLICY)):
        os.utime(path, ns=(ahead, ahead))
    write_run(epochs(2), Path("runs"))
    assert make_would_run()


def test_settings_of_the_very_time_of_what_other_settings_made_are_newer(folder: Path) -> None:
    """Make runs a stage for a newer file alone; clocks of some file systems tick in seconds."""
    write_run(epochs(1), Path("runs"))
    stage = opened()
    assert not stage.finished()
    write_run(epochs(2), Path("runs"))
    publish(stage)
    for path in (SETTINGS, POLICY, manifest_path(POLICY)):
        os.utime(path, ns=(1_000_000_000, 1_000_000_000))
    write_run(epochs(2), Path("runs"))
    assert make_would_run()


def test_an_artifact_of_another_run_is_made_again(folder: Path) -> None:
    write_run(epochs(2), Path("runs"))
    finish(opened())
    shutil.copytree(POLICY, "elsewhere")
    shutil.rmtree(RUN)
    write_run(epochs(1), Path("runs"))
    opened()
    shutil.copytree("elsewhere", POLICY)
    write_run(epochs(1), Path("runs"))
    assert make_would_run()


@pytest.mark.parametrize("damage", ["", "[]", "{}", '{"stage": "sft", "sha256"', "\x00"])
def test_a_damaged_manifest_of_its_own_is_an_artifact_to_make_again(folder: Path, damage: str) -> None:
    write_run(epochs(1), Path("runs"))
    finish(opened())
    manifest_path(POLICY).write_text(damage)
    write_run(epochs(1), Path("runs"))
    finish(opened(), "anew")
    assert opened().finished()


@pytest.mark.parametrize("damage", ["", "[]", "null", "{"])
def test_a_damaged_record_of_a_workspace_or_of_hashes_is_forgotten(folder: Path, damage: str) -> None:
    write_run(epochs(1), Path("runs"))
    stage = opened()
    assert not stage.finished()
    stage.release()
    (stage.workspace / "stage.json").write_text(damage)
    (RUN / ".hashes.json").write_text(damage)
    again = opened()
    assert len(again.hash_of(RUN / "run.mk")) == 64
    finish(again)
    assert opened().finished()


def test_a_workspace_that_a_killed_publication_left_is_removed(folder: Path) -> None:
    write_run(epochs(1), Path("runs"))
    finish(opened())
    left = opened().workspace
    (left / "replaced").mkdir(parents=True)
    (left / "replaced/model.safetensors").write_text("old")
    assert opened().finished()
    assert not left.exists()
    (left / "replaced").mkdir(parents=True)
    (left / "replaced/model.safetensors").write_text("old")
    manifest_path(POLICY).unlink()
    finish(opened())
    left.touch()  # And whatever else lies there.
    assert opened().finished()


def planned(*goals: str, **variables: str) -> Plan:
    return plan_goals(goals, variables, list(variables))


def test_a_file_of_a_run_is_asked_for_under_what_made_the_run(folder: Path) -> None:
    mine("seed: 1\n")
    file = "iter1/pairs.jsonl"
    name = next(iter(planned("mine-selm-seed2", SET="train.beta=0.5").runs))
    assert name == "mine-selm+train.beta-0.5-seed2"
    assert list(planned(f"runs/{name}/{file}", SET="train.beta=0.5").runs) == [name]
    for goal, variables in ((f"runs/mine-selm/{file}", {"SET": "train.beta=0.5"}), (f"runs/{name}/{file}", {})):
        with pytest.raises(UserError, match="is a file of another run than SET and DATA make here: theirs is runs/mine-selm"):
            planned(goal, **variables)


@pytest.mark.parametrize("goal", ["mine-selm-why-iter1", "mine-selm-report-iter1", "mine-selm-why-report"])
def test_a_goal_has_one_suffix(folder: Path, goal: str) -> None:
    mine("seed: 1\n")
    with pytest.raises(UserError, match=r"no recipe is called|is a goal of make"):
        planned(goal)


def test_a_seed_counts_once(folder: Path) -> None:
    mine("seed: 2\n")
    with pytest.raises(UserError, match=r"selm.yaml:2: mine-selm has seed 2 by itself and -seed2 under SEEDS=2; give the recipe"):
        planned("mine-selm-seeds", SEEDS="2")
    planned("mine-selm-seeds", SEEDS="1")
    mine("seed: 1\n")
    with pytest.raises(UserError, match="has seed 2 by itself and -seed2 under SEEDS=3"):
        planned("mine-selm-seeds", SET="seed=2", SEEDS="3")
    with pytest.raises(UserError, match="BESIDE: mine-selm is a run of mine-selm-seeds itself"):
        planned("mine-selm-seeds", BESIDE="mine-selm")
    Path("recipes/tables").mkdir()
    Path("recipes/tables/t.yaml").write_text("{title: T, source: x, rows: [{name: a, recipe: mine-selm, set: {seed: 2}}]}")
    with pytest.raises(UserError, match="has seed 2 by itself"):
        planned("table-t", SEEDS="2")


def test_what_is_set_never_looks_like_a_seed(folder: Path) -> None:
    mine("seed: 1\n")
    [seeded], [titled] = (
        planned(goal, SET=f"report.title={title}").runs for goal, title in (("mine-selm-seed7", "a"), ("mine-selm", "a-seed7"))
    )
    assert seeded == "mine-selm+report.title-a-seed7"
    assert titled.startswith("mine-selm+report.title-a-seed7-") and titled != seeded


def test_a_recipe_called_like_a_variant_of_another_is_refused(folder: Path) -> None:
    mine("variants: {hot: {train: {beta: 0.9}}}\n", "v")
    Path("recipes/mine/v-hot.yaml").write_text("base: ../tiny/base.yaml\n")
    with pytest.raises(UserError, match=r"'mine-v-hot' is recipes/mine/v-hot.yaml, and also the variant hot of recipes/mine/v"):
        planned("mine-v-hot")
    planned("mine-v")


def test_one_run_on_gpus_has_all_stages_of_a_call_made_one_at_a_time(folder: Path) -> None:
    mine("launch: gpu\n", "on-gpu")
    mine("seed: 1\n")
    assert planned("mine-selm").lines[-1] == "MAKEFLAGS += -j$(JOBS)"
    for goals in (("mine-selm", "mine-on-gpu"), ("mine-on-gpu",)):
        assert planned(*goals).lines[-1] == ".NOTPARALLEL:"


def test_processes_on_a_cpu_have_a_thread_each_and_a_lone_one_those_of_the_machine(folder: Path) -> None:
    small = "sft: {per_device_train_batch_size: 8}\ntrain: {per_device_train_batch_size: 8}\n"
    for launch, there in (("cpu", False), ("ddp-cpu", True)):
        write_run(mine(f"{small}launch: {launch}\n"), Path("runs"))
        assert ("\tOMP_NUM_THREADS=$(THREADS) $(" in (RUN / "run.mk").read_text()) is there


def test_a_check_looks_for_what_the_whole_run_would_lack(folder: Path) -> None:
    mine("seed: 1\n")
    assert ("mine-selm", "report") in planned("mine-selm-check").wanted["mine-selm-check"]


def test_a_set_that_is_named_twice_is_evaluated_on_once(folder: Path) -> None:
    mine("benchmarks: {sets: {small: {source: test, measures: [single]}}}\n")
    [run] = planned("mine-selm-eval", SETS="small small").runs.values()
    assert list(run.sets) == ["small"]


def test_a_plan_for_some_gpus_does_not_hold_the_recipes_own_launch_to_its_batches(folder: Path) -> None:
    with pytest.raises(UserError, match="cannot be divided by 8 processes"):
        mine("launch: ddp\n")
    with pytest.raises(UserError, match="cannot be divided by 8 processes"):
        planned("mine-selm-plan")
    assert planned("mine-selm-plan", GPUS="1").planned
