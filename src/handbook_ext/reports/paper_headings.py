"""What the YAML beside a printed table says: columns and the measures that they are, judges, and what stands for its rows."""

from __future__ import annotations

import re
from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from handbook_ext.recipes.section import Section

HARNESS = "harness"
RUN = "run"
"""As a column's set: the run's own files, no prompt set."""
MATRIX = "matrix"
"""As a column's measure: what the row's policy wins over that of the row which is called like the column."""
BENCHMARKS = ("alpaca", "mtbench", "vicuna", "evol", "ultrafeedback")
# The measures of each set; vs_<name> is a win rate over stored answers of <name>, or of the policy that starts the loop.
_PAIRED = r"single|vs_[a-z][a-z0-9_]*"
_MEASURES = {
    "alpaca": rf"lc_win_rate|win_rate|length|{MATRIX}|{_PAIRED}",
    "mtbench": "average|turn1|turn2",
    HARNESS: "gsm8k_cot|hellaswag|arc_challenge|truthfulqa_mc2|eq_bench|openbookqa|average",
    RUN: "agreement|annotation_hours|unreadable",
}


class Column(Section):
    """A column of a printed table, and the measure that it is: of a prompt set, of the harness, or of a run's own files."""

    name: str
    better: Literal["higher", "lower"] | None = Field(None, description="which values are better, where any are")
    set: str | None = Field(None, description="the prompt set of the measure, `harness`, or `run`; null for one that is quoted")
    measure: str | None = Field(None, description="its name in eval.json, or of what is worked out of the run's files")
    over: str | None = Field(None, description="the policy whose value is taken off, for a printed gain")
    against: str | None = Field(None, description="agreement: the recipe whose pairs are those of the other judge")
    quoted: str | None = Field(None, description="why nothing of ours is such a column")

    @model_validator(mode="after")
    def _measured_or_quoted(self) -> Self:
        """Raises for a column that is neither, or both, or whose measure its set has not."""
        if (self.quoted is None) == (self.set is None) or (self.set is None) != (self.measure is None):
            raise ValueError("needs a set and a measure, or `quoted` with why it has none")
        if self.set is not None:
            allowed = _MEASURES.get(self.set, _PAIRED if self.set in BENCHMARKS else "")
            if not allowed:
                raise ValueError(f"set '{self.set}' is none of {', '.join([*BENCHMARKS, HARNESS, RUN])}")
            if not re.fullmatch(allowed, self.measure or ""):
                raise ValueError(f"measure '{self.measure}' is none of set {self.set}: {allowed.replace('|', ', ')}")
        return self


class Judge(Section):
    """Who judged the paper's values: what it is called, and the models at an endpoint that are it."""

    name: str
    models: str = Field(description="pattern of a model's name at an endpoint, after the provider's prefix")
    assumed: bool = Field(False, description="whether the paper leaves open which it was")

    @field_validator("models")
    @classmethod
    def _pattern(cls, value: str) -> str:
        """Raises for what is no regular expression."""
        try:
            re.compile(value)
        except re.error as error:
            raise ValueError(f"models {value!r} is no pattern ({error})") from None
        return value

    def is_model(self, model: str) -> bool:
        """Returns whether a model at an endpoint is the paper's judge."""
        return re.fullmatch(self.models, model.rpartition("/")[2]) is not None

    @property
    def words(self) -> str:
        """Returns its name, and that it is assumed where it is."""
        return f"{self.name} (assumed)" if self.assumed else self.name


class Stand(Section):
    """The policy of ours that a row, or a single cell of it, is to be measured with."""

    group: str
    row: str
    column: str | None = Field(None, description="null is the whole row")
    recipe: str
    policy: str | None = Field(None, description="start, sft or iter<N>; null is the recipe's last iteration")

    @property
    def words(self) -> str:
        """The recipe and the policy, such as `zephyr-selm iter3`."""
        return " ".join(filter(None, (self.recipe, self.policy)))


class PaperClaim(Section):
    """What the paper concludes from two cells of a column: that one row is better than another."""

    group: str
    column: str
    better: str
    worse: str
    words: str


class Heading(Section):
    """What a table's YAML says: all but the cells."""

    title: str
    paper: str
    source: str = Field(description="where it is printed, with the paper's arXiv id and version")
    columns: list[Column] = Field(min_length=1)
    notes: list[str] = Field(default=[])
    judges: dict[str, Judge] = Field(default={}, description="who judged, by prompt set, or `all`")
    claims: list[PaperClaim] = Field(default=[])
    stands: list[Stand] = Field(default=[])
