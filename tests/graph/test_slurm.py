"""What a recipe asks of Slurm, and the script of each stage that asks for it."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from handbook_ext.core.errors import UserError
from handbook_ext.graph.goals import plan_goals
from handbook_ext.graph.makefile import settings_text
from handbook_ext.graph.rules_benchmarks import asked_for
from handbook_ext.graph.run_rules import run_rules
from handbook_ext.graph.slurm import Job, jobs_of
from handbook_ext.planning import lacks, preflight
from handbook_ext.recipes.overrides import parse_set
from handbook_ext.recipes.placement import DEVICE_STAGES
from handbook_ext.recipes.run import Run, resolve
from handbook_ext.recipes.settings_slurm import DeviceResources, SlurmStages
from tests.recipe_folder import enter_folder, mine

DDP = "launch: ddp\nsft: {per_device_train_batch_size: 1}\ntrain: {per_device_train_batch_size: 1}\n"
GPUS = (
    DDP
    + """slurm:
  partition: gpu
  time: "8:00:00"
  setup: [module load cuda/12]
  stages:
    train: {nodes: 2, gpus_per_node: 8, time: "1-0", options: [--exclusive], mem: 400G, cpus_per_task: 64}
    select: {partition: cpu}
"""
)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return enter_folder(tmp_path, monkeypatch)


def on_cluster(text: str, **launch: int | str | None) -> Run:
    mine(text)
    return resolve("mine-selm", cluster=True, **launch)  # type: ignore[arg-type]


def scripts(run: Run, threads: str = "1") -> dict[str, Job]:
    return {job.artifact: job for job in jobs_of(run, run_rules(run), f"runs/{run.name}", threads)}


def directives(job: Job) -> dict[str, str]:
    return dict(re.findall(r"^#SBATCH --([\w-]+)=?(.*)$", job.script, re.MULTILINE))


def test_each_stage_asks_for_what_its_recipe_names(folder: Path) -> None:
    jobs = scripts(on_cluster(GPUS))
    train, generate, select = (directives(jobs[f"iter1/{name}"]) for name in ("policy", "completions.jsonl", "pairs.jsonl"))
    common = {"ntasks-per-node": "1", "open-mode": "append"}
    assert train | common == train and train | {"gres": "gpu:8", "nodes": "2", "time": "1-0", "partition": "gpu"} == train
    assert (train["mem"], train["cpus-per-task"], train["exclusive"]) == ("400G", "64", "")
    assert generate | {"gres": "gpu:8", "nodes": "1", "time": "8:00:00", "partition": "gpu"} == generate
    assert "gres" not in select and (select["partition"], select["time"], select["nodes"]) == ("cpu", "8:00:00", "1")
    assert "mem" not in generate and "account" not in train
    assert all("\nset -eo pipefail\nexport TOKENIZERS" in job.script for job in jobs.values())
    assert "\nmodule load cuda/12\nexec .venv/bin/python scripts/select_pairs.py runs/mine-selm/iter1\n" in (
        jobs["iter1/pairs.jsonl"].script
    )
    typed = scripts(on_cluster(DDP + "slurm: {gpu_type: a100}\n"))
    assert directives(typed["iter1/policy"])["gres"] == "gpu:a100:8"


def test_the_launchers_of_several_nodes_know_each_other(folder: Path) -> None:
    jobs = scripts(on_cluster(GPUS.replace('time: "8:00:00"', "nodes: 2"), gpus=16))
    train, generate, data = (
        jobs[name].script.splitlines()[-1] for name in ("iter1/policy", "iter1/completions.jsonl", "data/rows")
    )
    step = "exec srun --nodes=2 --ntasks=2 --ntasks-per-node=1 --kill-on-bad-exit=1"
    assert train == (
        f"{step} --cpus-per-task=64 bash -c 'exec .venv/bin/python -m handbook_ext.core.accelerated "
        "--config_file recipes/accelerate/ddp.yaml --num_processes 16 "
        "--num_machines 2 --machine_rank $SLURM_PROCID --main_process_ip $FIRST_NODE "
        "--main_process_port $FIRST_PORT --rdzv_backend static scripts/train_policy.py runs/mine-selm/iter1'"
    )
    assert generate == (
        f"{step} bash -c 'exec .venv/bin/python -m handbook_ext.core.per_device --processes 8 --nodes 2 --node-rank "
        "$SLURM_PROCID --store $FIRST_NODE:$FIRST_PORT scripts/generate_completions.py runs/mine-selm/iter1'"
    )
    assert data == "exec .venv/bin/python scripts/prepare_data.py runs/mine-selm"
    line = next(each for each in jobs["iter1/policy"].script.splitlines() if each.startswith("export FIRST_NODE"))
    shell = f"nodes=$'one\\ntwo'\n{line}\necho $FIRST_NODE $FIRST_PORT"
    for number, port in ((7, 10007), (45123, 15123)):
        said = subprocess.run(["bash", "-c", f"SLURM_JOB_ID={number}\n{shell}"], capture_output=True, text=True, check=True)
        assert said.stdout == f"one {port}\n"


def test_a_cpu_asks_for_no_gpu_and_as_many_cores_as_threads(folder: Path) -> None:
    jobs = scripts(on_cluster("slurm: {mem: 2G}\n"), threads="4")
    assert all("gres" not in job.script and directives(job)["cpus-per-task"] == "4" for job in jobs.values())
    assert "OMP_NUM_THREADS=4" in jobs["iter1/policy"].script
    several = scripts(on_cluster(DDP.replace("ddp", "ddp-cpu")))
    assert "gres" not in several["iter1/policy"].script and "--num_processes 2 scripts/" in several["iter1/policy"].script


def test_where_stages_run_is_no_part_of_them(folder: Path) -> None:
    plain = mine(DDP)
    there = on_cluster(DDP + "slurm: {time: '1:00:00', stages: {train: {nodes: 2, gpus_per_node: 4}}}\n")
    tried = resolve("mine-selm", overrides=parse_set("slurm.partition=other slurm.setup='[a b]'"), cluster=True)
    texts = [[settings_text(rule) for rule in run_rules(run)] for run in (plain, there, tried)]
    assert texts[0] == texts[1] == texts[2]
    assert plain.name == there.name == tried.name and tried.overrides == ()
    assert resolve("mine-selm", overrides=parse_set("slurm.time=1-0 train.beta=0.5")).name == "mine-selm+train.beta-0.5"


@pytest.mark.parametrize(
    ("slurm", "gpus", "placed"),
    [
        ("{}", None, (1, 8)), ("{}", 4, (1, 4)), ("{nodes: 2}", None, (2, 4)), ("{nodes: 2}", 16, (2, 8)),
        ("{gpus_per_node: 4}", None, (1, 4)), ("{gpus_per_node: 4}", 16, (4, 4)), ("{gpus_per_node: 4}", 2, (1, 2)),
        ("{nodes: 2, gpus_per_node: 4}", None, (2, 4)), ("{nodes: 2, gpus_per_node: 4}", 8, (2, 4)),
    ],
)  # fmt: skip
def test_processes_are_those_of_the_nodes(folder: Path, slurm: str, gpus: int | None, placed: tuple[int, int]) -> None:
    run = on_cluster(DDP + f"slurm: {slurm}\n", gpus=gpus)
    placement = run.launch.placements["train"]
    assert (placement.nodes, placement.each) == placed
    assert run.launch.processes_of("train") == placed[0] * placed[1]


@pytest.mark.parametrize(
    ("text", "gpus", "words"),
    [
        (DDP + "slurm: {nodes: 3}\n", None, "5: slurm: the 8 processes of launch ddp cannot be shared out to 3 nodes"),
        (DDP + "slurm: {gpus_per_node: 3}\n", 8, "slurm: GPUS=8 is no multiple of gpus_per_node 3"),
        (DDP + "slurm: {stages: {train: {nodes: 2, gpus_per_node: 4}}}\n", 16,
         "5: slurm.stages.train: 2 nodes with 4 GPUs each are 8, not GPUS=16"),
        ("slurm: {nodes: 2}\n", None, "launch cpu has one process, not 2"),
        (DDP + "slurm: {gpus_per_node: 5}\n", None, "sft.global_batch_size 32 cannot be divided by 5 processes"),
        (DDP + "slurm: {stages: {train: {gpus_per_node: 5}}}\n", None,
         "train.global_batch_size 32 cannot be divided by 5 processes"),
        (DDP + "generate: {engine: vllm, tensor_parallel_size: 4}\nslurm: {nodes: 4}\n", None,
         "generate.tensor_parallel_size 4 does not divide the 2 processes on each node of launch ddp"),
    ],
)  # fmt: skip
def test_numbers_that_do_not_fit_are_told(folder: Path, text: str, gpus: int | None, words: str) -> None:
    with pytest.raises(UserError, match=re.escape(words)):
        on_cluster(text, gpus=gpus)
    mine(text)  # On this machine nobody asks.


@pytest.mark.parametrize(
    "setting",
    [
        'partition: "a b"', 'partition: "gpu\\n#SBATCH --wrap=x"', 'account: "-x"', 'qos: "$(id)"', 'time: "8h"', "time: 90",
        'mem: "64 G"', 'gpu_type: "a100;x"', 'options: ["-p x"]', 'options: ["--constraint=a b"]', 'options: ["--comment=\'x\'"]',
        'options: ["--dependency=singleton"]', 'options: ["--depen=singleton"]', 'options: ["--partition=x"]',
        'options: ["--gres=gpu:1"]',
        'options: ["--array=1-9"]', 'options: ["--constraint=a\\nrm"]', 'setup: ["a\\nb"]', "setup: module",
        "nodes: 0", "gpus: 4",
        "stages: {select: {nodes: 2}}", "stages: {trian: {nodes: 2}}", 'stages: {train: {time: "soon"}}',
    ],
)  # fmt: skip
def test_a_value_of_another_form_is_a_mistake_of_one_line(folder: Path, setting: str) -> None:
    with pytest.raises(UserError, match=r"^recipes/mine/selm.yaml:[23]: slurm") as told:
        mine(f"slurm: {{{setting}}}\n")
    assert "\n" not in str(told.value)


def test_every_stage_of_a_run_can_have_resources_of_its_own(folder: Path) -> None:
    sets = "benchmarks: {sets: {x: {source: test, measures: [single]}}, harness: {tasks: [hellaswag]}}\n"
    run = mine(
        f"rank: {{ranker: reward_model}}\nevaluate: {{judge: apart}}\nhealth: {{max_kl: 9}}\ndata: {{dataset: a/b}}\n{sets}"
    )
    run = asked_for(run, ["x", "harness"])
    stages = {rule.settings.stage for rule in run_rules(run)} | {"checkpoint"}
    assert stages == set(SlurmStages.model_fields)
    for rule in run_rules(run):
        assert not rule.on_device or rule.settings.stage in DEVICE_STAGES
    of_devices = {name for name, field in SlurmStages.model_fields.items() if field.annotation == DeviceResources | None}
    assert of_devices == set(DEVICE_STAGES)


def test_jobs_wait_for_the_stages_that_are_still_to_be_made(folder: Path) -> None:
    run = on_cluster("")
    rules = run_rules(run)
    left = [rule for rule in rules if rule.artifact not in ("data/rows", "check.json", "sft/policy")]
    jobs = {job.artifact: job for job in jobs_of(run, left, "runs/mine-selm", "1")}
    assert jobs["iter0/pairs.jsonl"].after == ()
    assert jobs["iter0/policy"].after == ("iter0/pairs.jsonl", "iter0/logprobs")
    made: set[str] = set()
    for job in jobs.values():
        assert set(job.after) <= made
        made.add(job.artifact)
    assert len({job.name for job in jobs.values()}) == len({job.script_file for job in jobs.values()}) == len(jobs)
    # The same run in another clone has other jobs.
    assert {job.name for job in jobs_of(run, left, "other/mine-selm", "1")}.isdisjoint(job.name for job in jobs.values())


def test_what_the_login_node_lacks_and_nodes_have_is_no_lack(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lacks, "visible_gpus", lambda: 0)
    monkeypatch.setattr(lacks, "torch_without_cuda", lambda: False)
    monkeypatch.setattr(lacks, "which", lambda name: f"/bin/{name}")
    mine(DDP.replace("train: {", "train: {report_to: [dvclive], "))

    def told(**variables: str) -> list[str]:
        plan = plan_goals(["mine-selm-iter1"], variables)
        return preflight.missing(
            {goal: preflight.pending_of(plan.runs, wanted, Path("runs")) for goal, wanted in plan.wanted.items()}
        )

    assert any("needs 8 GPUs, and 0 are visible" in line for line in told())
    head, line = told(CLUSTER="slurm")
    assert "1 thing is missing here" in head and "dvclive" in line
    monkeypatch.setattr(lacks, "which", lambda name: None)
    assert any("CLUSTER=slurm needs the command sbatch" in line for line in told(CLUSTER="slurm"))


def test_a_goal_that_no_job_would_make_is_refused(folder: Path) -> None:
    for goal in ("tiny-selm-seeds", "runs/tiny-selm/iter1/pairs.jsonl"):
        with pytest.raises(UserError, match="CLUSTER=slurm submits <run>, <run>-iter<N> and <run>-eval"):
            plan_goals([goal], {"CLUSTER": "slurm"})
    with pytest.raises(UserError, match="'sge' is not slurm"):
        plan_goals(["tiny-selm"], {"CLUSTER": "sge"})
    plan = plan_goals(["tiny-selm-iter1", "tiny-selm-why"], {"CLUSTER": "slurm"})
    assert "tiny-selm-iter1:" in plan.lines and "\t+@$(SUBMIT) tiny-selm-iter1" in plan.lines
    assert any("manifest.json" in line for line in plan_goals(["tiny-selm-iter1"], {"CLUSTER": ""}).lines)
