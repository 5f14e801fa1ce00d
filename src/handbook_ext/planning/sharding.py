"""How a launch spreads a training over its processes, as its accelerate configuration says. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from handbook_ext.recipes.launch_checks import Launch, on_cpu
from handbook_ext.recipes.names import RECIPES
from handbook_ext.recipes.yaml_tree import read_yaml


@dataclass(frozen=True)
class Sharding:
    """A launch by name: its processes, whether DeepSpeed or FSDP runs it, and what it shards or keeps in main memory.

    `stage` is ZeRO's: 1 shards the optimizer, 2 gradients as well, 3 weights as well; FSDP is 3, one copy per process is 0.
    """

    name: str
    processes: int
    stage: int = 0
    deepspeed: bool = False
    offload_optimizer: bool = False
    offload_weights: bool = False

    @property
    def on_cpu(self) -> bool:
        """Tells whether its processes compute on the CPU."""
        return on_cpu(self.name)

    def shared(self, stage: int) -> int:
        """Returns among how many processes ZeRO shares what it shards from that stage on."""
        return self.processes if self.stage >= stage else 1


def sharding_of(launch: Launch, root: Path = RECIPES) -> Sharding:
    """Returns what the accelerate configuration of a launch says."""
    path = root / "accelerate" / f"{launch.name}.yaml"
    config = read_yaml(path).values if path.is_file() else {}
    kind, zero = config.get("distributed_type"), config.get("deepspeed_config") or {}
    if kind == "DEEPSPEED":
        return Sharding(
            launch.name, launch.processes, int(zero.get("zero_stage", 2)), True,
            zero.get("offload_optimizer_device") == "cpu", zero.get("offload_param_device") == "cpu",
        )  # fmt: skip
    return Sharding(launch.name, launch.processes, 3 if kind == "FSDP" else 0)
