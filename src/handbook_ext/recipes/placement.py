"""On how many nodes of a cluster each stage runs, and with how many processes on each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from handbook_ext.core.errors import UserError
from handbook_ext.recipes.settings_slurm import SlurmSettings
from handbook_ext.recipes.yaml_tree import Tree

DEVICE_STAGES = ("sft", "ranker", "judge", "evaluate", "answer", "harness", "generate", "rank", "score", "train")


@dataclass(frozen=True)
class Placement:
    """Where the processes of a stage run: `each` on every one of `nodes`."""

    nodes: int
    each: int

    @property
    def processes(self) -> int:
        """Returns how many processes there are on all nodes."""
        return self.nodes * self.each


def placements_of(slurm: SlurmSettings, tree: Tree, launch: str, processes: int, gpus: int | None) -> Mapping[str, Placement]:
    """Returns where each stage that computes with a model runs.

    `processes` are those of the launch, and `gpus` is GPUS=, which replaces all that a recipe says of their number. Where the
    recipe says how many GPUs a node gives, its nodes times these are the processes.

    Raises UserError where the numbers contradict each other, or do not divide.
    """
    found = {}
    for stage in DEVICE_STAGES:
        asked = slurm.of(stage)
        try:
            found[stage] = _placed(asked.nodes, asked.gpus_per_node, launch, processes, gpus)
        except ValueError as error:
            own = ("slurm", "stages", stage)
            where = own if own in tree.marks else ("slurm",)
            raise UserError(f"{tree.where(where)}: {'.'.join(where)}: {error}") from None
    return found


def alone(slurm: SlurmSettings, tree: Tree, launch: str, processes: int, *, stated: bool) -> Mapping[str, Placement]:
    """Returns the placements of a launch that has one process; `stated` tells whether the recipe itself names that launch.

    Raises UserError where several processes are asked for: by GPUS=, or by the recipe that names the launch.
    """
    asked = [slurm.of(stage) for stage in DEVICE_STAGES]
    most = max((each.nodes or 1) * (each.gpus_per_node or 1) for each in asked) if stated else 1
    if max(most, processes) > 1:
        raise UserError(
            f"{tree.where(('slurm',))}: launch {launch} has one process, not {max(most, processes)}; give another launch, or "
            "leave out slurm.nodes, slurm.gpus_per_node and GPUS"
        )
    return dict.fromkeys(DEVICE_STAGES, Placement(1, 1))


def _placed(nodes: int | None, each: int | None, launch: str, processes: int, gpus: int | None) -> Placement:
    """Returns the placement of one stage; raises ValueError where its numbers do not fit."""
    total = gpus or (processes if each is None else (nodes or 1) * each)
    if each is None:
        nodes = nodes or 1
        if total % nodes:
            raise ValueError(
                f"the {total} processes of launch {launch} cannot be shared out to {nodes} nodes; change nodes, state "
                "gpus_per_node, or give GPUS="
            )
        return Placement(nodes, total // nodes)
    if nodes is None:
        if total > each and total % each:
            raise ValueError(f"GPUS={total} is no multiple of gpus_per_node {each}; give one, or change gpus_per_node")
        return Placement(max(1, total // each), min(total, each))
    if nodes * each != total:
        raise ValueError(
            f"{nodes} nodes with {each} GPUs each are {nodes * each}, not GPUS={total}; leave GPUS out, or state nodes or "
            "gpus_per_node alone"
        )
    return Placement(nodes, each)
