"""The stages of a run as jobs of Slurm: the script of each, and what it waits for.

A job runs the command of its stage's rule and nothing else. Make on a node would compare times that the clocks of several
machines made, plan anew, and could start another stage; the stage itself compares hashes, refuses inputs that are not whole, and
does nothing where its artifact is up to date, so a job that is started twice does no harm.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from handbook_ext.core.stage_settings import identity
from handbook_ext.graph.makefile import plain
from handbook_ext.graph.rule import StageRule, devices_each, whole_of
from handbook_ext.recipes.placement import Placement
from handbook_ext.recipes.run import Run

PYTHON, ACCELERATE = ".venv/bin/python", ".venv/bin/python -m handbook_ext.core.accelerated"
FOLDER = "slurm"  # In the run's folder: scripts, logs and the record of the jobs.
# As the Makefile has it for every stage.
EXPORTED = "TOKENIZERS_PARALLELISM=false HF_HUB_DISABLE_TELEMETRY=1"
# The ports of a job, clear of those that the kernel gives to whoever asks for any.
FIRST_PORT, PORTS = 10000, 20000


@dataclass(frozen=True)
class Job:
    """A stage as a job: what it makes, how the queue calls it, its script and its log (`%j` is the job's id).

    `after` are the artifacts, of other jobs, that must be made first; `settings` is the hash of what identifies the stage.
    """

    artifact: str
    name: str
    script_file: str
    log: str
    script: str
    after: tuple[str, ...]
    settings: str


def jobs_of(run: Run, pending: Sequence[StageRule], folder: str, threads: str) -> list[Job]:
    """Returns the jobs of stages that are still to be made, each behind those that it waits for; `folder` is the run's.

    `threads` is THREADS, the cores of a stage on a CPU.
    """
    artifacts = {rule.artifact for rule in pending}
    # Two clones may have runs of one name: each looks for its own jobs alone.
    place = hashlib.sha256(str(Path(folder).resolve()).encode()).hexdigest()[:8]
    found = []
    for rule in pending:
        stage = rule.settings.stage
        label = f"{rule.folder.replace('/', '.')}.{stage}" if rule.folder else stage
        name, log = plain(f"{run.name}.{label}.{place}"), plain(f"{folder}/{FOLDER}/{label}") + ".%j.log"
        needed = dict.fromkeys(whole_of(each) for each in (*rule.inputs, *rule.after))
        settings = json.dumps(identity(rule.settings.model_dump(mode="json")), sort_keys=True)
        digest = hashlib.sha256(settings.encode()).hexdigest()
        after = tuple(each for each in needed if each in artifacts)
        script = _script(rule, run, folder, name, log, threads)
        found.append(Job(rule.artifact, name, f"{folder}/{FOLDER}/{label}.sh", log, script, after, digest))
    return found


def _script(rule: StageRule, run: Run, folder: str, name: str, log: str, threads: str) -> str:
    """Returns the script of a stage's job, which starts in the folder where it was submitted."""
    stage, launch = rule.settings.stage, run.launch
    asked = run.settings.slurm.of(stage)
    placement = launch.placements[stage] if rule.on_device else Placement(1, 1)
    kind = "gpu" if asked.gpu_type is None else f"gpu:{asked.gpu_type}"
    cores = asked.cpus_per_task or (threads if launch.name == "cpu" else None)
    options = {
        "job-name": name, "output": log, "open-mode": "append", "nodes": placement.nodes, "ntasks-per-node": 1,
        "gres": f"{kind}:{placement.each}" if rule.on_device and not launch.on_cpu else None, "cpus-per-task": cores,
        "mem": asked.mem, "time": asked.time, "partition": asked.partition, "account": asked.account, "qos": asked.qos,
    }  # fmt: skip
    lines = [f"#SBATCH --{option}={value}" for option, value in options.items() if value is not None]
    lines += [f"#SBATCH {option}" for option in asked.options or []]
    exported = EXPORTED + (f" OMP_NUM_THREADS={threads}" if launch.name == "cpu" else "")
    # Not -u: what loads modules reads variables that are not set.
    body = ["set -eo pipefail", f"export {exported}", *(asked.setup or []), *_started(rule, run, folder, placement, cores)]
    return "\n".join(["#!/bin/bash", *lines, *body]) + "\n"


def _started(rule: StageRule, run: Run, folder: str, placement: Placement, cores: int | str | None) -> list[str]:
    """Returns the lines that run a stage: its command, or one launcher of it per node."""
    words = (
        f"{_launcher(rule, run, placement)} scripts/{rule.script} {plain(f'{folder}/{rule.folder}' if rule.folder else folder)}"
    )
    if placement.nodes == 1:
        return [f"exec {words}"]
    step = f"srun --nodes={placement.nodes} --ntasks={placement.nodes} --ntasks-per-node=1 --kill-on-bad-exit=1"
    # A step does not take over the cores of its job.
    step += "" if cores is None else f" --cpus-per-task={cores}"
    return [
        'nodes=$(scontrol show hostnames "$SLURM_JOB_NODELIST")',
        "export FIRST_NODE=${nodes%%$'\\n'*}" + f" FIRST_PORT=$(({FIRST_PORT} + SLURM_JOB_ID % {PORTS}))",
        f"exec {step} bash -c 'exec {words}'",
    ]


def _launcher(rule: StageRule, run: Run, placement: Placement) -> str:
    """Returns the words before a stage's script; of several nodes each has a launcher, which knows the others."""
    launch, nodes = run.launch, placement.nodes
    # A warm process would be another job's by the time of the second stage.
    if launch.name == "cpu" or rule.launcher == "plain":
        return PYTHON
    if rule.launcher == "accelerate":
        meeting = (
            f" --num_machines {nodes} --machine_rank $SLURM_PROCID --main_process_ip $FIRST_NODE --main_process_port $FIRST_PORT"
            " --rdzv_backend static"
        )
        file = plain(f"recipes/accelerate/{launch.name}.yaml")
        return f"{ACCELERATE} --config_file {file} --num_processes {placement.processes}{meeting if nodes > 1 else ''}"
    each = devices_each(rule, run)
    devices = "" if each == 1 else f" --devices-each {each}"
    meeting = f" --nodes {nodes} --node-rank $SLURM_PROCID --store $FIRST_NODE:$FIRST_PORT"
    return f"{PYTHON} -m handbook_ext.core.per_device --processes {placement.each // each}{devices}{meeting if nodes > 1 else ''}"
