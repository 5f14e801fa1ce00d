"""Academic benchmarks on a policy: every task of the settings once, the finished ones kept."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import set_seed

from handbook_ext.core.artifacts import json_object
from handbook_ext.core.console import tell
from handbook_ext.core.jsonl import write_json
from handbook_ext.core.records import content_id
from handbook_ext.evaluation.harness_library import (
    VERSION,
    Catalogue,
    OpenTask,
    evaluated,
    hf_model,
    hub_asked_once,
    hushed,
    vllm_model,
)
from handbook_ext.evaluation.harness_measures import TaskResult
from handbook_ext.evaluation.harness_requests import SharedRequests, TaskCannotRunError
from handbook_ext.policies.launch import Launch
from handbook_ext.policies.source import PolicySource
from handbook_ext.recipes.settings_harness import HarnessSettings
from handbook_ext.recipes.settings_stages import EngineSettings

KEPT = ".tasks"
"""The folder, beside eval.json, of finished tasks; it can be deleted at any time."""
BATCHES_PER_SHARD = {"transformers": 8, "vllm": 64}  # vLLM fills its batches itself: it wants many requests at once.


@dataclass(frozen=True)
class Bench:
    """Where the tasks are run: a process of a launch, the run's seed, a workspace from which a killed stage goes on.

    kept: folder of finished tasks, each taken over while its settings are the same, and `made_of`, what else determines it.
    """

    launch: Launch
    seed: int
    workspace: Path
    kept: Path
    made_of: str = ""

    def say(self, text: str) -> None:
        """Writes a line of progress, in the first process."""
        if self.launch.main:
            tell(f"harness: {text}")

    def kept_results(self, keys: dict[str, str]) -> dict[str, TaskResult]:
        """Returns the results of finished tasks, by name, that have these keys; the same in every process."""

        def read() -> dict[str, Any]:
            """Returns them as the first process finds them."""
            found = {name: json_object(self.kept / f"{name}.json") for name in keys}
            return {name: each["result"] for name, each in found.items() if each is not None and each.get("key") == keys[name]}

        return {name: TaskResult.model_validate(result) for name, result in self.launch.first_alone(read).items()}

    def keep(self, key: str, result: TaskResult) -> None:
        """Keeps the result of a finished task."""
        if self.launch.main:
            self.kept.mkdir(parents=True, exist_ok=True)
            write_json(self.kept / f"{result.task}.json", {"key": key, "result": result.model_dump()}, indent=1)


def own_task_hashes(settings: HarnessSettings, hash_of: Callable[[Path], str]) -> dict[str, str]:
    """Returns the hash of each file of include_path, by its path: what is outside the run and decides the results."""
    return {str(path): hash_of(path) for path in settings.include_files}


def run_harness(
    source: PolicySource, settings: HarnessSettings, bench: Bench, engine: EngineSettings | None = None
) -> list[TaskResult]:
    """Returns what each task found, in the order of the settings, in every process.

    A task whose data cannot be had here, or which this policy's context has no room for, has the reason as its `not_run`; the
    others are run. All data are loaded before the policy is. engine: how vLLM takes the GPUs, where the settings name it.
    Raises UserError for a task, metric or number of exemplars that there is not.
    """
    shared = settings.model_dump(exclude={"tasks", "include_path"})
    keys = {
        name: content_id(VERSION, source.sha256, bench.seed, bench.made_of, shared, asked.model_dump())
        for name, asked in settings.tasks.items()
    }
    results = bench.kept_results(keys)
    for each in results.values():
        bench.say(f"{_line(each)}, kept from before")
    wanted = settings.model_copy(update={"tasks": {name: settings.tasks[name] for name in keys if name not in results}})
    model = None
    with hushed():
        for opened in _opened(wanted, bench):
            if isinstance(opened, OpenTask):
                model = model or _model(source, settings, bench, engine or EngineSettings())
                found = _run(opened, model, settings, bench)
            else:
                found = opened
            results[found.task] = found
            bench.say(_line(found))
            if found.not_run is None:
                bench.keep(keys[found.task], found)
    if model is not None and bench.launch.device.type == "cuda":
        del model
        torch.cuda.empty_cache()
    return [results[name] for name in settings.tasks]


def _opened(settings: HarnessSettings, bench: Bench) -> list[OpenTask | TaskResult]:
    """Returns the tasks with their data; for those that cannot be had here, their results, which say so."""
    if not settings.tasks:
        return []
    launch = bench.launch
    catalogue = Catalogue(list(settings.tasks), settings.include_path)
    found: list[OpenTask | TaskResult] = []
    with hub_asked_once():
        for name, asked in settings.tasks.items():
            here: list[OpenTask] = []

            def load(name: str = name, here: list[OpenTask] = here) -> str | None:
                """Loads a task; returns why it cannot be had, None where it can."""
                set_seed(bench.seed)  # Tasks may draw which documents they have.
                try:
                    here.append(catalogue.load(name, settings.tasks[name], settings.fewshot_seed))
                except TaskCannotRunError as error:
                    return str(error)
                return None

            reason = launch.first_alone(load)  # The others then read from the cache what the first one has fetched.
            if reason is None and not launch.main:
                load()
            absent = {"unit": asked.unit, "metric": asked.metric, "num_fewshot": asked.num_fewshot, "not_run": reason}
            found += here or [TaskResult(task=name, definition=catalogue.definition(name), **absent)]
    return found


def _model(source: PolicySource, settings: HarnessSettings, bench: Bench, engine: EngineSettings) -> Any:
    """Returns the harness's model of the policy, on this process's device."""
    if settings.engine == "vllm":
        return vllm_model(source, settings, engine, bench.launch, bench.workspace)
    return hf_model(source, settings, bench.launch)


def _run(opened: OpenTask, model: Any, settings: HarnessSettings, bench: Bench) -> TaskResult:
    """Returns what a task found; one that this policy cannot do says so."""
    shard = settings.batch_size * BATCHES_PER_SHARD[settings.engine]
    shared = SharedRequests(
        model, bench.workspace / opened.name, bench.launch, task=opened.name, shard=shard, seed=bench.seed
    )  # fmt: skip
    about: dict[str, Any] = {
        "task": opened.name, "unit": settings.tasks[opened.name].unit, "metric": opened.metric, "num_fewshot": opened.num_fewshot,
        "definition": opened.definition, "version": opened.version,
    }  # fmt: skip
    set_seed(bench.seed)
    try:
        with _first_alone_seen(bench.launch):
            found = evaluated(opened, shared, settings)
    except TaskCannotRunError as error:
        return TaskResult(**about, not_run=str(error))
    if not math.isfinite(found["value"]):  # As mc2 where every answer's probability rounds to 0.
        return TaskResult(**about, not_run=f"{opened.metric} is not a finite number for this policy")
    return TaskResult(**about, **found, truncated=shared.truncated)


@contextmanager
def _first_alone_seen(launch: Launch) -> Iterator[None]:
    """Returns a context in which the harness shows its bars in the first process alone, and prints nothing."""
    with redirect_stdout(io.StringIO()):  # EQ-Bench prints a line for each answer that it cannot read.
        if launch.main:
            yield
        else:
            with redirect_stderr(io.StringIO()):
                yield


def _line(result: TaskResult) -> str:
    """Returns a task's result as a line for the screen."""
    if result.value is None:
        return f"{result.task} was not run: {result.not_run}"
    scale, unit = (100.0, " %") if result.unit == "%" else (1.0, "")
    error = "" if result.standard_error is None else f" +- {scale * result.standard_error:.1f}"
    cut = f", {result.truncated} requests cut to the policy's context" if result.truncated else ""
    return f"{result.task} {scale * result.value:.1f}{unit}{error} ({result.metric}, {result.n} documents{cut})"
