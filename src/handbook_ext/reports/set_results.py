"""What policies of a run measured on prompt sets, by their eval.json of format 6."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from handbook_ext.core.artifacts import json_object

# Where the prompts of a set are from, as the hub calls it.
DATA_IDS = {
    "alpaca": "tatsu-lab/alpaca_eval",
    "mtbench": "HuggingFaceH4/mt_bench_prompts",
    "ultrafeedback": "HuggingFaceH4/ultrafeedback_binarized",
}


@dataclass(frozen=True)
class SetMeasure:
    """A measure of a policy on a prompt set; `overlap` of its `of` prompts stand in the training data, None where not looked."""

    policy: str
    set: str
    measure: str
    value: float | None
    standard_error: float | None
    n: int
    unit: str
    judge: str | None
    not_run: str | None
    overlap: int | None
    of: int

    @property
    def data_id(self) -> str:
        """Returns where the set's prompts are from, as the hub calls it."""
        return DATA_IDS.get(self.set, self.set)

    @property
    def words(self) -> str:
        """Returns the value with its standard error."""
        if self.value is None:
            return "not run"
        return f"{self.value:.2f}" + ("" if self.standard_error is None else f" ± {self.standard_error:.2f}")


def set_measures(run: Path, policies: Sequence[str]) -> list[SetMeasure]:
    """Returns every measure of the policies on prompt sets, in the order of the policies, sets and measures."""
    found = []
    for policy in policies:
        for path in sorted((run / policy).glob("*/eval.json")):
            content = json_object(path) or {}
            if content.get("format") != 6:
                continue
            overlap, of = (content.get("contaminated") or {}).get("overlap"), content["set"]["of"]
            for name, one in content["measures"].items():
                found.append(
                    SetMeasure(
                        policy, path.parent.name, name, one["value"], one["standard_error"], one["n"], one["unit"],
                        (one.get("judge") or {}).get("model"), one.get("not_run"), overlap, of,
                    )
                )  # fmt: skip
    return found
