"""What a recipe may say: one section per stage, every value typed, ranged and explained."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from handbook_ext.objectives.losses import LOSSES
from handbook_ext.recipes.section import Positive, Section
from handbook_ext.recipes.settings_benchmarks import BenchmarkSettings
from handbook_ext.recipes.settings_rank import FitSettings, JudgeSettings, RankSettings
from handbook_ext.recipes.settings_run import (
    DATA_SUFFIXES,
    CheckedData,
    DataSettings,
    LoraSettings,
    ModelSettings,
    OptimizerSettings,
    SFTSettings,
)
from handbook_ext.recipes.settings_slurm import SlurmSettings
from handbook_ext.recipes.settings_stages import (
    FITTED,
    EngineSettings,
    EvaluateSettings,
    GenerateSettings,
    HealthSettings,
    ReportSettings,
    ScoreSettings,
    SelectSettings,
    TrainSettings,
)
from handbook_ext.selection.rules import KEEP_BY, needs_of

__all__ = [
    "DATA_SUFFIXES", "FITTED", "CheckedData", "DataSettings", "EngineSettings", "EvaluateSettings", "FitSettings",
    "GenerateSettings", "HealthSettings", "JudgeSettings", "LoraSettings", "ModelSettings", "OptimizerSettings", "RankSettings",
    "Recipe", "ReportSettings", "SFTSettings", "ScoreSettings", "Section", "SelectSettings", "TrainSettings",
]  # fmt: skip


class Recipe(Section):
    """A whole recipe after inheritance and the overrides of one iteration."""

    seed: Annotated[int, Field(ge=0, lt=2**31)] = Field(42, description="of data, sampling, order and initial weights")
    launch: str = Field("cpu", description="launch configuration recipes/accelerate/<launch>.yaml; cpu is plain python")
    gpus: Positive | None = Field(None, description="processes of the launch, a GPU each; null is what its file says")
    model: ModelSettings
    data: CheckedData
    sft: SFTSettings | None = Field(None, description="null starts from model.name_or_path as it is")
    generate: GenerateSettings = GenerateSettings()
    rank: RankSettings = RankSettings()
    score: ScoreSettings = ScoreSettings()
    select: SelectSettings = SelectSettings()
    train: TrainSettings
    evaluate: EvaluateSettings = EvaluateSettings()
    benchmarks: BenchmarkSettings = BenchmarkSettings()
    health: HealthSettings = HealthSettings()
    report: ReportSettings = ReportSettings()
    slurm: SlurmSettings = SlurmSettings()

    @model_validator(mode="after")
    def _consistent(self) -> Recipe:
        """Raises when two sections contradict each other."""
        if self.model.architecture is not None and self.sft is None:
            raise ValueError("a policy built from an architecture needs an `sft` section to train it")
        if self.train.alpha > 0 and not self.select.explore:
            raise ValueError("train.alpha above 0 needs select.explore: true")
        if self.train.max_prompt_length is not None and self.train.max_prompt_length >= self.train.max_length:
            raise ValueError("train.max_prompt_length must be below train.max_length")
        if self.train.keep_at and self.model.lora is not None:
            raise ValueError("train.keep_at keeps whole policies, and model.lora trains adapters alone; remove one of the two")
        needs = needs_of(self.select)
        if self.train.truncation == "as_needed" and self.train.max_prompt_length is None:
            raise ValueError("train.truncation as_needed needs train.max_prompt_length, to which a prompt is cut")
        if needs.log_probs and (self.train.truncation == "as_needed" or self.train.legacy_template):
            raise ValueError(
                f"select.rule {self.select.rule} scores completions before they are paired, but with train.truncation as_needed "
                "or train.legacy_template a completion's tokens depend on its pair; use always, and false"
            )
        if self.data.dataset is None and not self.data.train.endswith(DATA_SUFFIXES):
            raise ValueError("data needs a `dataset`, or `train` and `test` as local files")
        return self

    @model_validator(mode="after")
    def _fitting_loss(self) -> Recipe:
        """Raises when a loss is asked for what it does not have."""
        train, needs = self.train, needs_of(self.select)
        if not train.reward_form.reference:
            if train.alpha > 0 and train.explore_form == "log_ratio":
                raise ValueError(
                    f"train.loss_type {train.loss_type} has no reference model, but train.explore_form log_ratio needs one; "
                    "set explore_form: log_prob"
                )
            if needs.margins and self.select.margin_reference == "start":
                raise ValueError(
                    f"train.loss_type {train.loss_type} has no reference model, so its margins have none: "
                    "remove select.margin_reference"
                )
        taken = LOSSES[train.loss_type].options
        for option, default in {name: value for loss in LOSSES.values() for name, value in loss.options.items()}.items():
            if option not in taken and getattr(train, option) != default:
                takers = [name for name, loss in LOSSES.items() if option in loss.options]
                raise ValueError(f"train.{option} belongs to loss_type {' and '.join(takers)}, not to {train.loss_type}")
        if self.health.max_kl is not None and not self.evaluate.implicit_reward:
            raise ValueError("health.max_kl needs evaluate.implicit_reward: true, which measures it")
        return self

    @model_validator(mode="after")
    def _satisfied_needs(self) -> Recipe:
        """Raises when the selection rule needs what data, samples or rankings will not have."""
        select, needs = self.select, needs_of(self.select)
        if needs.offline_ranked and self.rank.candidates == "samples":
            raise ValueError(f"select.rule {select.rule} compares with the offline answers; set rank.candidates: all")
        if needs.data_scores and self.data.form in ("hh_rlhf", "tldr"):
            by = f"keep_by {select.keep_by}" if KEEP_BY[select.keep_by].needs.data_scores else f"rule {select.rule}"
            raise ValueError(f"select.{by} needs scores, which data of the form {self.data.form} do not have")
        if needs.rated_answers and self.data.form in ("pairs", "hh_rlhf", "tldr"):
            raise ValueError(
                f"select.rule {select.rule} needs several rated answers to a prompt, which data of the form {self.data.form} do "
                "not have"
            )
        samples_alone = (needs.rankings and self.rank.candidates == "samples") or needs.sample_margins
        if samples_alone and (self.generate.num_completions < 2 or self.generate.temperature == 0):
            raise ValueError(
                "pairs of the policy's own samples need at least two that differ: set generate.num_completions to 2 or more, and "
                "generate.temperature above 0"
            )
        if select.rule == "sera" and select.keep + select.bootstrap == 0:
            raise ValueError("select.keep and select.bootstrap are both 0, which leaves no pair")
        return self
