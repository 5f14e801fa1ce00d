"""The settings of the loop's stages, which an iteration may override, and of the report."""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import Field, model_validator

from handbook_ext.objectives.losses import LOSSES
from handbook_ext.objectives.objective import Objective
from handbook_ext.objectives.reward_form import RewardForm
from handbook_ext.recipes.parts import ENGINES
from handbook_ext.recipes.section import Fraction, Limit, OneOf, Positive, Section, Temperature
from handbook_ext.recipes.settings_run import HEAD_CHUNK, OptimizerSettings
from handbook_ext.selection.rules import KEEP_BY, LABELS, RULES

FITTED = "fitted "  # How the id of a reward model begins that a run fits itself.


class EngineSettings(Section):
    """What samples from a policy, in generation and in evaluation."""

    engine: Annotated[str, OneOf(["auto", *ENGINES])] = Field(
        "auto",
        description="auto is vllm where it is installed and the launch has GPUs, else transformers; decided once per run",
    )
    tokens_per_batch: Positive | None = Field(
        None,
        description="transformers: positions of the cache for a batch at most, prompts and max_new_tokens; null is any number",
    )
    tensor_parallel_size: Positive = Field(1, description="vllm: GPUs that share one copy of the policy; the others hold further")
    gpu_memory_utilization: Annotated[float, Field(gt=0, le=1)] = Field(
        0.9, description="vllm: share of a GPU's memory that it takes"
    )


class GenerateSettings(EngineSettings):
    """Sampling from the current policy."""

    num_completions: Positive = Field(1, description="completions per prompt")
    temperature: Temperature = Field(0.0, description="0 is greedy")
    top_p: Annotated[float, Field(gt=0, le=1)] = Field(1.0, description="nucleus of the sampling distribution")
    max_new_tokens: Positive = Field(1024, description="tokens per completion at most")
    batch_size: Positive = Field(64, description="sequences generated together")


class ScoreSettings(Section):
    """The store of log-probabilities under the policy that starts the iteration."""

    tolerance: Limit | None = Field(
        None,
        description="nats per token by which the answers of training's first step may differ from the store; null is 1e-3, and "
        "2e-2 in bf16, where short answers may differ by more, and one pair of eight by more than rounding",
    )


class SelectSettings(Section):
    """How preference pairs are made."""

    rule: Annotated[str, OneOf(RULES)] = Field(
        "best_and_worst", description="; ".join(f"{name}: {rule.summary}" for name, rule in RULES.items())
    )
    explore: bool = Field(True, description="keep sample 0 of each prompt for the exploration term")
    explore_as_chosen: Literal["keep", "skip"] = Field(
        "keep", description="what to do with the exploration term of a pair whose chosen is the explored sample"
    )
    keep: Fraction = Field(0.7, description="sera: offline pairs kept, K, as a share of N")
    keep_by: Annotated[str, OneOf(KEEP_BY)] = Field(
        "margin",
        description="sera: what the kept pairs are the largest in. " + "; ".join(f"{k}: {v.summary}" for k, v in KEEP_BY.items()),
    )
    bootstrap: Fraction = Field(0.3, description="sera: pairs of the policy's own samples, K~, as a share of N")
    bootstrap_labels: Annotated[str, OneOf(LABELS)] = Field(
        "margin",
        description="sera: who says which of two own samples is chosen. " + "; ".join(f"{k}: {v}" for k, v in LABELS.items()),
    )
    gamma: Fraction = Field(0.3, description="sera: weight of the margin of the policy before (Eq. 7); 0 is no ensemble")
    margin_reference: Literal["previous", "start"] = Field(
        "previous", description="sera: reference of a policy's margin: the one it was trained against, or the first"
    )
    rejected_rank: Literal[1, 2, 3] = Field(
        1, description="curriculum: the rejected answer's place from the worst of the rated ones"
    )


class TrainSettings(OptimizerSettings):
    """Preference optimisation of one iteration."""

    loss_type: Annotated[str, OneOf(LOSSES)] = Field(
        "sigmoid", description="; ".join(f"{name}: {loss.summary}" for name, loss in LOSSES.items())
    )
    beta: Annotated[float, Field(gt=0)] = Field(
        description="strength of the tie to the reference model; simpo: scale of the reward; orpo: weight of the odds ratio"
    )
    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)] = Field(
        0.0, description="sigmoid and robust: the share of labels taken to be wrong"
    )
    ipo_log_prob: Literal["mean", "sum"] = Field("mean", description="ipo: log-probs per token (as TRL has them) or summed")
    gamma_beta_ratio: Annotated[float, Field(ge=0)] = Field(0.5, description="simpo: target margin over beta")
    alpha: Annotated[float, Field(ge=0)] = Field(0.0, description="SELM's optimism; 0 is DPO")
    alpha_scale: Literal["alpha_beta", "alpha"] = Field(
        "alpha_beta", description="factor of the exploration term: alpha*beta (Eq. 4.2, code) or alpha (Algorithm 1)"
    )
    explore_form: Literal["log_ratio", "log_prob"] = Field(
        "log_ratio", description="exploration term on log pi - log pi_ref (official code) or log pi (paper)"
    )
    max_prompt_length: Annotated[int, Field(ge=1)] | None = Field(
        None, description="tokens of the prompt kept, its head and its end; null keeps all"
    )
    truncation: Literal["always", "as_needed"] = Field(
        "always",
        description="always: prompts have max_prompt_length tokens at most, in all stages; as_needed: only where prompt and "
        "longest completion exceed max_length, and completions only if that does not suffice (SELM's code)",
    )
    legacy_template: bool = Field(
        False,
        description="encode as SELM's code does, to reproduce it: a completion with its role header and two EOS, BOS before the "
        "rendered prompt, a cut prompt without its head",
    )
    head_chunk: Positive = Field(HEAD_CHUNK, description="completion tokens that meet the LM head at once")
    micro_batch_tokens: Positive | None = Field(
        None,
        description="row positions of a device's micro-batch, instead of a number of pairs; the global batch stays one of pairs, "
        "and which pairs a step has stays the same; null is per_device_train_batch_size",
    )
    keep_at: list[Annotated[float, Field(gt=0, lt=1)]] = Field(
        default=[],
        description="shares of the optimizer steps after which the policy, as it then is, is kept and evaluated as well: 0.25 "
        "of iter1 is the policy iter1@25",
    )

    torch_compile: bool = Field(False, description="compile the policy's body with torch; some minutes before the first step")
    liger: bool = Field(
        False, description="Liger's norms, MLPs and rotations on a GPU; needs liger-kernel, and an architecture that it knows"
    )

    @model_validator(mode="after")
    def _in_order(self) -> TrainSettings:
        """Raises for shares to keep policies at that are out of order, or of which a name would not be the whole truth."""
        if self.keep_at != sorted({round(share, 4) for share in self.keep_at}):
            raise ValueError(f"keep_at {self.keep_at} must be increasing shares of four decimals at most, such as [0.25, 0.5]")
        return self

    @property
    def kept(self) -> dict[str, float]:
        """Returns the shares of the steps after which a policy is kept, by their percent in words."""
        return {f"{100 * share:g}": share for share in self.keep_at}

    @property
    def epochs(self) -> int:
        """Returns how many epochs training begins."""
        return math.ceil(self.num_train_epochs)

    @property
    def reward_form(self) -> RewardForm:
        """Returns what the loss, and with it the margin of a pair, is made of."""
        return Objective.from_settings(self.model_dump()).reward_form

    @property
    def needs_reference(self) -> bool:
        """Tells whether log-probs of the reference model enter the loss."""
        return Objective.from_settings(self.model_dump()).needs_reference


class EvaluateSettings(Section):
    """Sampling of the held-out prompts, and who judges it."""

    judge: Literal["ranker", "apart"] = Field(
        "ranker", description="whose rewards count: the ranker, or a second reward model, fitted to pairs that the ranker has not"
    )
    temperatures: list[Temperature] = Field(default=[0.0, 0.7], min_length=1, description="one decoding each")
    top_p: Annotated[float, Field(gt=0, le=1)] = Field(1.0, description="nucleus of the sampling distribution")
    prompts: Positive | None = Field(None, description="held-out prompts used; null is all")
    max_new_tokens: Positive = Field(1024, description="tokens per completion at most")
    batch_size: Positive = Field(64, description="sequences generated together")
    implicit_reward: bool = Field(
        True, description="also score the held-out pairs and the samples under the policy and the first one"
    )


class HealthSettings(Section):
    """Limits on the preference data of an iteration; exceeding one stops the run before what comes next."""

    max_tied_prompts: Fraction | None = Field(None, description="share of judged prompts whose best and worst score are equal")
    max_identical_pairs: Fraction | None = Field(None, description="share of pairs dropped because both texts are equal")
    max_empty_completions: Fraction | None = Field(None, description="share of sampled completions without text")
    min_distinct_completions: Fraction | None = Field(None, description="distinct samples of a prompt over its samples, mean")
    max_length_correlation: Fraction | None = Field(
        None, description="correlation, in absolute value, of being chosen with being longer"
    )
    max_length_gap: Limit | None = Field(None, description="words by which chosen is longer than rejected, mean")
    max_chosen_fall: Limit | None = Field(None, description="nats by which the log-prob of chosen fell in training, mean")
    max_kl: Limit | None = Field(
        None, description="nats per answer: mean log-ratio to the first policy on held-out samples, a KL estimate"
    )


class ReportSettings(Section):
    """The report of a run."""

    title: str | None = Field(None, description="headline; null is the recipe's name")
    bootstrap_resamples: Annotated[int, Field(ge=100)] = Field(2000, description="resamples per interval")
    confidence: Annotated[float, Field(gt=0.5, lt=1)] = Field(0.95, description="coverage of an interval")
