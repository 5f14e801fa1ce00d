"""The settings of lm-evaluation-harness: which tasks, with how many exemplars, and by which metric."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from handbook_ext.recipes.section import Positive, Section

# SELM, table 2 (V3): the tasks and their numbers of exemplars. The paper names no metric, no version of the harness and no
# treatment of chat templates: those below are assumed.
PAPER_TASKS: dict[str, dict[str, Any]] = {
    "gsm8k_cot": {"num_fewshot": 8, "metric": "exact_match,strict-match"},
    "hellaswag": {"num_fewshot": 10, "metric": "acc_norm"},
    "arc_challenge": {"num_fewshot": 25, "metric": "acc_norm"},
    "truthfulqa_mc2": {"num_fewshot": 0, "metric": "acc"},
    "eq_bench": {"num_fewshot": 0, "metric": "eqbench", "unit": "points"},
    "openbookqa": {"num_fewshot": 10, "metric": "acc_norm"},
}
"""The six tasks of SELM's table 2; `acc` of truthfulqa_mc2 is its mc2."""


class HarnessTask(Section):
    """One task of the harness; what is left out for a task of SELM's table 2 is as there."""

    num_fewshot: Annotated[int, Field(ge=0)] | None = Field(
        None, description="exemplars before each question; null is the task's own"
    )
    metric: str | None = Field(
        None,
        description="the task's metric, with its filter where there are several: exact_match,strict-match; null is the first",
    )
    unit: Literal["%", "points"] = Field("%", description="%: the metric is a share, shown times 100; points: its own scale")

    @field_validator("metric")
    @classmethod
    def _named(cls, value: str | None) -> str | None:
        """Raises for what is no name of a metric, with or without a filter."""
        if value is not None and not re.fullmatch(r"[^,\s]+(,[^,\s]+)?", value):
            raise ValueError(f"metric '{value}' is no name, such as acc_norm or, with a filter, exact_match,strict-match")
        return value


class HarnessSettings(Section):
    """Academic benchmarks by lm-evaluation-harness."""

    tasks: dict[str, HarnessTask] = Field(
        default={name: HarnessTask.model_validate(task) for name, task in PAPER_TASKS.items()},
        min_length=1,
        description="tasks by name, as a mapping or a list; default: the six of SELM's table 2",
    )
    limit: Positive | None = Field(None, description="documents of each task at most, its first ones; null is all")
    batch_size: Positive = Field(8, description="sequences computed together")
    apply_chat_template: bool = Field(False, description="questions as messages in the policy's chat template")
    fewshot_as_multiturn: bool = Field(
        True, description="with apply_chat_template: each exemplar is a turn; false puts all of them into one message"
    )
    fewshot_seed: Annotated[int, Field(ge=0)] = Field(
        1234, description="of the drawn exemplars; the harness's own number, so that all policies and seeds see the same ones"
    )
    include_path: str | None = Field(
        None,
        description="folder with YAML files of own tasks, seen from the current folder; what it holds is part of the result's "
        "identity, data files that lie elsewhere are not",
    )
    engine: Literal["transformers", "vllm"] = Field(
        "transformers", description="what computes; vllm is the harness's own use of it, with the GPUs of generate"
    )

    @field_validator("tasks", mode="before")
    @classmethod
    def _completed(cls, value: Any) -> Any:
        """Returns a mapping for a list of names, with the paper's numbers where its tasks leave them out."""
        if isinstance(value, list) and all(isinstance(name, str) for name in value):
            twice = sorted({name for name in value if value.count(name) > 1})
            if twice:
                raise ValueError(f"tasks names {', '.join(twice)} more than once; name each task once")
            value = dict.fromkeys(value)
        if not isinstance(value, dict):
            return value
        stated = {name: {} if task is None else task for name, task in value.items()}
        return {name: {**PAPER_TASKS.get(name, {}), **task} if isinstance(task, dict) else task for name, task in stated.items()}

    @property
    def include_files(self) -> tuple[Path, ...]:
        """Returns the files of include_path, in the order of their paths; none without one."""
        if self.include_path is None:
            return ()
        found = (path for path in Path(self.include_path).rglob("*") if path.is_file() and "__pycache__" not in path.parts)
        return tuple(sorted(found))
