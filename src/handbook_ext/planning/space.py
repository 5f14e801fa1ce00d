"""Disk space and memory that stages still to be made need at least, from a stated model. No torch.

Each policy to be made needs its weights on disk, and the training that needs most one checkpoint to resume from: weights and
optimizer. Training all weights on a CPU holds weights, gradients and optimizer in memory. Memory of GPUs is not looked at.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path

from handbook_ext.core.artifacts import checkpoint_files
from handbook_ext.core.stage_settings import StageSettings
from handbook_ext.graph.rule import StageRule, policy_artifact
from handbook_ext.graph.stages import RankerStage, SFTStage, TrainStage
from handbook_ext.planning.hub import snapshot
from handbook_ext.recipes.run import Run
from handbook_ext.recipes.settings import ModelSettings

SAVED = {"float32": 4, "bfloat16": 2}  # Bytes of a weight.
MOMENTS = {"rmsprop": 4}  # Bytes of the optimizer's state for a weight; Adam's has two moments.
ADAM = 8
LONGEST_HEADER = 100_000_000


def weights_of(run: Run, folder: Path) -> int | None:
    """Returns how many weights a policy of the run has, by its checkpoint or first policy; None where neither is here."""
    name = run.settings.model.name_or_path
    made = policy_artifact(run, run.start)
    here = [Path(name)] if name is not None else []
    cached = snapshot("models", name, run.settings.model.revision) if name is not None else None
    for place in [*here, *([cached] if cached is not None else []), *([folder / made] if made else [])]:
        if place.is_dir() and (count := weights_in(checkpoint_files(place))):
            return count
    return None


def disk_needed(run: Run, rules: Sequence[StageRule], weights: int) -> int:
    """Returns the bytes that the rules' artifacts need at least: all policies, and the largest checkpoint to resume from."""
    kept = sum(kept_bytes(rule.settings, run, weights) for rule in rules)
    return kept + max((_checkpoint(rule.settings, run, weights) for rule in rules), default=0)


def memory_needed(run: Run, rules: Sequence[StageRule], weights: int) -> int:
    """Returns the bytes of main memory that the rules need at least, one at a time; 0 where GPUs hold the policy."""
    if not run.launch.on_cpu:
        return 0
    return max((_memory(rule, weights) for rule in rules if rule.on_device), default=0)


def free_disk(folder: Path) -> int:
    """Returns the bytes that are free where a folder lies or will lie."""
    return shutil.disk_usage(next(place for place in [folder, *folder.absolute().parents] if place.is_dir())).free


def held_by(places: Iterable[Path]) -> int:
    """Returns the bytes of all files under the places: what a killed stage has written already needs no space again."""
    return sum(file.stat().st_size for place in places if place.is_dir() for file in place.rglob("*") if file.is_file())


def size(count: float) -> str:
    """Returns a number of bytes in words."""
    return f"{count / 1e9:.1f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"


def weights_in(files: Iterable[Path]) -> int:
    """Returns the number of weights in safetensors files, from their headers; 0 where there is none or one is damaged."""
    total = 0
    for path in files:
        if path.suffix != ".safetensors" or path.name.startswith("adapter_"):
            continue
        try:
            with path.open("rb") as stream:
                length = int.from_bytes(stream.read(8), "little")
                header = json.loads(stream.read(length)) if length < LONGEST_HEADER else {}
            total += sum(math.prod(each["shape"]) for name, each in header.items() if name != "__metadata__")
        except (OSError, ValueError, KeyError, TypeError):
            return 0
    return total


def kept_bytes(settings: StageSettings, run: Run, weights: int) -> int:
    """Returns the bytes of the weights that a stage leaves; policies kept on the way are saved in the type that trains."""
    if isinstance(settings, RankerStage):
        return 4 * weights
    if not isinstance(settings, SFTStage | TrainStage):
        return 0
    own = SAVED[settings.model.dtype]
    on_the_way = len(settings.train.keep_at) if isinstance(settings, TrainStage) else 0
    return (own + on_the_way * (own if run.launch.name.startswith("zero") else 4)) * weights


def _checkpoint(settings: StageSettings, run: Run, weights: int) -> int:
    """Returns the bytes of one checkpoint of a training: weights and optimizer; of adapters next to nothing."""
    if isinstance(settings, RankerStage):
        return (4 + ADAM) * weights
    if not isinstance(settings, SFTStage | TrainStage) or settings.model.lora is not None:
        return 0
    moments = MOMENTS.get(_optimizer(settings), ADAM)
    # DeepSpeed keeps weights of the recipe's type and fp32 copies; other launches train fp32 weights.
    weight = SAVED[settings.model.dtype] + 4 if run.launch.name.startswith("zero") else 4
    return (weight + moments) * weights


def _optimizer(settings: SFTStage | TrainStage) -> str:
    """Returns the optimizer of a training."""
    return settings.sft.optim if isinstance(settings, SFTStage) else settings.train.optim


def _memory(rule: StageRule, weights: int) -> int:
    """Returns the bytes of a stage's largest model in memory, with gradients (fp32) and optimizer where all weights train."""
    settings = rule.settings
    model: ModelSettings | None = getattr(settings, "model", None)
    if isinstance(settings, RankerStage):
        return (4 + 4 + ADAM) * weights
    if isinstance(settings, SFTStage | TrainStage) and settings.model.lora is None:
        return (4 + 4 + MOMENTS.get(_optimizer(settings), ADAM)) * weights
    return SAVED[model.dtype] * weights if model is not None else 0
