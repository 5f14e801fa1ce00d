"""Where a run is launched: an accelerate configuration that exists, and batches that its processes can meet.

The recipe names a launch; `LAUNCH=` and `GPUS=` replace it, and under `CLUSTER=` the section `slurm` says how many processes it
has on which nodes. None is part of a run's identity: a global batch is met by another micro-batch and another accumulation, and
gives the same gradient.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from handbook_ext.core.errors import UserError
from handbook_ext.core.machine import has_package, visible_gpus
from handbook_ext.recipes.checks import written
from handbook_ext.recipes.placement import Placement, alone, placements_of
from handbook_ext.recipes.settings import OptimizerSettings, Recipe
from handbook_ext.recipes.settings_slurm import SlurmSettings
from handbook_ext.recipes.yaml_tree import Tree, nearest, read_yaml, shown

VLLM_HOTTEST = 2.0  # The highest temperature that vLLM takes.
CPU = "cpu"  # The launch of one CPU process; names of others without a GPU end so as well.


@dataclass(frozen=True)
class Launch:
    """A launch configuration by name, its processes, and whether the command line replaced what the recipe says.

    `placements` says by stage where a cluster runs it; it is empty where the stages run on this machine.
    """

    name: str
    processes: int
    replaced: bool = False
    gpus: int | None = None
    placements: Mapping[str, Placement] = field(default_factory=dict)

    @property
    def on_cluster(self) -> bool:
        """Tells whether nodes of a cluster run the stages, and not this machine."""
        return bool(self.placements)

    def processes_of(self, stage: str) -> int:
        """Returns how many processes a stage has that computes with a model."""
        return self.placements[stage].processes if self.placements else self.processes

    @property
    def on_cpu(self) -> bool:
        """Tells whether its processes need no GPU."""
        return on_cpu(self.name)


def on_cpu(launch: str) -> bool:
    """Tells whether a launch, by its name, needs no GPU."""
    return launch == CPU or launch.endswith(f"-{CPU}")


def launch_of(
    stated: str, tree: Tree, root: Path, *, stated_gpus: int | None = None,
    launch: str | None = None, gpus: int | None = None, slurm: SlurmSettings | None = None,
) -> Launch:  # fmt: skip
    """Returns where a run is launched, with `slurm` on the nodes of a cluster.

    The processes are those of the command line, else the recipe's for its own launch, else those of the configuration.
    Raises UserError for a configuration that is not there, or processes that no nodes can have.
    """
    files = {path.stem: path for path in (root / "accelerate").glob("*.yaml")}
    known = sorted({CPU, *files})
    name = stated if launch is None else launch
    if name not in known:
        where = f"{tree.where(('launch',))}: launch" if launch is None else "LAUNCH"
        raise UserError(
            f"{where}: {written(name)} is not a file of {shown(root / 'accelerate')}{nearest(name, known)}; it has: "
            f"{', '.join(known)}"
        )
    if name == CPU and gpus not in (None, 1):
        raise UserError(f"GPUS: the launch cpu has one process, not {gpus}; give LAUNCH=ddp as well, or another of several GPUs")
    own = stated_gpus if launch is None and gpus is None else None
    if name == CPU and own not in (None, 1):
        raise UserError(f"{tree.where(('gpus',))}: gpus: the launch cpu has one process, not {own}; set a launch of GPUs")
    wanted = gpus if gpus is not None else own if name != CPU else None
    kind, processes = ("NO", 1) if name == CPU else _configured(files[name])
    found = Launch(name, wanted or processes, replaced=(launch, gpus) != (None, None), gpus=wanted)
    if slurm is None:
        return found
    if kind == "NO":
        return replace(found, placements=alone(slurm, tree, name, found.processes, stated=launch is None))
    return replace(found, replaced=True, placements=placements_of(slurm, tree, name, found.processes, gpus))


def _configured(file: Path) -> tuple[str, int]:
    """Returns the kind of distribution of an accelerate configuration, in capitals, and its number of processes."""
    tree = read_yaml(file)
    processes = tree.values.get("num_processes", 1)
    if not isinstance(processes, int) or processes < 1:
        raise UserError(f"{tree.where(('num_processes',))}: num_processes: {written(processes)} is no number from 1; correct it")
    return str(tree.values.get("distributed_type")).upper(), processes


def engine_of(stated: str, launch: Launch, begun_with: str | None) -> str:
    """Returns the engine of a run: what its recipe states, else what it has begun with, else vLLM where it can run here."""
    if stated != "auto":
        return stated
    if begun_with is not None:
        return begun_with
    return "vllm" if not launch.on_cpu and (launch.on_cluster or visible_gpus()) and has_package("vllm") else "transformers"


def crowded(launch: Launch) -> list[str]:
    """Returns a line where more processes than this machine has cores are to compute on them."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if launch.on_cluster or not launch.on_cpu or launch.processes <= cores:
        return []
    return [f"launch {launch.name} starts {launch.processes} processes on {cores} cores, which take turns; give GPUS={cores}"]


def check_devices(settings: Recipe, tree: Tree, launch: Launch) -> None:
    """Raises UserError where vLLM cannot sample so: too hot, or processes that do not part into engines of several devices."""
    size, sets = settings.generate.tensor_parallel_size, settings.benchmarks
    hot = [sets.prompt_set(name).hottest for name in sets.names]
    if (
        settings.generate.engine == "vllm"
        and max([settings.generate.temperature, *settings.evaluate.temperatures, *hot]) > VLLM_HOTTEST
    ):
        raise UserError(
            f"{tree.where(('generate', 'temperature'))}: generate.engine vllm takes temperatures up to {VLLM_HOTTEST:g} in "
            "generate, evaluate and benchmarks; lower them, or set generate.engine: transformers"
        )
    # No engine reaches over to another node.
    counts = {launch.placements[stage].each for stage in ("generate", "evaluate", "answer") if launch.on_cluster} or {
        launch.processes
    }
    for count in counts:
        if settings.generate.engine == "vllm" and count % size:
            on = "on each node " if launch.on_cluster else ""
            raise UserError(
                f"{tree.where(('generate', 'tensor_parallel_size'))}: generate.tensor_parallel_size {size} does not divide the "
                f"{count} processes {on}of launch {launch.name}; give a divisor of them, or another launch"
            )


def check_batches(settings: Recipe, tree: Tree, launch: Launch, iteration: str = "") -> None:
    """Raises UserError where a global batch is no multiple of the processes, or of processes times the stated micro-batch.

    Where the command line chose the launch, the micro-batch follows from it: `per_device_train_batch_size` is then the most.
    """
    sections: dict[str, OptimizerSettings | None] = {"sft": settings.sft, "train": settings.train}
    for name, section in sections.items():
        if section is None:
            continue
        micro_batch = 1 if launch.replaced else section.per_device_train_batch_size
        processes = launch.processes_of(name)
        at_once = processes * micro_batch
        if section.global_batch_size % at_once:
            within = f"{iteration}: " if iteration else ""
            by = "" if launch.replaced else f" x per_device_train_batch_size {micro_batch} = {at_once}"
            raise UserError(
                f"{tree.where((name, 'global_batch_size'))}: {within}{name}.global_batch_size {section.global_batch_size} cannot "
                f"be divided by {processes} processes{by}; change one of {'the two' if launch.replaced else 'the three'}, "
                "or the launch"
            )
