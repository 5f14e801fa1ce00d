"""What one wants to know of a run first: its rows, the prompts that are too long, its optimizer steps, its time. No torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from handbook_ext.core.errors import UserError
from handbook_ext.graph.rule import limits_of
from handbook_ext.graph.run_rules import run_rules
from handbook_ext.graph.stages import Limits, Portion
from handbook_ext.planning.amounts import Amounts, amounts_of
from handbook_ext.planning.estimates import estimate
from handbook_ext.planning.figures import Estimate, Setting, clock
from handbook_ext.planning.request import Request, settings_of
from handbook_ext.planning.stage_work import portion_rows
from handbook_ext.recipes.run import Run


@dataclass(frozen=True)
class TooLong:
    """Of how many rows looked at the prompt exceeds its limit, by how many tokens, and the longer answer exceeds max_length."""

    rows: int
    prompts: int
    mean_excess: float
    most_excess: int
    answers: int

    @classmethod
    def of(cls, sizes: Sequence[tuple[int, int]], limits: Limits) -> TooLong:
        """Returns the counts of rows of (prompt, longer completion) tokens, before anything is cut."""
        over = [prompt - most_prompt(limits) for prompt, _ in sizes if prompt > most_prompt(limits)]
        answers = sum(prompt + answer > limits.max_length for prompt, answer in sizes)
        return cls(len(sizes), len(over), fmean(over or [0]), max(over, default=0), answers)

    def record(self) -> dict[str, float]:
        """Returns the counts as check.json has them."""
        return asdict(self)

    def line(self, limits: Limits) -> str:
        """Returns the counts in words."""
        most = f"the {most_prompt(limits):,} tokens of train.{_stated(limits)}"
        if not self.prompts:
            told = f"none of {self.rows:,} is longer than {most}"
        else:
            what = "is" if self.prompts == 1 else "are"
            told = (
                f"{self.prompts:,} of {self.rows:,} {what} longer than {most}, by {self.mean_excess:,.0f} on average and "
                f"{self.most_excess:,} at most: {_consequence(limits)}"
            )
        if not self.answers:
            return told
        rows = "1 row" if self.answers == 1 else f"{self.answers:,} rows"
        return f"{told}; in {rows} prompt and answer exceed train.max_length {limits.max_length:,}: the answer loses its end"


@dataclass(frozen=True)
class Steps:
    """The optimizer steps of an iteration: of how many prompts, in how many pairs at most, by batches of how many."""

    name: str
    prompts: int
    pairs: int
    steps: int
    batch: int

    @classmethod
    def of_record(cls, record: Mapping[str, Any]) -> Steps:
        """Returns the steps of a schedule of check.json."""
        return cls(record["training"], record["rows"], record["examples"], record["steps"], record["global_batch_size"])

    @property
    def numbers(self) -> tuple[int, int, int, int]:
        """Returns what iterations are told together by."""
        return self.prompts, self.pairs, self.steps, self.batch


def most_prompt(limits: Limits) -> int:
    """Returns the tokens that a prompt may have."""
    return limits.max_length if limits.max_prompt_length is None else limits.max_prompt_length


def _stated(limits: Limits) -> str:
    """Returns the setting that limits a prompt."""
    return "max_length" if limits.max_prompt_length is None else "max_prompt_length"


def _consequence(limits: Limits) -> str:
    """Returns what becomes of a prompt that is too long."""
    if limits.truncation == "as_needed":
        return "cut to that where the row exceeds train.max_length"
    if limits.long_prompts == "drop":
        return "their rows are dropped (data.long_prompts: drop)"
    if limits.max_prompt_length is None and limits.long_prompts == "error":
        return "the run stops there (data.long_prompts: drop leaves them out, truncate keeps their ends)"
    return "each keeps its end"


def first_lines(
    run: Run, amounts: Amounts, steps: Sequence[Steps], time: str, *, long: Sequence[TooLong] = ()
) -> list[str]:  # fmt: skip
    """Returns a line each on rows and time, and on prompts and steps one for each kind of iteration.

    long: what a check has counted, by limits; worked out of the lengths of a sample where it is not of all of them.
    """
    kinds = limits_by_iteration(run)
    whole = len(long) == len(kinds)
    counted = list(long) if whole else [too_long(amounts, limits) for limits in kinds]
    lines = [rows_line(run, amounts)]
    for (limits, names), found in zip(kinds.items(), counted, strict=True):
        which = f" ({', '.join(names)})" if len(kinds) > 1 else ""
        how = "" if whole else " (estimated)"
        lines.append(f"prompts{which}: {found.line(limits)}{how}")
    return [*lines, *steps_lines(steps, run.settings.data.portions, run.settings.data.portion_rows), time]


def planned_lines(setting: Setting, estimates: Sequence[Estimate]) -> list[str]:
    """Returns the first lines of a plan."""
    time = time_line(setting, sum(each.seconds for each in estimates))
    return first_lines(setting.run, setting.amounts, planned_steps(setting, estimates), time)


def checked_lines(request: Request, folder: Path, check: Mapping[str, Any]) -> list[str]:
    """Returns the first lines of a run by its check.json: what that has counted, and how long the whole would take here."""
    run = request.resolved(folder.parent, request.launch, request.gpus)
    amounts = amounts_of(run, folder)
    steps = [Steps.of_record(each) for each in check["schedules"] if each["training"] in {part.name for part in run.iterations}]
    long = [TooLong(**each["long"]) for each in check["truncated"] or [] if "long" in each]
    try:
        setting = settings_of(request, folder.parent, amounts)[0]
        time = time_line(setting, sum(estimate(setting, rule).seconds for rule in run_rules(run)))
    except UserError as error:  # Nothing is wrong with the run: its checkpoint has an unknown shape, or it is for GPUs.
        why = str(error).partition(";")[0]
        time = f"time: not known ({why}); make {request.run}-plan says more" + ("" if run.launch.on_cpu else ", with VRAM=24 say")
    return first_lines(run, amounts, steps, time, long=long)


def limits_by_iteration(run: Run) -> dict[Limits, list[str]]:
    """Returns each different limit on lengths with the iterations that have it, in their order."""
    found: dict[Limits, list[str]] = {}
    for each in run.iterations:
        found.setdefault(limits_of(each.settings), []).append(each.name)
    return found


def too_long(amounts: Amounts, limits: Limits) -> TooLong:
    """Returns the rows that are too long, by the lengths of a sample."""
    return TooLong.of([(row.prompt, max(row.chosen, row.rejected)) for row in amounts.pairs], limits)


def rows_line(run: Run, amounts: Amounts) -> str:
    """Returns how many rows there are for what, and what was dropped for which reason."""
    told = f"rows: {amounts.train:,} to train on, {amounts.test:,} held out for evaluation"
    if run.settings.sft is not None:
        told += f", {amounts.sft:,} demonstrations for SFT"
    if amounts.dropped:
        reasons = ", ".join(f"{reason} {count:,}" for reason, count in amounts.dropped.items())
        return f"{told}; {sum(amounts.dropped.values()):,} of {amounts.read:,} read were dropped: {reasons}"
    return f"{told}; none of {amounts.read:,} read was dropped" if amounts.read else told


def planned_steps(setting: Setting, estimates: Sequence[Estimate]) -> list[Steps]:
    """Returns the steps of the iterations as a plan works them out."""
    data, by_artifact, found = setting.run.settings.data, {each.artifact: each for each in estimates}, []
    for each in setting.run.iterations:
        part = Portion(index=each.index, of=data.portions, most=data.portion_rows)
        planned, batch = by_artifact[f"{each.name}/policy"], each.settings.train.global_batch_size
        found.append(Steps(each.name, portion_rows(setting.amounts, part), planned.examples, planned.steps or 0, batch))
    return found


def steps_lines(steps: Sequence[Steps], portions: int, most: int | None) -> list[str]:
    """Returns a line for all iterations of equal numbers; portions, most: of the rows, and the rows of one at most."""
    lines = []
    for numbers in dict.fromkeys(each.numbers for each in steps):
        prompts, pairs, count, batch = numbers
        names = [each.name for each in steps if each.numbers == numbers]
        told = f"steps: {count:,} optimizer step{'s' * (count != 1)} in {'each of ' * (len(names) > 1)}{', '.join(names)}: "
        told += f"up to {pairs:,} pair{'s' * (pairs != 1)} in batches of {batch:,}"
        if portions > 1:
            limit = f", {most:,} at most" if most is not None else ""
            told += f"; each iteration gets 1/{portions} of the rows{limit} (data.portions), here {prompts:,}"
        lines.append(told + ("; not one batch is full, which the check refuses" if pairs < batch else ""))
    return lines


def time_line(setting: Setting, seconds: float) -> str:
    """Returns how long the whole run takes, and how that is known."""
    where = "this machine" if "(this machine)" in setting.machine.words else setting.machine.words
    return f"time: about {clock(seconds)} for the whole run on {where}, by rates {setting.machine.rates.basis}"
