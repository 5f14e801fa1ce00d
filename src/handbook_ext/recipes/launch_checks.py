"""What a recipe asks of its launch: a file that exists, and batches that its processes can meet."""

from __future__ import annotations

from pathlib import Path

import yaml

from handbook_ext.core.errors import UserError
from handbook_ext.recipes.settings import OptimizerSettings, Recipe
from handbook_ext.recipes.yaml_tree import Tree, nearest, shown


def launched_processes(launch: str, tree: Tree, root: Path) -> int:
    """Returns how many processes a launch starts; a UserError names those there are where it does not exist."""
    files = {path.stem: path for path in (root / "accelerate").glob("*.yaml")}
    known = sorted({"cpu", *files})
    if launch not in known:
        raise UserError(
            f"{tree.where(('launch',))}: launch: '{launch}' is not a file of {shown(root / 'accelerate')}"
            f"{nearest(launch, known)}; it has: {', '.join(known)}"
        )
    if launch == "cpu":
        return 1
    told = yaml.safe_load(files[launch].read_text(encoding="utf-8")) or {}
    return int(told.get("num_processes", 1))


def check_batches(settings: Recipe, tree: Tree, processes: int, iteration: str = "") -> None:
    """Raises UserError where a global batch is no multiple of the processes times their micro-batch."""
    sections: dict[str, OptimizerSettings | None] = {"sft": settings.sft, "train": settings.train}
    for name, section in sections.items():
        if section is None:
            continue
        at_once = processes * section.per_device_train_batch_size
        if section.global_batch_size % at_once:
            within = f"{iteration}: " if iteration else ""
            raise UserError(
                f"{tree.where((name, 'global_batch_size'))}: {within}{name}.global_batch_size {section.global_batch_size} cannot "
                f"be divided by {processes} processes x per_device_train_batch_size {section.per_device_train_batch_size} = "
                f"{at_once}; change one of the three, or the launch"
            )
