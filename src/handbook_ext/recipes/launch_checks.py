"""Where a run is launched: an accelerate configuration that exists, and batches that its processes can meet.

The recipe names a launch; `LAUNCH=` and `GPUS=` replace it. Neither is part of a run's identity: a global batch is met by
another micro-batch and another accumulation, and gives the same gradient.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import yaml

from handbook_ext.core.errors import UserError
from handbook_ext.core.machine import has_package, visible_gpus
from handbook_ext.recipes.settings import OptimizerSettings, Recipe
from handbook_ext.recipes.yaml_tree import Tree, nearest, shown

VLLM_HOTTEST = 2.0  # The highest temperature that vLLM takes.
CPU = "cpu"  # The launch of one CPU process; names of others without a GPU end so as well.


@dataclass(frozen=True)
class Launch:
    """A launch configuration by name, its processes, and whether the command line replaced what the recipe says."""

    name: str
    processes: int
    replaced: bool = False
    gpus: int | None = None

    @property
    def on_cpu(self) -> bool:
        """Tells whether its processes need no GPU."""
        return on_cpu(self.name)


def on_cpu(launch: str) -> bool:
    """Tells whether a launch, by its name, needs no GPU."""
    return launch == CPU or launch.endswith(f"-{CPU}")


def launch_of(
    stated: str, tree: Tree, root: Path, *, stated_gpus: int | None = None, launch: str | None = None, gpus: int | None = None
) -> Launch:  # fmt: skip
    """Returns where a run is launched; a UserError names the configurations that there are.

    The processes are those of the command line, else the recipe's for its own launch, else those of the configuration.
    """
    files = {path.stem: path for path in (root / "accelerate").glob("*.yaml")}
    known = sorted({CPU, *files})
    name = stated if launch is None else launch
    if name not in known:
        where = f"{tree.where(('launch',))}: launch" if launch is None else "LAUNCH"
        raise UserError(
            f"{where}: '{name}' is not a file of {shown(root / 'accelerate')}{nearest(name, known)}; it has: {', '.join(known)}"
        )
    if name == CPU and gpus not in (None, 1):
        raise UserError(f"GPUS: the launch cpu has one process, not {gpus}; give LAUNCH=ddp as well, or another of several GPUs")
    if gpus is not None:
        return Launch(name, gpus, replaced=True, gpus=gpus)
    if stated_gpus is not None and launch is None:
        if name == CPU and stated_gpus != 1:
            raise UserError(
                f"{tree.where(('gpus',))}: gpus: the launch cpu has one process, not {stated_gpus}; set a launch of GPUs"
            )
        return Launch(name, stated_gpus, gpus=None if name == CPU else stated_gpus)
    if name == CPU:
        return Launch(name, 1, replaced=launch is not None)
    config = yaml.safe_load(files[name].read_text(encoding="utf-8")) or {}
    return Launch(name, int(config.get("num_processes", 1)), replaced=launch is not None)


def engine_of(stated: str, launch: Launch, begun_with: str | None) -> str:
    """Returns the engine of a run: what its recipe states, else what it has begun with, else vLLM where it can run here."""
    if stated != "auto":
        return stated
    if begun_with is not None:
        return begun_with
    return "vllm" if not launch.on_cpu and visible_gpus() and has_package("vllm") else "transformers"


def check_devices(settings: Recipe, tree: Tree, launch: Launch) -> None:
    """Raises UserError where vLLM cannot sample so: too hot, or processes that do not part into engines of several devices."""
    size = settings.generate.tensor_parallel_size
    if (
        settings.generate.engine == "vllm"
        and max([settings.generate.temperature, *settings.evaluate.temperatures]) > VLLM_HOTTEST
    ):
        raise UserError(
            f"{tree.where(('generate', 'temperature'))}: generate.engine vllm takes temperatures up to {VLLM_HOTTEST:g} in "
            "generate and evaluate; lower them, or set generate.engine: transformers"
        )
    if settings.generate.engine == "vllm" and launch.processes % size:
        raise UserError(
            f"{tree.where(('generate', 'tensor_parallel_size'))}: generate.tensor_parallel_size {size} does not divide the "
            f"{launch.processes} processes of launch {launch.name}; give a divisor of them, or another launch"
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
        at_once = launch.processes * micro_batch
        if section.global_batch_size % at_once:
            within = f"{iteration}: " if iteration else ""
            by = "" if launch.replaced else f" x per_device_train_batch_size {micro_batch} = {at_once}"
            raise UserError(
                f"{tree.where((name, 'global_batch_size'))}: {within}{name}.global_batch_size {section.global_batch_size} cannot "
                f"be divided by {launch.processes} processes{by}; change one of {'the two' if launch.replaced else 'the three'}, "
                "or the launch"
            )
