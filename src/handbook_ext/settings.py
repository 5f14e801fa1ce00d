"""What a recipe may say: one section per stage, every value typed, ranged and explained."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Fraction = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[int, Field(ge=1)]
Rate = Annotated[float, Field(gt=0, le=1)]
Temperature = Annotated[float, Field(ge=0, le=5)]

RANKERS_HERE = ("oracle", "reward_model")
ENGINES_HERE = ("transformers",)


class Section(BaseModel):
    """A part of a recipe; unknown keys and values of another type are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class ModelSettings(Section):
    """The policy that the loop starts from, and how it is loaded."""

    name_or_path: str | None = Field(None, description="checkpoint (hub id or folder); null builds `architecture`")
    revision: str | None = Field(None, description="commit or tag of a hub checkpoint")
    architecture: dict[str, str | int | float | bool | None] | None = Field(
        None, description="model_type and its configuration values, for a policy built from scratch"
    )
    tokenizer_vocab_size: Annotated[int, Field(ge=300)] | None = Field(
        None, description="entries of the byte-level BPE tokenizer that the SFT stage trains on its own text"
    )
    chat_template: str | None = Field(None, description="`zephyr`, or a Jinja file; null keeps the checkpoint's own")
    dtype: Literal["float32", "bfloat16"] = Field("bfloat16", description="type of the loaded weights")
    attn_implementation: Literal["sdpa", "eager", "flex_attention"] = Field(
        "sdpa", description="attention under the prefix-shared mask; flex_attention packs rows on CUDA"
    )
    trust_remote_code: bool = Field(False, description="run Python code that a hub checkpoint brings")

    @model_validator(mode="after")
    def _one_origin(self) -> ModelSettings:
        """Raises when the policy has no origin, or two."""
        if (self.name_or_path is None) == (self.architecture is None):
            raise ValueError("give either name_or_path or architecture, one of the two")
        if self.architecture is not None and self.tokenizer_vocab_size is None:
            raise ValueError("a policy built from an architecture needs tokenizer_vocab_size")
        return self


class DataSettings(Section):
    """Where prompts and offline preference pairs come from."""

    dataset: str | None = Field(None, description="`tiny_world` or a hub id; not needed when `train` is a file")
    config_name: str | None = Field(None, description="configuration of a hub dataset")
    revision: str | None = Field(None, description="commit or tag of a hub dataset")
    train: str = Field("train_prefs", description="split of `dataset`, or a local .jsonl, .json or .parquet file")
    test: str = Field("test_prefs", description="the same for the held-out prompts of evaluation")
    train_rows: Positive | None = Field(None, description="use only the first rows; for tiny_world how many to make")
    test_rows: Positive | None = Field(None, description="the same for the test rows")
    sft_rows: Positive | None = Field(None, description="the same for the SFT rows")
    flip_rate: Annotated[float, Field(ge=0, le=0.5)] = Field(
        0.0, description="share of training pairs whose chosen and rejected are swapped, by seed"
    )
    portions: Positive = Field(1, description="equal consecutive parts, one per iteration; 1 gives each all rows")
    long_prompts: Literal["error", "truncate", "drop"] = Field(
        "error", description="what to do with a prompt that leaves no room: stop, keep its end, or drop the row"
    )
    empty_completions: Literal["error", "drop"] = Field("error", description="what to do with an empty answer")


class OptimizerSettings(Section):
    """Names and meanings of transformers.TrainingArguments; the batch is stated once, globally."""

    learning_rate: Rate = Field(description="peak learning rate")
    num_train_epochs: Annotated[float, Field(gt=0, le=100)] = Field(1.0, description="passes over the data")
    global_batch_size: Positive = Field(description="examples per optimizer step, over all devices")
    per_device_train_batch_size: Positive = Field(description="examples per device and micro-batch")
    max_length: Annotated[int, Field(ge=8)] = Field(description="tokens of prompt and completion together")
    lr_scheduler_type: Literal["cosine", "linear", "constant", "constant_with_warmup"] = Field(
        "cosine", description="course of the learning rate"
    )
    warmup_ratio: Fraction = Field(0.1, description="share of the steps in which the learning rate rises")
    optim: Literal["adamw_torch", "adamw_torch_fused", "rmsprop"] = Field("adamw_torch", description="optimizer")
    weight_decay: Annotated[float, Field(ge=0)] = Field(0.0, description="decoupled weight decay")
    adam_beta1: Fraction = Field(0.9, description="decay of the first moment")
    adam_beta2: Fraction = Field(0.999, description="decay of the second moment")
    adam_epsilon: Annotated[float, Field(gt=0)] = Field(1e-8, description="added to the root of the second moment")
    max_grad_norm: Annotated[float, Field(gt=0)] = Field(1.0, description="gradients are clipped to this norm")
    gradient_checkpointing: bool = Field(False, description="recompute activations to save memory")
    bf16: bool = Field(False, description="bfloat16 mixed precision")
    logging_steps: Positive = Field(10, description="optimizer steps between two log lines")
    save_steps: Positive = Field(100, description="optimizer steps between two checkpoints to resume from")
    report_to: list[str] = Field(default=[], description="trackers of transformers: wandb, tensorboard, mlflow, ...")


class SFTSettings(OptimizerSettings):
    """Supervised fine-tuning on the demonstrations (tiny_world) or the chosen completions."""

    packing: bool = Field(False, description="TRL's packing of several examples into one row")


class GenerateSettings(Section):
    """Sampling from the current policy."""

    engine: Literal["transformers", "vllm"] = Field("transformers", description="what runs the policy")
    num_completions: Positive = Field(1, description="completions per prompt")
    temperature: Temperature = Field(0.0, description="0 is greedy")
    top_p: Annotated[float, Field(gt=0, le=1)] = Field(1.0, description="nucleus of the sampling law")
    max_new_tokens: Positive = Field(1024, description="tokens per completion at most")
    batch_size: Positive = Field(64, description="sequences generated together")


class FitSettings(Section):
    """Bradley-Terry training of the recipe's own reward model, when `rank.model` names none."""

    learning_rate: Rate = Field(5e-4, description="peak learning rate")
    num_train_epochs: Annotated[float, Field(gt=0, le=100)] = Field(1.0, description="passes over the offline pairs")
    global_batch_size: Positive = Field(32, description="pairs per optimizer step")
    per_device_train_batch_size: Positive = Field(8, description="pairs per device and micro-batch")
    save_steps: Positive = Field(100, description="optimizer steps between two checkpoints to resume from")


class RankSettings(Section):
    """Who judges the candidates of a prompt."""

    ranker: Literal["auto", "oracle", "reward_model", "pairrm", "judge"] = Field(
        "auto", description="auto is oracle where the data have a true reward (tiny_world), else reward_model"
    )
    model: str | None = Field(None, description="the ranker's checkpoint; null fits one on the offline pairs")
    revision: str | None = Field(None, description="commit or tag of a hub ranker")
    batch_size: Positive = Field(32, description="texts judged together")
    max_length: Annotated[int, Field(ge=8)] = Field(1024, description="tokens of prompt and completion together")
    source_max_length: Annotated[int, Field(ge=8)] = Field(1224, description="pairrm: tokens of the prompt kept")
    candidate_max_length: Annotated[int, Field(ge=8)] = Field(412, description="pairrm: tokens of a completion kept")
    fit: FitSettings = Field(default_factory=FitSettings, description="training of the recipe's own reward model")


class ScoreSettings(Section):
    """The store of log-probabilities under the policy that starts the iteration."""

    tolerance: Annotated[float, Field(ge=0)] = Field(
        1e-3, description="nats per token by which training's first batch may differ from the store"
    )


class SelectSettings(Section):
    """How preference pairs are made of judged candidates."""

    rule: Literal["dataset", "best_and_worst", "against_chosen"] = Field(
        "best_and_worst",
        description="dataset keeps the original labels; best_and_worst is SELM's rule A, against_chosen its rule B",
    )
    explore: bool = Field(True, description="keep sample 0 of each prompt for the exploration term")
    explore_as_chosen: Literal["keep", "skip"] = Field(
        "keep", description="what to do with the exploration term of a pair whose chosen is the explored sample (A12)"
    )


class TrainSettings(OptimizerSettings):
    """Preference optimisation of one iteration."""

    loss_type: Literal["sigmoid"] = Field("sigmoid", description="sigmoid is DPO")
    beta: Annotated[float, Field(gt=0)] = Field(description="strength of the tie to the reference model")
    alpha: Annotated[float, Field(ge=0)] = Field(0.0, description="SELM's optimism; 0 is DPO")
    alpha_scale: Literal["alpha_beta", "alpha"] = Field(
        "alpha_beta", description="factor of the exploration term: alpha*beta (Eq. 4.2, code) or alpha (Algorithm 1)"
    )
    explore_form: Literal["log_ratio", "log_prob"] = Field(
        "log_ratio", description="exploration term on log pi - log pi_ref (official code) or log pi (paper)"
    )
    max_prompt_length: Annotated[int, Field(ge=1)] | None = Field(
        None, description="tokens of the prompt kept, its end; null keeps all"
    )
    head_chunk: Positive = Field(4096, description="completion tokens that meet the LM head at once")


class EvaluateSettings(Section):
    """Sampling of the held-out prompts, and who judges it."""

    temperatures: list[Temperature] = Field(default=[0.0, 0.7], min_length=1, description="one decoding each")
    top_p: Annotated[float, Field(gt=0, le=1)] = Field(1.0, description="nucleus of the sampling law")
    prompts: Positive | None = Field(None, description="held-out prompts used; null is all")
    max_new_tokens: Positive = Field(1024, description="tokens per completion at most")
    batch_size: Positive = Field(64, description="sequences generated together")


class ReportSettings(Section):
    """The report of a run."""

    title: str | None = Field(None, description="headline; null is the recipe's name")
    bootstrap_resamples: Annotated[int, Field(ge=100)] = Field(2000, description="resamples per interval")
    confidence: Annotated[float, Field(gt=0.5, lt=1)] = Field(0.95, description="coverage of an interval")


class Recipe(Section):
    """A whole recipe after inheritance and the overrides of one iteration."""

    seed: Annotated[int, Field(ge=0, lt=2**31)] = Field(42, description="of data, sampling, order and initial weights")
    launch: str = Field("cpu", description="launch configuration recipes/accelerate/<launch>.yaml; cpu is plain python")
    model: ModelSettings
    data: DataSettings
    sft: SFTSettings | None = Field(None, description="null starts from model.name_or_path as it is")
    generate: GenerateSettings = GenerateSettings()
    rank: RankSettings = RankSettings()
    score: ScoreSettings = ScoreSettings()
    select: SelectSettings = SelectSettings()
    train: TrainSettings
    evaluate: EvaluateSettings = EvaluateSettings()
    report: ReportSettings = ReportSettings()

    @model_validator(mode="after")
    def _consistent(self) -> Recipe:
        """Raises when two sections contradict each other."""
        if self.model.architecture is not None and self.sft is None:
            raise ValueError("a policy built from an architecture needs an `sft` section to train it")
        if self.train.alpha > 0 and not self.select.explore:
            raise ValueError("train.alpha above 0 needs select.explore: true")
        if self.train.max_prompt_length is not None and self.train.max_prompt_length >= self.train.max_length:
            raise ValueError("train.max_prompt_length must be below train.max_length")
        if self.data.dataset is None and not self.data.train.endswith((".jsonl", ".json", ".parquet")):
            raise ValueError("data needs a `dataset`, or `train` and `test` as local files")
        return self
