"""What a single stage needs and cannot have here: each finder yields a kind of it, with what to do. No torch.

An engine, a ranker or a tracker that is new is known here: by the version that has it, and by the package that it needs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from handbook_ext.core.artifacts import START
from handbook_ext.core.machine import has_package, torch_without_cuda, visible_gpus
from handbook_ext.core.stage_settings import StageSettings
from handbook_ext.graph.rule import StageRule
from handbook_ext.graph.stages import (
    CheckpointStage,
    CheckStage,
    DataStage,
    EvaluateStage,
    GenerateStage,
    RankerStage,
    RankStage,
    ScoreCandidatesStage,
    SFTStage,
    TrainStage,
)
from handbook_ext.planning.supply import checkpoint_lack, data_lack
from handbook_ext.recipes.run import Run
from handbook_ext.recipes.settings import ENGINES_HERE, RANKERS_HERE, RankSettings

# Packages of the trackers of transformers, where they are not called like the tracker.
TRACKERS = {"tensorboard": ("tensorboard", "tensorboardX"), "azure_ml": ("azureml",), "flyte": ("flytekit",)}
NO_TRACKERS = ("all", "none")
ATTENTION = {"flash_attention_2": "flash_attn", "flash_attention_3": "flash_attn_interface"}
INSTEAD = {"generate.engine": "generate.engine=transformers", "rank.ranker": "rank.ranker=reward_model rank.model=null"}


@dataclass(frozen=True)
class Lack:
    """Something that stages need and cannot have here: what is wrong and was allowed; what to do."""

    what: str
    remedy: str


def _of_version(run: Run, rule: StageRule) -> Iterator[Lack]:
    """Yields the engine and the ranker that this version does not have."""
    settings = rule.settings
    asked: list[tuple[str, str, tuple[str, ...]]] = []
    if isinstance(settings, GenerateStage):
        asked.append(("generate.engine", settings.generate.engine, ENGINES_HERE))
    if isinstance(settings, RankStage | EvaluateStage):
        asked.append(("rank.ranker", settings.rank.ranker, RANKERS_HERE))
    for setting, value, here in asked:
        if value not in here:
            yield Lack(
                f"{setting} {value} is not part of this version, which has: {', '.join(here)}",
                f'set one of these, such as SET="{INSTEAD[setting]}"',
            )


def _of_packages(run: Run, rule: StageRule) -> Iterator[Lack]:
    """Yields the Python packages that are not installed."""
    settings = rule.settings
    if rule.loads_policy and run.launch.name.startswith("zero") and not has_package("deepspeed"):
        yield _package("deepspeed", f"launch {run.launch.name} needs", ".venv/bin/pip install -e '.[gpu]', or another LAUNCH=")
    engine = settings.generate.engine if isinstance(settings, GenerateStage) else ""
    if engine == "vllm" and engine in ENGINES_HERE and not has_package("vllm"):
        yield _package("vllm", "generate.engine vllm needs", "install it, or set generate.engine: transformers")
    for tracker in _trackers(settings):
        names = TRACKERS.get(tracker, (tracker,))
        if tracker not in NO_TRACKERS and not has_package(*names):
            yield _package(names[0], f"report_to {tracker} needs", "install it, or take the name out of report_to")
    attention = getattr(getattr(settings, "model", None), "attn_implementation", "")
    package = ATTENTION.get(attention) if rule.loads_policy else None
    if package is not None and not has_package(package):
        yield _package(package, f"model.attn_implementation {attention} needs", "install it, or set attn_implementation: sdpa")


def _trackers(settings: StageSettings) -> list[str]:
    """Returns the trackers that a training writes to."""
    if isinstance(settings, SFTStage):
        return settings.sft.report_to
    return settings.train.report_to if isinstance(settings, TrainStage) else []


def _package(name: str, needs: str, remedy: str) -> Lack:
    """Returns the lack of a package."""
    return Lack(f"{needs} the Python package {name}, which is not installed", remedy)


def _of_gpus(run: Run, rule: StageRule) -> Iterator[Lack]:
    """Yields that there are fewer GPUs than processes, or that torch could not use them."""
    if run.launch.on_cpu or not rule.loads_policy:
        return
    wanted, here = run.launch.processes, visible_gpus()
    if here < wanted:
        yield Lack(
            f"launch {run.launch.name} needs {wanted} GPU{'s' * (wanted > 1)}, and {here} {'is' if here == 1 else 'are'} visible",
            "give a launch that fits, such as LAUNCH=" + ("gpu" if here == 1 else f"fsdp2 GPUS={here}" if here else "cpu"),
        )
    if torch_without_cuda():
        yield Lack(
            f"launch {run.launch.name} needs a torch with CUDA, and the installed one was built without",
            "install torch's build for CUDA, or give LAUNCH=cpu",
        )


def _of_checkpoints(run: Run, rule: StageRule) -> Iterator[Lack]:
    """Yields the policy's and the ranker's checkpoint where one is neither here nor to be had."""
    settings, model = rule.settings, run.settings.model
    if model.package is not None:  # It stands in for a hub that is not reached; other stages read what `checkpoint` leaves.
        if isinstance(settings, CheckpointStage) and not has_package("gguf"):
            yield _package("gguf", "model.package needs", ".venv/bin/pip install -e '.[gguf]'")
    elif model.name_or_path is not None and _reads_start(run, rule):
        lack = checkpoint_lack(model.name_or_path, model.revision)
        if lack is not None:
            yield Lack(f"model.name_or_path: {lack[0]}", lack[1])
    if isinstance(settings, RankerStage) and settings.fit.model is not None and settings.fit.package is None:
        lack = checkpoint_lack(settings.fit.model, None)
        if lack is not None:
            yield Lack(f"rank.fit.model: {lack[0]}", lack[1])
    ranks: list[RankSettings] = settings.rankers if isinstance(settings, CheckStage) else []
    if isinstance(settings, RankStage | EvaluateStage):
        ranks = [settings.rank]
    for rank in ranks:
        lack = checkpoint_lack(rank.model, rank.revision) if rank.model is not None and rank.ranker == "reward_model" else None
        if lack is not None:
            yield Lack(f"rank.model: {lack[0]}", lack[1])


def _reads_start(run: Run, rule: StageRule) -> bool:
    """Tells whether a stage reads the recipe's checkpoint: fine-tuning and the check do, what starts from it, and its judges."""
    settings = rule.settings
    if isinstance(settings, SFTStage | CheckStage):
        return True
    if isinstance(settings, RankerStage):
        return run.start == START
    if isinstance(settings, RankStage) and settings.rank.ranker != "self":
        return False
    named: Iterable[str | None] = [getattr(settings, "policy", None), getattr(settings, "initial_policy", None)]
    texts = settings.texts if isinstance(settings, ScoreCandidatesStage) else {}
    return rule.loads_policy and START in [*named, *texts]


def _of_data(run: Run, rule: StageRule) -> Iterator[Lack]:
    """Yields the data sets of the hub that are neither here nor to be had; local files were looked for with the recipe."""
    if not isinstance(rule.settings, DataStage):
        return
    data = rule.settings.data
    for setting, name, revision in (("dataset", data.dataset, data.revision), ("sft_dataset", data.sft_dataset, None)):
        lack = data_lack(name, revision) if name not in (None, "tiny_world") else None
        if lack is not None:
            yield Lack(f"data.{setting}: {lack[0]}", lack[1])


FINDERS: tuple[Callable[[Run, StageRule], Iterator[Lack]], ...] = (_of_version, _of_packages, _of_gpus, _of_checkpoints, _of_data)
