"""Steps, tokens, memory, seconds and disk space of each stage of a run, before any of them starts. No torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from handbook_ext.core.stage_settings import StageSettings
from handbook_ext.graph import stages as files
from handbook_ext.graph.rule import StageRule
from handbook_ext.planning import stage_work, time_model
from handbook_ext.planning.figures import Estimate, Setting
from handbook_ext.planning.samplings import evaluate, generate, rank_samples
from handbook_ext.planning.space import SAVED, disk_needed, kept_bytes
from handbook_ext.planning.trainings import fit_ranker, preference, score_candidates, score_pairs, sft

REPORT_SECONDS = 3.0
CONVERTED = 2.5e-7  # Seconds in which a weight is fetched from a package and converted: 30 to 60 s for SmolLM2's 135 million.
CHECKPOINTS = 2  # That a training keeps to resume from.


def estimate(setting: Setting, rule: StageRule, settings: StageSettings | None = None) -> Estimate:
    """Returns the figures of a stage, under its settings or others in their place."""
    settings = rule.settings if settings is None else settings
    found = Estimate(rule.artifact, settings.stage, rule.on_device, "")
    find = next(find for kind, find in FINDERS.items() if isinstance(settings, kind))
    find(setting, settings, found)
    rates = setting.machine.rates if rule.on_device else setting.machine.cpu
    found.seconds += rates.start
    processes = setting.sharding.processes if rule.on_device else 1
    found.memory.main["libraries"] = rates.libraries * processes
    if rule.on_device and setting.machine.on_gpu:
        found.memory.main["loading"] = processes * _loaded(setting, settings, found)
    weights = setting.shape.weights
    if isinstance(settings, files.RankerStage):
        weights = setting.ranker_shape(setting.run.settings.rank.model_copy(update={"model": None})).weights
    found.kept = kept_bytes(settings, setting.run, weights)
    found.transient = CHECKPOINTS * (disk_needed(setting.run, [rule], weights) - found.kept)
    return found


def _loaded(setting: Setting, settings: StageSettings, found: Estimate) -> float:
    """Returns the bytes of main memory in which a process reads a policy before it goes to its GPU."""
    weights = setting.shape.weights
    if isinstance(settings, files.SFTStage | files.TrainStage) and setting.sharding.deepspeed and setting.sharding.stage == 3:
        return 2.0 * weights / setting.sharding.processes  # In parts; but one process gathers the whole to save it.
    if isinstance(settings, files.GenerateStage | files.EvaluateStage) and setting.run.settings.generate.engine == "vllm":
        return 0.0  # vLLM reads onto the GPU.
    if isinstance(settings, files.SFTStage | files.TrainStage) and setting.sharding.stage == 3:
        return (4.0 if settings.model.lora is None else SAVED[settings.model.dtype]) * weights  # FSDP shards it afterwards.
    return found.memory.device.get("weights", 0.0)


def _rows_only(setting: Setting, settings: Any, found: Estimate) -> None:
    """Fills in a stage that reads and writes rows alone."""
    amounts = setting.amounts
    rows = amounts.train + amounts.test + (amounts.sft if isinstance(settings, files.DataStage) else 0)
    if isinstance(settings, files.SelectStage):
        rows = stage_work.portion_rows(amounts, settings.portion)
    elif not isinstance(settings, files.DataStage | files.CheckStage):
        rows = amounts.test
    found.work = f"{rows:,} rows"
    found.seconds = rows * time_model.PER_ROW
    if isinstance(settings, files.ReportStage):
        found.seconds += REPORT_SECONDS
    if isinstance(settings, files.CheckpointStage):
        found.work, found.seconds = "checkpoint", CONVERTED * setting.shape.weights
        found.memory.main["weights"] = 8.0 * setting.shape.weights


FINDERS: Mapping[type[StageSettings], Callable[[Setting, Any, Estimate], None]] = {
    files.SFTStage: sft,
    files.RankerStage: fit_ranker,
    files.TrainStage: preference,
    files.ScorePairsStage: score_pairs,
    files.ScoreCandidatesStage: score_candidates,
    files.GenerateStage: generate,
    files.RankStage: rank_samples,
    files.EvaluateStage: evaluate,
    StageSettings: _rows_only,
}
