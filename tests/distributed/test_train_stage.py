"""The training stage under each kind of launch, on two CPU processes: the losses of one process, killed and resumed alike."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from handbook_ext.core.artifacts import read_manifest
from handbook_ext.core.machine import has_package
from tests.workspace import MICRO, ROOT, Workspace, changed

pytestmark = pytest.mark.slow
LIMIT = 300  # Seconds: a hang is a failure.
STEPS = 12
RECIPE = changed(MICRO, train="alpha: 0.1, num_train_epochs: 4, learning_rate: 5e-4").replace(
    "per_device_train_batch_size: 4, save_steps: 1", "per_device_train_batch_size: 2, save_steps: 2"
)
RECIPES = {"whole": changed(RECIPE, train="keep_at: [0.1, 0.5]"), "lora": RECIPE + "model: {lora: {r: 4, lora_alpha: 8}}\n"}
DEEPSPEED = pytest.mark.skipif(not has_package("deepspeed"), reason="the extra gpu is not installed: make test-distributed")
LAUNCHES = ["ddp-cpu", "fsdp2", pytest.param("zero2-cpu", marks=DEEPSPEED), pytest.param("zero3-cpu", marks=DEEPSPEED)]
POLICY = "runs/mine-micro/iter0/policy"


@pytest.fixture(scope="module", params=["whole", pytest.param("lora", marks=DEEPSPEED)])  # Each takes minutes.
def prepared(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """A workspace in which nothing but the training of iter0 is missing."""
    workspace = Workspace(tmp_path_factory.mktemp(request.param), RECIPES[request.param])
    workspace.run("runs/mine-micro/iter0/logprobs/manifest.json")
    return workspace


@pytest.fixture(scope="module")
def alone(prepared: Workspace) -> Path:
    """The policy that one process trains there, in a copy."""
    workspace = copied(prepared, prepared.folder.with_name(f"{prepared.folder.name}-alone"))
    assert trained(workspace, "cpu")[0] == 0
    return workspace.folder / POLICY


def copied(prepared: Workspace, folder: Path) -> Workspace:
    """A copy of a workspace and its runs."""
    recipe = (prepared.folder / "recipes" / "mine" / "micro.yaml").read_text()
    workspace = Workspace(folder, recipe)
    shutil.copytree(prepared.folder / "runs", folder / "runs", copy_function=shutil.copy2)
    return workspace


def command_of(workspace: Workspace, launch: str, policy: str = POLICY) -> list[str]:
    """The words by which make trains under a launch; FSDP2 takes CPU processes for accelerators."""
    kind, _, processes = launch.partition(" x ")
    words = [f"LAUNCH={kind}", f"GPUS={processes or 2}"] if kind != "cpu" else ["LAUNCH=cpu"]
    launch, name = kind, f"{policy}/manifest.json"
    done = workspace.make("-n", name, *words)
    [line] = [line for line in done.stdout.splitlines() if "scripts/" in line]
    command = shlex.split(line)
    if launch == "fsdp2":
        place = next(place for place, word in enumerate(command) if word.startswith("scripts/"))
        command[place:place] = ["--mixed_precision", "no", str(ROOT / "tests" / "distributed" / "fsdp2_on_cpu.py")]
    return [word for word in command if not word.startswith("OMP_")]


def started(workspace: Workspace, launch: str, policy: str = POLICY) -> subprocess.Popen[str]:
    """Starts the training under a launch."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path]), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command_of(workspace, launch, policy), cwd=workspace.folder, env=environment, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip


def trained(workspace: Workspace, launch: str, policy: str = POLICY) -> tuple[int, str]:
    """Exit status and words of a training under a launch; fails where it does not end in time."""
    process = started(workspace, launch, policy)
    try:
        _, said = process.communicate(timeout=LIMIT)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        pytest.fail(f"{launch} hung for {LIMIT} s")
    return process.returncode, said


def killed(workspace: Workspace, launch: str) -> str:
    """Kills the last process of a training after its first checkpoint; returns what the launcher said within a minute."""
    process = started(workspace, launch)
    folder = workspace.folder / "runs/mine-micro/iter0/.policy.partial"
    until, worker = time.monotonic() + LIMIT, 0
    while not list(folder.glob("checkpoints*/checkpoint-*/complete")):
        assert process.poll() is None and time.monotonic() < until, process.stderr.read() if process.stderr else ""
        if not worker:  # Known beforehand: the steps are quick.
            children = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True, check=False)
            worker = int(children.stdout.split()[1]) if len(children.stdout.split()) == 2 else 0
        time.sleep(0.001)
    os.kill(worker, signal.SIGKILL)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 137
    assert not (workspace.folder / POLICY).exists()
    return said


def losses_of(policy: Path) -> list[float]:
    """The loss of each step."""
    history = json.loads((policy / "trainer_state.json").read_text())["log_history"]
    return [line["loss"] for line in history if "loss" in line]


def assert_as_alone(policy: Path, alone: Path, steps: int = STEPS) -> None:
    """A policy has the losses of that which one process trained, and is a plain checkpoint with its weights."""
    assert len(losses_of(alone)) == steps and max(losses_of(alone)) - min(losses_of(alone)) > 1e-3
    assert losses_of(policy) == pytest.approx(losses_of(alone), abs=1e-5)
    ours, theirs = (AutoModelForCausalLM.from_pretrained(each).state_dict() for each in (policy, alone))
    for name, weight in theirs.items():
        assert ours[name].dtype == weight.dtype
        # Adam's first steps have the size of the rate wherever a gradient is not zero, whatever its last bits say.
        assert (ours[name] - weight).abs().median() < 1e-5
    assert not [path for path in policy.rglob("*") if path.suffix in {".bin", ".pt", ".pth"}]
    # What was kept after steps 1 and 6, before and after the first checkpoint from which a killed training resumes.
    assert kept_in(policy) == kept_in(alone)
    for name in kept_in(alone):
        ours, theirs = (AutoModelForCausalLM.from_pretrained(each / name).state_dict() for each in (policy, alone))
        assert all((ours[key] - weight).abs().median() < 1e-5 for key, weight in theirs.items()), name


def kept_in(policy: Path) -> dict[str, int]:
    """The policies kept in one, with their steps."""
    return dict(read_manifest(policy).get("kept", {}))


@pytest.mark.parametrize("launch", LAUNCHES)
def test_two_processes_train_as_one_and_resume_as_if_uninterrupted(
    tmp_path: Path, launch: str, prepared: Workspace, alone: Path
) -> None:
    whole, interrupted = (copied(prepared, tmp_path / name) for name in ("whole", "interrupted"))
    status, said = trained(whole, launch)
    assert status == 0, said[-3000:]
    assert_as_alone(whole.folder / POLICY, alone)
    assert read_manifest(whole.folder / POLICY)["launch"] == {"launcher": "accelerate", "processes": 2, "name": launch}
    assert "error: process 1 of 2 was ended by SIGKILL" in killed(interrupted, launch)
    status, said = trained(interrupted, launch)
    assert status == 0, said[-3000:]
    assert losses_of(interrupted.folder / POLICY) == losses_of(whole.folder / POLICY)
    assert kept_in(interrupted.folder / POLICY) == kept_in(whole.folder / POLICY)
    for policy in (POLICY, *(f"{POLICY}/{name}" for name in kept_in(whole.folder / POLICY))):
        ours, theirs = (AutoModelForCausalLM.from_pretrained(each.folder / policy).state_dict() for each in (interrupted, whole))
        assert all(torch.equal(ours[name], weight) for name, weight in theirs.items()), policy


@pytest.mark.parametrize("launch", LAUNCHES)
def test_another_launch_resumes_or_says_that_it_cannot(tmp_path: Path, launch: str, prepared: Workspace, alone: Path) -> None:
    workspace = copied(prepared, tmp_path / "work")
    killed(workspace, launch)
    status, said = trained(workspace, "cpu")
    assert status == 0, said[-3000:]
    assert ("cannot read checkpoints-" in said) == (launch != "ddp-cpu")
    assert_as_alone(workspace.folder / POLICY, alone)


@pytest.mark.parametrize("launch", LAUNCHES)
def test_fine_tuning_has_the_losses_of_one_process(tmp_path: Path, launch: str) -> None:
    recipe = RECIPE.replace("per_device_train_batch_size: 8", "per_device_train_batch_size: 2")
    two, one = (Workspace(tmp_path / name, recipe) for name in ("two", "one"))
    policy = "runs/mine-micro/sft/policy"
    for workspace in (two, one):
        workspace.run("runs/mine-micro/check.json")
    for workspace, each in ((two, launch), (one, "cpu")):
        status, said = trained(workspace, each, policy)
        assert status == 0, said[-3000:]
    assert_as_alone(two.folder / policy, one.folder / policy, steps=6)
    manifests = [read_manifest(each.folder / policy) for each in (two, one)]
    assert manifests[0]["weights"] == manifests[1]["weights"] > 0
    assert manifests[0]["counts"] == manifests[1]["counts"]


@pytest.mark.parametrize("launch", ["ddp-cpu", "fsdp2"])
def test_another_number_of_processes_resumes(tmp_path: Path, launch: str, prepared: Workspace, alone: Path) -> None:
    workspace = copied(prepared, tmp_path / "work")
    killed(workspace, launch)
    status, said = trained(workspace, f"{launch} x 4")
    assert status == 0, said[-3000:]
    assert "it starts from the beginning" not in said
    assert_as_alone(workspace.folder / POLICY, alone)
