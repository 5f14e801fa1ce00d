"""What `make <run>-plan` was asked for, and the run, launches and machine that this means. No torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from shlex import quote

from handbook_ext.core.artifacts import json_object
from handbook_ext.core.errors import UserError
from handbook_ext.graph.makefile import begun_with
from handbook_ext.graph.run_rules import StageRule, run_rules
from handbook_ext.planning.amounts import Amounts, amounts_of
from handbook_ext.planning.figures import Setting
from handbook_ext.planning.machine_choice import machine_of
from handbook_ext.planning.shapes import policy_shape
from handbook_ext.planning.sharding import sharding_of
from handbook_ext.recipes.launch_checks import Launch
from handbook_ext.recipes.names import RECIPES
from handbook_ext.recipes.overrides import Override, parse_data, parse_set
from handbook_ext.recipes.run import Run, resolve

# Launches to try for several GPUs and for one, the recipe's own before them.
SEVERAL = ("ddp", "fsdp2", "zero2", "zero3", "zero3-offload", "zero3-offload-weights")
ONE = ("gpu", "zero3-offload", "zero3-offload-weights")


@dataclass(frozen=True)
class Request:
    """A plan's run by name, and make's variables as they were given; None and empty where they were not."""

    run: str
    set: str = ""
    data: str = ""
    launch: str | None = None
    gpus: int | None = None
    vram: str | None = None
    ram: str | None = None
    threads: int = 1
    write: str | None = None

    @property
    def overrides(self) -> list[Override]:
        """Returns what overrides the recipe."""
        return [*parse_set(self.set), *(parse_data(self.data) if self.data else [])]

    def resolved(self, runs: Path, launch: str | None, gpus: int | None, *, batches: bool = True) -> Run:
        """Returns the run on a launch; without `batches` on one that need not meet them."""
        return resolve(
            self.run, overrides=self.overrides, launch=launch, gpus=gpus, batches=batches,
            engines=lambda name: begun_with(runs / name),
        )  # fmt: skip

    def words(self, **changes: str) -> str:
        """Returns make's variables as one would write them, with some replaced."""
        stated = {"SET": self.set, "DATA": self.data, "LAUNCH": self.launch, "GPUS": self.gpus, "VRAM": self.vram}
        stated |= {"RAM": self.ram, "THREADS": self.threads if self.threads > 1 else None} | changes
        return "".join(f" {name}={quote(str(value))}" for name, value in stated.items() if value)


def read_request(path: Path) -> Request:
    """Returns the request that scripts/plan_goals.py has written; raises UserError where it is missing or damaged."""
    found = json_object(path)
    if found is None:
        raise UserError(f"{path}: is missing or damaged; make <run>-plan writes it, such as make tiny-selm-plan")
    return Request(**found)


def settings_of(request: Request, runs: Path, amounts: Amounts | None = None) -> list[Setting]:
    """Returns the recipe under each launch that may be chosen, its own first.

    amounts: those of the run where they are known already. A launch that is given is the only one. GPUs that are asked for
    replace a launch on the CPU. Raises UserError for GPUs that cannot share the global batch.
    """
    on_gpus = request.gpus is not None or request.vram is not None
    own = request.resolved(runs, request.launch, None, batches=request.gpus is None)
    launch, gpus = request.launch, request.gpus
    if request.launch is None and own.launch.on_cpu and on_gpus:
        launch, gpus = ("ddp" if (request.gpus or 1) > 1 else "gpu"), request.gpus or 1
    elif request.launch is None and own.launch.name == "gpu" and (request.gpus or 1) > 1:
        launch = "ddp"
    run = request.resolved(runs, launch, gpus)
    if run.launch.on_cpu and request.vram is not None:
        raise UserError(f"VRAM: the launch {run.launch.name} has no GPU; leave VRAM out, or give LAUNCH=ddp or another of GPUs")
    folder = runs / run.name
    sharding = sharding_of(run.launch)
    machine = machine_of(request.vram, request.ram, request.threads, sharding, runs)
    first = Setting(run, folder, policy_shape(run, folder), amounts or amounts_of(run, folder), machine, sharding)
    if run.launch.on_cpu or request.launch is not None:
        return [first]
    names: tuple[str, ...] = SEVERAL if run.launch.processes > 1 else ONE
    if "rmsprop" in _optimizers(run):  # accelerate exchanges Adam for DeepSpeed's, and knows no other RMSprop.
        names = tuple(name for name in names if "offload" not in name)
    others = [
        Launch(name, run.launch.processes, replaced=True, gpus=run.launch.processes)
        for name in names
        if name != run.launch.name and (RECIPES / "accelerate" / f"{name}.yaml").is_file()
    ]
    return [first, *(replace(first, run=replace(run, launch=each), sharding=sharding_of(each)) for each in others)]


def _optimizers(run: Run) -> set[str]:
    """Returns the optimizers of a run's trainings."""
    sections = [run.settings.sft, *(each.settings.train for each in run.iterations)]
    return {section.optim for section in sections if section is not None}


def rules_once() -> Callable[[Setting], list[StageRule]]:
    """Returns a function from a setting to its rules, made once: a launch changes none of them."""
    known: dict[str, list[StageRule]] = {}

    def find(setting: Setting) -> list[StageRule]:
        """Returns the rules of a run."""
        if setting.run.name not in known:
            known[setting.run.name] = run_rules(setting.run)
        return known[setting.run.name]

    return find
