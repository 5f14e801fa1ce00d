"""The settings file of each stage: what determines it, typed. The graph writes these, `Stage.open` reads them."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field

from handbook_ext.core.records import OfflinePair
from handbook_ext.core.stage_settings import StageSettings
from handbook_ext.graph.batch_sizes import BatchSizes
from handbook_ext.recipes.section import Section
from handbook_ext.recipes.settings import (
    DataSettings,
    EngineSettings,
    EvaluateSettings,
    FitSettings,
    GenerateSettings,
    HealthSettings,
    ModelSettings,
    OptimizerSettings,
    RankSettings,
    ReportSettings,
    ScoreSettings,
    SelectSettings,
    SFTSettings,
    TrainSettings,
)
from handbook_ext.selection.material import portion

EVALUATION_FORMAT = 5  # Of eval.json; an older one is made again.


class Limits(Section):
    """How messages become tokens, how many there may be, and what becomes of a prompt that leaves no room."""

    max_length: int
    max_prompt_length: int | None
    long_prompts: Literal["error", "truncate", "drop"]
    truncation: Literal["always", "as_needed"] = "always"
    legacy_template: bool = False
    special_tokens: Literal["text", "keep"] = "text"


class Portion(Section):
    """Which of how many equal consecutive parts of the data an iteration uses, counted from 0, and how many rows at most."""

    index: int
    of: int
    most: int | None = None

    def rows_of(self, rows: list[OfflinePair]) -> list[OfflinePair]:
        """Returns the iteration's rows; raises UserError where there are none."""
        return portion(rows, self.index, self.of, self.most)


class DataStage(StageSettings):
    """Reading the data; `needs` are the properties that every row must have for some iteration's selection."""

    file: ClassVar[str] = "data/data.yaml"
    artifact: ClassVar[str] = "rows"
    needs: list[str]
    data: DataSettings


class CheckpointStage(StageSettings):
    """Fetching the recipe's checkpoint, where a package stands in for the hub; what it is used for does not concern it."""

    file: ClassVar[str] = "start/checkpoint.yaml"
    artifact: ClassVar[str] = "policy"
    model: ModelSettings


class Loop(Section):
    """What decides how often an iteration's training steps, at which rates, and the tokens that it reads: no more of `train`."""

    portion: Portion
    select: SelectSettings
    train: OptimizerSettings
    limits: Limits


class CheckStage(StageSettings):
    """Looking at schedules and tokens before anything trains; `rankers` are checkpoints, `reward_models` what the run fits."""

    file: ClassVar[str] = "check.yaml"
    artifact: ClassVar[str] = "check.json"
    model: ModelSettings
    sft: SFTSettings | None
    fit: FitSettings
    reward_models: dict[str, Literal["all", "labels", "judge"]]
    rankers: list[RankSettings]
    iterations: dict[str, Loop]
    long_prompts: Literal["error", "truncate", "drop"]
    max_truncated: float | None


class SFTStage(StageSettings):
    """Supervised fine-tuning."""

    file: ClassVar[str] = "sft/sft.yaml"
    artifact: ClassVar[str] = "policy"
    model: ModelSettings
    long_prompts: Literal["error", "truncate", "drop"]
    special_tokens: Literal["text", "keep"] = "text"
    sft: SFTSettings


class RankerStage(StageSettings):
    """Fitting the run's own reward model, to all offline pairs or to the half that labels or judges.

    `model` is the policy that gives its body; null where another model does.
    """

    file: ClassVar[str] = "ranker/ranker.yaml"
    artifact: ClassVar[str] = "model"
    model: ModelSettings | None
    max_length: int
    fit: FitSettings
    part: Literal["all", "labels", "judge"] = "all"


class JudgeStage(RankerStage):
    """Fitting the judge of evaluation that labels no pair, in a folder of its own."""

    file: ClassVar[str] = "judge.yaml"


class IterationStage(StageSettings):
    """What the stages of an iteration share; `policy` is the folder of the policy that it starts from."""

    iteration: str
    policy: str


class PolicyStage(IterationStage):
    """What the stages share that load a policy."""

    model: ModelSettings
    limits: Limits


class GenerateStage(PolicyStage):
    """Sampling from the policy that starts the iteration."""

    file: ClassVar[str] = "generate.yaml"
    artifact: ClassVar[str] = "completions.jsonl"
    portion: Portion
    generate: GenerateSettings


class RankStage(IterationStage):
    """Judging the samples."""

    file: ClassVar[str] = "rank.yaml"
    artifact: ClassVar[str] = "rankings.jsonl"
    model: ModelSettings
    rank: RankSettings


class SelectStage(IterationStage):
    """Making preference pairs; `reward_form` and `terms` say which margins select, where margins do."""

    file: ClassVar[str] = "select.yaml"
    artifact: ClassVar[str] = "pairs.jsonl"
    portion: Portion
    select: SelectSettings
    reward_form: dict[str, bool] = Field(default={})
    terms: list[dict[str, Any]] = Field(default=[])


class ScoreCandidatesStage(PolicyStage):
    """Scoring what selection compares: which texts, `offline` or `samples`, under which of the run's policies."""

    file: ClassVar[str] = "score.yaml"
    artifact: ClassVar[str] = "logprobs"
    score: ScoreSettings
    portion: Portion
    sizes: BatchSizes
    texts: dict[str, list[str]]


class ScorePairsStage(PolicyStage):
    """Scoring the pairs of training, in training's own batches."""

    file: ClassVar[str] = "score.yaml"
    artifact: ClassVar[str] = "logprobs"
    score: ScoreSettings
    global_batch_size: int
    sizes: BatchSizes
    explore: bool


class TrainStage(PolicyStage):
    """Preference optimisation; `tolerance` is in nats per token, null where no reference model enters the loss."""

    file: ClassVar[str] = "train.yaml"
    artifact: ClassVar[str] = "policy"
    train: TrainSettings
    tolerance: float | None


class EvaluateStage(PolicyStage):
    """Measuring a policy, here `policy` itself; `initial_policy` is what implicit rewards are measured against, if they are."""

    file: ClassVar[str] = "evaluate.yaml"
    artifact: ClassVar[str] = "eval.json"
    format: int = EVALUATION_FORMAT
    initial_policy: str | None
    rank: RankSettings
    evaluate: EvaluateSettings
    engine: EngineSettings


class HealthStage(IterationStage):
    """Comparing an iteration with the recipe's limits; here `policy` is the one that it trained."""

    file: ClassVar[str] = "health.yaml"
    artifact: ClassVar[str] = "health.json"
    health: HealthSettings


class ReportStage(StageSettings):
    """Writing the report of a run, of its policies in their order; or of several runs, `shown` with others `beside`."""

    file: ClassVar[str] = "report.yaml"
    artifact: ClassVar[str] = "report"
    policies: list[str]
    title: str
    report: ReportSettings
    shown: list[str] = Field(default=[])
    beside: list[str] = Field(default=[])


class TableStage(StageSettings):
    """Writing a table over many runs."""

    file: ClassVar[str] = "table.yaml"
    artifact: ClassVar[str] = "report"
    table: dict[str, Any]
    seeds: list[int]
    report: ReportSettings = ReportSettings()
