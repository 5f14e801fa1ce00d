"""The section `slurm` of a recipe: what each stage asks of a cluster. It decides where a stage runs, and never what comes out.

Every value becomes a line `#SBATCH --option=value` of a job's script and is checked by its form; `setup` are the lines of shell
that a recipe's author has run before the stage.
"""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import AfterValidator, Field

from handbook_ext.recipes.section import Positive, Section

# Options of sbatch that another setting states, and those by which the jobs of a run find each other.
STATED = {
    "partition": "partition", "account": "account", "qos": "qos", "time": "time", "mem": "mem", "nodes": "nodes",
    "cpus-per-task": "cpus_per_task", "gres": "gpus_per_node", "gpus": "gpus_per_node", "gpus-per-node": "gpus_per_node",
    "gpus-per-task": "gpus_per_node",
}  # fmt: skip
OWN = (
    "dependency", "kill-on-invalid-dep", "parsable", "job-name", "output", "error", "open-mode", "ntasks", "ntasks-per-node",
    "array", "wrap", "wait", "test-only", "chdir", "no-kill",
)  # fmt: skip


def _formed(pattern: str, words: str) -> AfterValidator:
    """Returns the check of a value's form; `words` say what it should have been."""

    def check(value: str) -> str:
        """Returns the value; raises ValueError where it has another form."""
        if not re.fullmatch(pattern, value):
            raise ValueError(f"{value!r} is not {words}")
        return value

    return AfterValidator(check)


def _option(value: str) -> str:
    """Returns an option of sbatch; raises ValueError for one of another form, or that is stated otherwise."""
    # Sbatch splits such a line at blanks, and reads quotes, backslashes and comments in it.
    found = re.fullmatch(r"--([a-z][a-z0-9-]*)(=[^\s'\"\\#]+)?", value, flags=re.ASCII)
    if found is None:
        raise ValueError(f"{value!r} is not an option of sbatch, such as --constraint=a100, without blanks and quotes")
    name = found[1]
    # Sbatch takes an option by its first letters as well.
    if stated := next((setting for option, setting in STATED.items() if option.startswith(name)), None):
        raise ValueError(f"{value!r} is what the setting {stated} says; state that instead")
    if any(option.startswith(name) for option in OWN):
        raise ValueError(
            f"{value!r} is not an option that a recipe can set: make sets it, or the stages need it unset; remove it"
        )
    return value


Name = Annotated[str, _formed(r"\w[\w.@,-]*", "a name of letters, digits and . _ @ , - alone")]
Minutes = Annotated[
    str,
    _formed(r"[0-9]+(:[0-5]?[0-9]){0,2}|[0-9]+-[0-9]{1,2}(:[0-5]?[0-9]){0,2}", 'a time limit, such as "8:00:00" or "1-12:00:00"'),
]
Memory = Annotated[str, _formed(r"[0-9]+[KMGT]?", "an amount of memory, such as 64G")]
Option = Annotated[str, AfterValidator(_option)]
Line = Annotated[str, _formed(r"[^\n\r\0]+", "one line of shell; give several as several items")]


class Resources(Section):
    """What a stage asks for that computes on no device."""

    partition: Name | None = Field(None, description="partition; null leaves it to the cluster, as in all that follow")
    account: Name | None = Field(None, description="account that is charged")
    qos: Name | None = Field(None, description="quality of service")
    time: Minutes | None = Field(None, description='limit of a stage, such as "8:00:00"; what it has finished by then is kept')
    mem: Memory | None = Field(None, description="main memory of each node, such as 64G")
    cpus_per_task: Positive | None = Field(
        None, description="cores of each node; of a launch on a CPU by default as many as THREADS says"
    )
    options: list[Option] | None = Field(None, description="further options of sbatch, such as --constraint=a100")
    setup: list[Line] | None = Field(None, description="lines of shell that run before the stage, such as `module load cuda`")


class DeviceResources(Resources):
    """What a stage asks for that computes with a model, and so on GPUs where the launch has any."""

    nodes: Positive | None = Field(None, description="nodes; null is one, or as many as GPUS= needs of `gpus_per_node`")
    gpus_per_node: Positive | None = Field(
        None, description="GPUs, and processes, of each node; null shares the launch's processes out to the nodes"
    )
    gpu_type: Annotated[str, _formed(r"\w[\w.-]*", "a kind of GPU, such as a100")] | None = Field(
        None, description="kind of GPU, by the cluster's name for it"
    )


class SlurmStages(Section):
    """What single stages ask for instead; what one leaves out is as for all stages."""

    data: Resources | None = None
    checkpoint: Resources | None = None
    check: Resources | None = None
    select: Resources | None = None
    health: Resources | None = None
    prompts: Resources | None = None
    grade: Resources | None = None
    report: Resources | None = None
    sft: DeviceResources | None = None
    ranker: DeviceResources | None = None
    judge: DeviceResources | None = None
    evaluate: DeviceResources | None = None
    answer: DeviceResources | None = None
    harness: DeviceResources | None = None
    generate: DeviceResources | None = None
    rank: DeviceResources | None = None
    score: DeviceResources | None = None
    train: DeviceResources | None = None


class SlurmSettings(DeviceResources):
    """What the stages of a run ask of Slurm, and what single ones ask for instead."""

    stages: SlurmStages = SlurmStages()

    def of(self, stage: str) -> DeviceResources:
        """Returns what a stage asks for: what it states, then what all state."""
        own: Resources | None = getattr(self.stages, stage)
        stated = {} if own is None else own.model_dump(exclude_none=True)
        return DeviceResources(**{**self.model_dump(exclude={"stages"}), **stated})
