"""The settings files of the stages that evaluate policies on public prompt sets, and that compare policies and runs."""

from __future__ import annotations

from typing import ClassVar, Literal

from handbook_ext.core.stage_settings import StageSettings
from handbook_ext.graph.stages import PolicyStage
from handbook_ext.recipes.settings import EngineSettings, ModelSettings, ReportSettings
from handbook_ext.recipes.settings_benchmarks import DecodingSettings, GraderSettings, Measure
from handbook_ext.recipes.settings_harness import HarnessSettings

SET_FORMAT = 6  # Of a set's eval.json; an older one is refused by its reader, and made again by its stage.


class PromptsStage(StageSettings):
    """Reading a prompt set, and looking for its prompts among those of training."""

    file: ClassVar[str] = "prompts.yaml"
    artifact: ClassVar[str] = "prompts.jsonl"
    set: str
    source: str
    rows: int | None
    references: str | None
    outputs: dict[str, str]
    contaminated: Literal["refuse", "mark"]


class AnswerStage(PolicyStage):
    """Answering a prompt set; `checkpoint` names a released one where it is no policy of the run."""

    file: ClassVar[str] = "answer.yaml"
    artifact: ClassVar[str] = "answers.jsonl"
    set: str
    checkpoint: str | None
    decoding: DecodingSettings
    engine: EngineSettings


class GradeStage(StageSettings):
    """Grading the answers of a policy to a prompt set."""

    file: ClassVar[str] = "grade.yaml"
    artifact: ClassVar[str] = "eval.json"
    format: int = SET_FORMAT
    policy: str
    set: str
    checkpoint: str | None
    decoding: DecodingSettings
    measures: list[Measure]
    outputs: list[str]
    baseline: str | None
    length_control: str | None
    judge: GraderSettings | None
    judge_runs: int


class HarnessStage(StageSettings):
    """Running a policy on tasks of lm-evaluation-harness; `engine` says how vLLM takes the GPUs, where `harness` names it."""

    file: ClassVar[str] = "harness.yaml"
    artifact: ClassVar[str] = "eval.json"
    format: int = SET_FORMAT
    policy: str
    checkpoint: str | None
    model: ModelSettings
    harness: HarnessSettings
    engine: EngineSettings


class MatrixStage(StageSettings):
    """Comparing every two policies, of one run or of several, on their answers to a set (SELM, figure 2)."""

    file: ClassVar[str] = "matrix.yaml"
    artifact: ClassVar[str] = "matrix.json"
    set: str
    policies: list[str]
    length_control: str | None
    judge: GraderSettings


class CompareStage(StageSettings):
    """Writing the page that compares runs, `runs` by their folders."""

    file: ClassVar[str] = "compare.yaml"
    artifact: ClassVar[str] = "compare"
    runs: list[str]
    report: ReportSettings
