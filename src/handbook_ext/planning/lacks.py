"""What a single stage needs and cannot have here: each finder yields a kind of it, with what to do. No torch.

A tracker is known here by the package that it needs; what an extra brings is installed by the goal itself.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from shutil import which
from urllib.parse import urlsplit

from handbook_ext.core.artifacts import START
from handbook_ext.core.machine import has_package, torch_without_cuda, visible_gpus
from handbook_ext.core.stage_settings import StageSettings
from handbook_ext.graph.rule import StageRule
from handbook_ext.graph.stages import (
    CheckpointStage,
    CheckStage,
    DataStage,
    EvaluateStage,
    RankerStage,
    RankStage,
    ScoreCandidatesStage,
    SFTStage,
    TrainStage,
)
from handbook_ext.graph.stages_benchmarks import AnswerStage, GradeStage, HarnessStage, PromptsStage
from handbook_ext.planning.hub import unreachable
from handbook_ext.planning.supply import checkpoint_lack, data_lack
from handbook_ext.recipes.parts import EXTRAS, NO_TRACKERS, RANKERS
from handbook_ext.recipes.run import Run
from handbook_ext.recipes.settings import RankSettings
from handbook_ext.recipes.settings_rank import EndpointSettings

# Packages of the trackers of transformers, where they are not called like the tracker.
PACKAGES = {"tensorboard": ("tensorboard", "tensorboardX"), "azure_ml": ("azureml",), "flyte": ("flytekit",)}
ATTENTION = {"flash_attention_2": "flash_attn", "flash_attention_3": "flash_attn_interface"}


@dataclass(frozen=True)
class Lack:
    """Something that stages need and cannot have here: what is wrong and was allowed; what to do."""

    what: str
    remedy: str


def _of_packages(run: Run, rule: StageRule) -> Iterator[Lack]:
    """Yields the Python packages that are not installed and belong to no extra: those of extras the goal installs."""
    settings = rule.settings
    for tracker in _trackers(settings):
        names = PACKAGES.get(tracker, (tracker,))
        if tracker not in (*NO_TRACKERS, *EXTRAS["trackers"]) and not has_package(*names):
            yield _package(names[0], f"report_to {tracker} needs", "install it, or take the name out of report_to")
    attention = getattr(getattr(settings, "model", None), "attn_implementation", "")
    package = ATTENTION.get(attention) if rule.on_device else None
    if package is not None and not has_package(package):
        yield _package(package, f"model.attn_implementation {attention} needs", "install it, or set attn_implementation: sdpa")
    if isinstance(settings, TrainStage) and settings.train.liger:
        if run.launch.on_cpu:
            yield Lack(
                f"train.liger needs a GPU, and launch {run.launch.name} has none", "set train.liger: false, or give LAUNCH=gpu"
            )
        elif not has_package("liger_kernel"):
            yield _package("liger_kernel", "train.liger needs", "pip install liger-kernel, or set train.liger: false")


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
    if run.launch.on_cpu or not rule.on_device:
        return
    wanted, here = run.launch.processes, visible_gpus()
    if here < wanted and not run.launch.on_cluster:  # Its nodes have them, and share this environment.
        yield Lack(
            f"launch {run.launch.name} needs {wanted} GPU{'s' * (wanted > 1)}, and {here} {'is' if here == 1 else 'are'} visible",
            "give a launch that fits, such as LAUNCH=" + ("gpu" if here == 1 else f"fsdp2 GPUS={here}" if here else "cpu"),
        )
    if torch_without_cuda():
        yield Lack(
            f"launch {run.launch.name} needs a torch with CUDA, and the installed one was built without",
            "install torch's build for CUDA, or give LAUNCH=cpu",
        )


def _of_cluster(run: Run, rule: StageRule) -> Iterator[Lack]:
    """Yields that nothing here submits jobs."""
    if run.launch.on_cluster and which("sbatch") is None:
        yield Lack("CLUSTER=slurm needs the command sbatch, which is not here", "run make where it is, or leave CLUSTER out")


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
    for setting, name, revision in _further_checkpoints(settings):
        lack = checkpoint_lack(name, revision)
        if lack is not None:
            yield Lack(f"{setting}: {lack[0]}", lack[1])


def _further_checkpoints(settings: StageSettings) -> Iterator[tuple[str, str, str | None]]:
    """Yields setting, name and revision of each checkpoint that a stage reads besides the recipe's policy."""
    if isinstance(settings, AnswerStage | HarnessStage) and settings.checkpoint is not None:
        yield "benchmarks.checkpoints", settings.checkpoint, settings.model.revision
    if isinstance(settings, RankerStage) and settings.fit.model is not None and settings.fit.package is None:
        yield "rank.fit.model", settings.fit.model, None
    ranks: list[RankSettings] = settings.rankers if isinstance(settings, CheckStage) else []
    if isinstance(settings, RankStage | EvaluateStage):
        ranks = [settings.rank]
    for rank in ranks:
        if rank.model is not None and RANKERS[rank.ranker].reads == "checkpoint":
            yield "rank.model", rank.model, rank.revision


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
    return rule.on_device and START in [*named, *texts]


def _of_endpoints(run: Run, rule: StageRule) -> Iterator[Lack]:
    """Yields the key that OpenAI's own endpoint wants and the environment does not have."""
    settings = rule.settings
    judge: EndpointSettings | None = None
    name, other = "rank.judge", "name another endpoint in rank.judge.base_url"
    if isinstance(settings, RankStage | EvaluateStage) and settings.rank.ranker == "judge":
        judge = settings.rank.judge
    elif isinstance(settings, GradeStage):
        name, judge = "benchmarks.judge", settings.judge
        other = (
            'name another endpoint in its base_url, or SET="benchmarks.judge=null", which leaves what needs a judge as not run'
        )
    if judge is None or os.environ.get(judge.key_variable):
        return
    if not (judge.base_url or os.environ.get("OPENAI_BASE_URL")):
        yield Lack(
            f"{name} asks OpenAI's endpoint, which wants a key, and {judge.key_variable} is not set",
            f"set {judge.key_variable} in the environment, or {other}",
        )
    elif urlsplit(judge.base_url or "").hostname == "api.anthropic.com":
        yield Lack(
            f"{name} asks Anthropic's endpoint, which wants a key, and {judge.key_variable} is not set", f"set it, or {other}"
        )


def _of_data(run: Run, rule: StageRule) -> Iterator[Lack]:
    """Yields the data sets of the hub that are neither here nor to be had; local files were looked for with the recipe."""
    if isinstance(rule.settings, PromptsStage):
        stated = rule.settings
        for place in (stated.source, stated.references or "", *stated.outputs.values()):
            if place.startswith("hf://") and unreachable():
                yield Lack(f"benchmarks.sets.{stated.set}: {place} is on the hub, which cannot be reached", "name a local copy")
    if not isinstance(rule.settings, DataStage):
        return
    data = rule.settings.data
    for setting, name, revision in (("dataset", data.dataset, data.revision), ("sft_dataset", data.sft_dataset, None)):
        lack = data_lack(name, revision) if name not in (None, "tiny_world") else None
        if lack is not None:
            yield Lack(f"data.{setting}: {lack[0]}", lack[1])


FINDERS: tuple[Callable[[Run, StageRule], Iterator[Lack]], ...] = (
    _of_packages,
    _of_cluster,
    _of_gpus,
    _of_checkpoints,
    _of_endpoints,
    _of_data,
)
