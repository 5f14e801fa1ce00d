"""What one run says of a recipe's stability: the run of a seed under the roundings of a machine, as a row of a table.

A row names its machine, its seed and the digest of the settings that it was made under, so rows of several days may stand in one
table, and those of other settings are told apart.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import date
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from handbook_ext.core.errors import UserError
from handbook_ext.core.machine import CAPABILITY, MKL_CBWR
from handbook_ext.core.stage_settings import identity, read_settings_as
from handbook_ext.graph.stages import ReportStage
from handbook_ext.objectives.metrics import Interval
from handbook_ext.reports.evaluations import Json
from handbook_ext.reports.run_report import read_run, summarise
from handbook_ext.reports.settings_diff import read_manifests
from handbook_ext.reports.verdict import falls, has_fallen

DIGITS = 6
"""Decimals of a number in a row."""


class Measured(BaseModel):
    """A policy under one decoding, with bootstrap intervals over the prompts of its one seed.

    `reward` is its mean; `gain` what it gained in reward on the policy before, `won` the share of prompts that it wins over the
    start, both paired by prompt and None for the start; `fell` where it lost more than noise.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    reward: Interval
    gain: Interval | None
    won: Interval | None
    fell: bool


class StabilityRow(BaseModel):
    """One run: which it is, what made it, and what its policies got by decoding, the start first.

    `capability` and `mkl_cbwr` are what its stages say of their kernels; `date` is the day of the row, `commits` are those whose
    code made its stages, + with uncommitted changes; `seconds` the sum over its stages; `primary` is the decoding of the verdict;
    `falls` has a sentence for each.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    run: str
    machine: str
    seed: int
    digest: str
    date: str
    cpu: str
    capability: str
    mkl_cbwr: str | None
    torch: str
    commits: list[str]
    seconds: float
    prompts: int
    confidence: float
    reward: str
    primary: str
    policies: dict[str, dict[str, Measured]]
    falls: list[str]

    @property
    def key(self) -> tuple[str, str, int]:
        """Returns what no two rows of a table share: processor, machine that it imitates, seed."""
        return self.cpu, self.machine, self.seed

    @property
    def fell(self) -> list[str]:
        """Returns the policies that fell by more than noise under some decoding."""
        return [name for name, decodings in self.policies.items() if any(each.fell for each in decodings.values())]

    @property
    def last(self) -> str:
        """Returns the last policy."""
        return [*self.policies][-1]


def row_of(folder: Path, machine: str, variables: Mapping[str, str]) -> StabilityRow:
    """Returns the row of a finished run that was made under these variables of a machine (`core.machine.IMITATED`).

    Raises UserError where a stage says that other kernels made it, or the run is not finished.
    """
    report = read_settings_as(ReportStage, folder / ReportStage.file)[0]
    run = read_run(folder, report.policies[1:])
    if run.skipped:
        raise UserError(f"{folder}: {', '.join(run.skipped)} has no evaluation; make {folder.name} first")
    manifests = [(place, each) for place, each in read_manifests(folder) if place in report.policies or "iter" not in place]
    facts = _kernels(folder, manifests, variables)
    bootstrap = {"resamples": report.report.bootstrap_resamples, "confidence": report.report.confidence}
    summary = summarise([[run]], title=report.title, **bootstrap)
    [recipe] = summary["recipes"]
    policies = {row["policy"]: {key: _measured(row[key]) for key in recipe["temperatures"]} for row in recipe["policies"]}
    code = [each.get("code") or {} for _, each in manifests]
    torch = {str((each.get("packages") or {}).get("torch")) for _, each in manifests}
    commits = {f"{one.get('commit') or 'unknown'}"[:12] + ("+" if one.get("dirty") else "") for one in code}
    return StabilityRow(
        run=run.recipe, machine=machine, seed=run.seed, digest=settings_digest(manifests, bootstrap), **facts,
        date=date.today().isoformat(), torch=", ".join(sorted(torch)), commits=sorted(commits),
        seconds=round(sum(float(each.get("seconds") or 0) for _, each in manifests), 1), prompts=recipe["prompts"][0],
        confidence=report.report.confidence, reward=summary["reward"], primary=summary["primary"], policies=policies,
        falls=[str(each["sentence"]) for each in falls([[run]], summary)],
    )  # fmt: skip


def settings_digest(manifests: Iterable[tuple[str, Json]], bootstrap: Json) -> str:
    """Returns what identifies the settings of a run's artifacts and of its intervals, the same for each of its seeds."""
    stated = sorted(
        json.dumps([place, {name: value for name, value in identity(each["settings"]).items() if name != "seed"}], sort_keys=True)
        for place, each in manifests
    )
    return hashlib.sha256("\n".join([json.dumps(bootstrap, sort_keys=True), *stated]).encode()).hexdigest()[:12]


def rows_in(path: Path) -> list[StabilityRow]:
    """Returns the rows of a table's JSON, none where there is no file; raises UserError where it is damaged."""
    if not path.is_file():
        return []
    try:
        return [StabilityRow.model_validate(each) for each in json.loads(path.read_text(encoding="utf-8"))["rows"]]
    except (ValidationError, ValueError, KeyError, TypeError):
        raise UserError(f"{path}: holds no rows of stability; move it away, and make the table again") from None


def _kernels(folder: Path, manifests: Sequence[tuple[str, Json]], variables: Mapping[str, str]) -> Json:
    """Returns processor, capability and MKL's mode of a run's stages; raises UserError where these are not the machine's."""
    # A stage that has not loaded torch computes nothing that is rounded.
    stages = [
        (f"{place} {each['stage']}", each["hardware"]) for place, each in manifests if "capability" in each.get("hardware", {})
    ]
    if not stages:
        raise UserError(f"{folder}: no stage says which kernels made it; delete the folder, and make it again")
    first = stages[0][1]
    wanted = {
        "cpu": first.get("cpu"), "capability": variables.get(CAPABILITY, first["capability"]).upper(),
        "mkl_cbwr": variables.get(MKL_CBWR),
    }  # fmt: skip
    for stage, hardware in stages:
        for name, value in wanted.items():
            if hardware.get(name) != value:
                raise UserError(
                    f"{folder}: {stage} was made with {name} {hardware.get(name) or 'unset'}, and the run's row says "
                    f"{value or 'unset'}; delete the folder, and make it again"
                )
    return wanted | {"cpu": wanted["cpu"] or "unknown"}


def _measured(row: Json) -> Measured:
    """Returns a policy's numbers of one decoding."""
    before, start = row["vs_previous"], row["vs_start"]
    return Measured(
        reward=_rounded(row["reward"]), gain=before and _rounded(before["gain"]), won=start and _rounded(start["win_rate"]),
        fell=has_fallen(row),
    )  # fmt: skip


def _rounded(interval: Interval) -> Interval:
    """Returns an interval with as many decimals as a row has."""
    ends = {name: value and round(value, DIGITS) for name, value in dataclasses.asdict(interval).items()}
    return Interval(**ends)
