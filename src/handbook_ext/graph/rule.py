"""What a rule of the graph is, and what all of them are put together from."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from handbook_ext.core.artifacts import START, checkpoint_files
from handbook_ext.core.kept import KEPT, place_of
from handbook_ext.core.stage_settings import StageSettings
from handbook_ext.graph.stages import Limits, Portion
from handbook_ext.recipes.iteration import Iteration
from handbook_ext.recipes.parts import ASKED, RANKERS
from handbook_ext.recipes.run import Run
from handbook_ext.recipes.section import Section
from handbook_ext.recipes.settings import EngineSettings, RankSettings, Recipe

ROWS = "data/rows"
CHECK = "check.json"
S = TypeVar("S", bound=Section)
Launcher = Literal["plain", "per_device", "accelerate"]
PARTS = tuple(f"{ROWS}/{name}.jsonl" for name in ("sft", "train", "test"))


@dataclass(frozen=True)
class StageRule:
    """One stage of a run: the folder that its script is given, what determines it, and what else make must know.

    `after` are artifacts that must be there although the stage does not read them; made anew, they start nothing. `external`
    are files outside the run: make sees that one changed, the stage compares contents. `launcher` says how the script starts:
    `plain` as one process without a GPU; `per_device` as processes that know nothing of each other's device, one for each, since
    vLLM makes process groups of its own; `accelerate` as the launch configuration says, for training.
    """

    folder: str
    settings: StageSettings
    script: str
    launcher: Launcher = "accelerate"
    after: tuple[str, ...] = ()
    external: tuple[Path, ...] = ()

    @property
    def on_device(self) -> bool:
        """Tells whether the stage computes with a model, and so belongs on a GPU where the launch has any."""
        return self.launcher != "plain"

    @property
    def engine(self) -> str:
        """Returns what samples in the stage; empty where nothing does."""
        stated: EngineSettings | None = getattr(self.settings, "generate", None) or getattr(self.settings, "engine", None)
        return "" if stated is None else stated.engine

    @property
    def settings_file(self) -> str:
        """Returns the stage's settings file, as a path in the run's folder."""
        return os.path.join(self.folder, self.settings.file)

    @property
    def artifact(self) -> str:
        """Returns what the stage makes, as a path in the run's folder."""
        return os.path.join(os.path.dirname(self.settings_file), self.settings.artifact)

    @property
    def inputs(self) -> list[str]:
        """Returns the artifacts that the stage reads, as paths in the run's folder."""
        here = os.path.dirname(self.settings_file)
        stated = [[each] if isinstance(each, str) else each for each in self.settings.inputs.values()]
        return [os.path.normpath(os.path.join(here, name)) for names in stated for name in names]


def devices_each(rule: StageRule, run: Run) -> int:
    """Returns how many devices each process of a stage has: those of one engine of vLLM, else one."""
    return run.settings.generate.tensor_parallel_size if rule.engine == "vllm" else 1


def whole_of(name: str) -> str:
    """Returns the artifact, with a manifest of its own, that an input is or is a part of.

    A file of the rows has none, nor has a policy that training kept on its way.
    """
    whole, kept, _ = name.partition(f"/policy/{KEPT}")
    return ROWS if name in PARTS else f"{whole}/policy" if kept else name


def about(run: Run, iteration: Iteration | None = None) -> dict[str, Any]:
    """Returns what every settings file says of the run, and those of an iteration of the iteration."""
    whole = {"recipe": run.recipe, "overrides": list(run.overrides), "seed": run.settings.seed}
    return whole if iteration is None else {**whole, "iteration": iteration.name, "policy": iteration.starts_from}


def seen_from(folder: str, **artifacts: str | list[str] | None) -> dict[str, str | list[str]]:
    """Returns the inputs of a stage by role, as paths from the folder of its settings file; None and [] are no input."""
    start = folder or "."
    found = {role: artifact for role, artifact in artifacts.items() if artifact}
    return {
        role: [os.path.relpath(each, start) for each in name] if isinstance(name, list) else os.path.relpath(name, start)
        for role, name in found.items()
    }


def policy_artifact(run: Run, name: str) -> str | None:
    """Returns the artifact of a policy of the run; None for `start` where that is a checkpoint that no stage makes.

    That of a policy kept on the way, `iter1@25`, is a part of the artifact of its iteration.
    """
    return None if name == START and run.settings.model.package is None else place_of(name)


def ranker_artifact(rank: RankSettings) -> str | None:
    """Returns the artifact of the run's own reward model, where the recipe names no other."""
    return "ranker/model" if rank.ranker == "reward_model" and rank.model is None else None


def ranker_files(rank: RankSettings) -> tuple[Path, ...]:
    """Returns the local files of a ranker: its checkpoint, and the question that it is asked."""
    kind = RANKERS[rank.ranker]
    checkpoint = folder_files(rank.model) if kind.reads == "checkpoint" else ()
    return (*checkpoint, *(file_of(rank.rubric) if rank.ranker in ASKED else ()))


def limits_of(settings: Recipe) -> Limits:
    """Returns how messages become tokens, and how many there may be."""
    train, data = settings.train, settings.data
    return Limits(
        max_length=train.max_length, max_prompt_length=train.max_prompt_length, long_prompts=data.long_prompts,
        truncation=train.truncation, legacy_template=train.legacy_template, special_tokens=data.special_tokens,
    )  # fmt: skip


def health_of(run: Run, policy: str) -> tuple[str, ...]:
    """Returns the health of the iteration that trained a policy, where the recipe limits it: what follows waits for it."""
    return tuple(f"{each.name}/health.json" for each in run.iterations if each.name == policy and each.health_limited)


def checkpoint_of(run: Run, *policies: str) -> tuple[Path, ...]:
    """Returns the local files that make up the recipe's checkpoint, if `start` is among the policies (none: it is).

    They are those of its folder, and a chat template that is a file; a policy made here was saved with its template.
    """
    model = run.settings.model
    if (policies and START not in policies) or model.package is not None:
        return ()
    return (*folder_files(model.name_or_path), *([model.template_file] if model.template_file else []))


def folder_files(source: str | None) -> tuple[Path, ...]:
    """Returns the files of a checkpoint that is a local folder; none for a name on the hub."""
    return tuple(checkpoint_files(Path(source))) if source is not None and Path(source).is_dir() else ()


def file_of(name: str | None) -> tuple[Path, ...]:
    """Returns the file that a setting names, none where its value is another word or null."""
    return (Path(name),) if name is not None and os.path.isfile(name) else ()


def portion_of(run: Run, each: Iteration) -> Portion:
    """Returns the part of the data that an iteration uses."""
    return Portion(index=each.index, of=run.settings.data.portions, most=run.settings.data.portion_rows)


def part_of(kind: type[S], section: Section) -> S:
    """Returns what a section has of the settings of its parent class, so that a stage is identified by these alone."""
    return kind.model_validate(section.model_dump(include=set(kind.model_fields)))
