"""What policies of a run measured on prompt sets, for a card: each measure with its set, its judge and its contamination."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from handbook_ext.evaluation.set_evaluation import MeasuredValue, SetEvaluation, current_evaluations

# Where the prompts of a set are from, as the hub calls it.
DATA_IDS = {"alpaca": "tatsu-lab/alpaca_eval", "mtbench": "HuggingFaceH4/mt_bench_prompts"}


@dataclass(frozen=True)
class SetMeasure:
    """A measure of a policy, and the evaluation that it is from."""

    policy: str
    set: str
    name: str
    one: MeasuredValue
    evaluation: SetEvaluation

    @property
    def data_id(self) -> str:
        """Returns where the set's prompts are from, as the hub calls it."""
        return DATA_IDS.get(self.set, self.set)

    @property
    def judge(self) -> str | None:
        """Returns who judged, None where nobody did."""
        return None if self.one.judge is None else self.one.judge.model + (", locally" if self.one.judge.local else "")

    @property
    def words(self) -> str:
        """Returns the value with its standard error."""
        if self.one.value is None:
            return "not run"
        return f"{self.one.value:.2f}" + ("" if self.one.standard_error is None else f" ± {self.one.standard_error:.2f}")


def set_measures(run: Path, policies: Sequence[str]) -> list[SetMeasure]:
    """Returns every measure of the policies on prompt sets, in the order of the policies, sets and measures.

    An evaluation of a policy that was trained again since says nothing about the one that is there, and is left out.
    """
    current, _ = current_evaluations(run)
    return [
        SetMeasure(policy, chosen, name, one, found)
        for (policy, chosen), found in sorted(current.items(), key=lambda each: policies_first(each[0], policies))
        if policy in policies
        for name, one in found.measures.items()
    ]


def policies_first(key: tuple[str, str], policies: Sequence[str]) -> tuple[int, str]:
    """Returns the place of a policy and set in the order of the policies."""
    return (policies.index(key[0]) if key[0] in policies else len(policies), key[1])
