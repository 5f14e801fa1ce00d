"""The public evaluations of a recipe: prompt sets, how they are decoded, and which language model grades the answers."""

from __future__ import annotations

import re
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator

from handbook_ext.core.artifacts import START
from handbook_ext.recipes.section import Positive, Section, Temperature
from handbook_ext.recipes.settings_harness import HarnessSettings
from handbook_ext.recipes.settings_rank import EndpointSettings

HELD_OUT = "test"
"""As the source of a prompt set: the held-out prompts of the recipe's own data."""
START_ANSWERS = START
"""As the baseline of AlpacaEval: the answers of the policy that the loop starts from."""
REMOTE = ("https://", "hf://")
HARNESS = "harness"
"""The folder of lm-evaluation-harness, and its name beside the prompt sets."""
# Folders that a policy has already, or that are no prompt set.
RESERVED = ("policy", "logprobs", "data", "report", HARNESS)
_NAME = re.compile(r"[a-z][a-z0-9_]*")

Measure = Literal["alpaca_eval", "mt_bench", "single", "pairwise"]


class GraderSettings(EndpointSettings):
    """A language model behind an endpoint that grades answers."""

    model: str = Field(description="its name at the endpoint")

    @property
    def local(self) -> bool:
        """Tells whether the endpoint is on this machine, so that tables can say so."""
        return urlsplit(self.base_url or "").hostname in ("127.0.0.1", "localhost", "::1")


class CheckpointSettings(Section):
    """A released checkpoint that goes through the same evaluation as the policy of the run."""

    name_or_path: str = Field(description="hub id or folder")
    revision: str | None = Field(None, description="commit or tag of a hub checkpoint")


class DecodingSettings(Section):
    """How the prompts of a set are answered."""

    temperature: Temperature = Field(0.0, description="of the answers")
    temperatures: dict[str, Temperature] = Field(default={}, description="of single categories, in place of it")
    top_p: Annotated[float, Field(gt=0, le=1)] = Field(1.0, description="nucleus of the sampling distribution")
    max_new_tokens: Positive = Field(1024, description="tokens of an answer at most")
    max_prompt_length: Positive = Field(2048, description="tokens of a prompt kept, its head and its end")
    batch_size: Positive = Field(64, description="sequences generated together")

    @property
    def hottest(self) -> float:
        """Returns the highest temperature of any category."""
        return max([self.temperature, *self.temperatures.values()])


class PromptSetSettings(DecodingSettings):
    """A prompt set: where it comes from, how it is decoded, what is measured on the answers."""

    source: str = Field(
        description="a .json, .jsonl or .parquet file, an https:// or hf:// address of one, or `test`: the run's held-out prompts"
    )
    rows: Positive | None = Field(None, description="use only the first prompts; null is all, and reports say which")
    references: str | None = Field(None, description="reference answers by question, as FastChat has them, or null")
    outputs: dict[str, str] = Field(default={}, description="stored outputs of other models on the same prompts: name and source")
    baseline: str | None = Field(
        None, description="alpaca_eval: the name in `outputs` that answers are compared with, or `start`"
    )
    length_control: str | None = Field(
        None, description="alpaca_eval: a file or an address of df_gamed.csv, which its fit reads; null is the hub's own"
    )
    measures: list[Measure] = Field(
        min_length=1,
        description="alpaca_eval: win rate and length-controlled win rate over the baseline; mt_bench: 1 to 10 points for each "
        "turn; single: 1 to 10 points; pairwise: win rate over the start and over each of `outputs`",
    )
    judge: GraderSettings | None = Field(None, description="who grades this set; null is benchmarks.judge")
    judge_runs: Positive = Field(1, description="how often each answer is graded; values are means over all")

    @model_validator(mode="after")
    def _consistent(self) -> PromptSetSettings:
        """Raises for a baseline that is not there, or where there is none to compare with."""
        stated = self.baseline is not None or "alpaca_eval" in self.measures
        if stated and self.baseline not in (START_ANSWERS, *self.outputs):
            named = ", ".join([*self.outputs, START_ANSWERS])
            raise ValueError(f"measure alpaca_eval compares with a baseline; set baseline to one of: {named}")
        for name in self.outputs:
            if not _NAME.fullmatch(name) or name == START_ANSWERS:
                raise ValueError(f"outputs: '{name}' is no name of a measure; use small letters, digits and '_' alone")
        return self


class BenchmarkSettings(Section):
    """Public evaluations of the run's policies: `make <run>-eval`."""

    judge: GraderSettings | None = Field(
        None, description="language model that grades; null leaves what needs one as not run, whatever single sets say"
    )
    contaminated: Literal["refuse", "mark"] = Field(
        "refuse", description="what to do where training prompts are among a set's: stop, or mark every value of the set"
    )
    checkpoints: dict[str, CheckpointSettings | None] = Field(
        default={}, description="released checkpoints by the policy that they stand beside, for CHECKPOINTS=released"
    )
    sets: dict[str, PromptSetSettings | None] = Field(
        default={}, description="prompt sets by name; null removes an inherited one"
    )
    harness: HarnessSettings | None = Field(None, description="tasks of lm-evaluation-harness, by SETS=harness; null is none")

    @field_validator("sets")
    @classmethod
    def _usable(cls, value: dict[str, PromptSetSettings | None]) -> dict[str, PromptSetSettings | None]:
        """Raises for a set whose name cannot be that of a folder in a policy's."""
        for name in value:
            if not _NAME.fullmatch(name) or name in RESERVED:
                raise ValueError(
                    f"no prompt set can be called '{name}': small letters, digits and '_', none of {', '.join(RESERVED)}"
                )
        return value

    @field_validator("checkpoints")
    @classmethod
    def _policies(cls, value: dict[str, CheckpointSettings | None]) -> dict[str, CheckpointSettings | None]:
        """Raises for a released checkpoint that stands beside no policy of a run."""
        for name in value:
            if not re.fullmatch(r"start|sft|iter(0|[1-9][0-9]*)", name):
                raise ValueError(f"checkpoints: '{name}' is no policy of a run; name start, sft or iter<N>")
        return value

    def prompt_set(self, name: str) -> PromptSetSettings:
        """Returns a set by name, which must be there."""
        found = self.sets[name]
        if found is None:
            raise KeyError(name)
        return found

    @property
    def names(self) -> tuple[str, ...]:
        """Returns the names of the sets."""
        return tuple(name for name, chosen in self.sets.items() if chosen is not None)

    @property
    def evaluations(self) -> tuple[str, ...]:
        """Returns what SETS may name: the prompt sets, and the harness where the recipe has it."""
        return (*self.names, *([HARNESS] if self.harness is not None else []))

    @property
    def released(self) -> dict[str, CheckpointSettings]:
        """Returns the released checkpoints by the policy that they stand beside."""
        return {name: chosen for name, chosen in self.checkpoints.items() if chosen is not None}

    def grader(self, name: str) -> GraderSettings | None:
        """Returns who grades a set; nobody where `judge` is null, whatever the set says."""
        return None if self.judge is None else self.prompt_set(name).judge or self.judge
