"""Which settings let a run fit its machine: the fewest changes, then the least time; the global batch stays. No torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations, product
from typing import Any

from handbook_ext.core.stage_settings import StageSettings
from handbook_ext.graph import stages as files
from handbook_ext.graph.rule import StageRule
from handbook_ext.objectives.batching import fitting_micro_batch
from handbook_ext.planning.alternatives import Alternatives, micro_batches, of_sampling, of_training, stated
from handbook_ext.planning.estimates import estimate
from handbook_ext.planning.figures import Estimate, Setting

ANOTHER_LAUNCH = 2  # As many changes as another launch counts: it may compute in other types.
MAIN = "main memory"
FASTER = 0.97  # Of two ways, the one that is preferred has to be slower by this to lose.
# Where a stage's settings hold those of a section of the recipe: scoring has the sizes of training, evaluation an engine.
HOLDERS = {
    "train": ("train", "sizes"), "sft": ("sft",), "rank.fit": ("fit",), "generate": ("generate", "engine"),
    "evaluate": ("evaluate",), "rank": ("rank",),
}  # fmt: skip
TRAINING: tuple[type[StageSettings], ...] = (files.TrainStage, files.ScorePairsStage, files.ScoreCandidatesStage)
SAMPLING: tuple[type[StageSettings], ...] = (files.GenerateStage, files.RankStage, files.EvaluateStage)


@dataclass(frozen=True)
class Change:
    """A setting of the recipe by its dotted name, its value before and after, and why."""

    key: str
    before: Any
    after: Any
    why: str


@dataclass(frozen=True)
class Excess:
    """A stage that does not fit: what it holds at least, what is there, both in bytes, and which memory that is."""

    artifact: str
    needed: float
    there: float
    what: str

    @property
    def words(self) -> str:
        """Returns the excess in words."""
        return f"{self.artifact} holds {gigabytes(self.needed)} of {self.what}, and there are {gigabytes(self.there)}"


@dataclass
class Choice:
    """The settings of each stage that changed, by artifact; the changes; the stages that do not fit; all stages' estimates."""

    settings: dict[str, StageSettings] = field(default_factory=dict)
    changes: list[Change] = field(default_factory=list)
    excess: list[Excess] = field(default_factory=list)
    estimates: list[Estimate] = field(default_factory=list)
    launch_why: str = ""

    @property
    def seconds(self) -> float:
        """Returns the seconds of all stages, one after the other."""
        return sum(each.seconds for each in self.estimates)


def gigabytes(count: float) -> str:
    """Returns bytes in GB of 10^9."""
    return f"{count / 1e9:,.1f} GB" if count >= 5e7 else f"{count / 1e6:,.1f} MB"


def excess_of(setting: Setting, found: Estimate) -> Excess | None:
    """Returns by how much a stage does not fit; None where it does, or main memory is not known."""
    machine = setting.machine
    if not machine.on_gpu:
        held = found.memory.on_device * setting.sharding.processes + found.memory.in_main
        return Excess(found.artifact, held, machine.device, MAIN) if held > machine.device else None
    if found.memory.on_device > machine.device:
        return Excess(found.artifact, found.memory.on_device, machine.device, "a GPU's memory")
    if machine.main is not None and found.memory.in_main > machine.main:
        return Excess(found.artifact, found.memory.in_main, machine.main, MAIN)
    return None


def choose(setting: Setting, rules: Sequence[StageRule]) -> Choice:
    """Returns the settings under which each stage fits under a launch; `excess` names those for which there are none."""
    result = Choice()
    groups: list[tuple[tuple[type[StageSettings], ...], Alternatives]] = [
        ((files.SFTStage,), of_training(setting, "sft", setting.run.settings.sft)),
        ((files.RankerStage,), micro_batches(setting, "rank.fit", setting.run.settings.rank.fit)),
        (TRAINING, of_training(setting, "train", setting.run.settings.train)),
        (SAMPLING, of_sampling(setting)),
    ]
    for kinds, alternatives in groups:
        own = [rule for rule in rules if isinstance(rule.settings, kinds)]
        if own:
            _choose_group(setting, own, alternatives, result)
    for rule in rules:
        result.estimates.append(estimate(setting, rule, result.settings.get(rule.artifact)))
    told = {each.artifact for each in result.excess}
    for found in result.estimates:
        excess = excess_of(setting, found)
        if excess is not None and found.artifact not in told:
            result.excess.append(excess)
    return result


def _choose_group(setting: Setting, rules: Sequence[StageRule], alternatives: Alternatives, result: Choice) -> None:
    """Adds the settings of stages that share a section: with as few changes as let all of them fit, then the fastest."""
    result.changes += _by_launch(setting, rules)
    first, _, _ = _with(setting, rules, {})
    if not first:
        return
    # Each last value holds the least: where all of these together do not fit, nothing does.
    left, _, smallest = _with(setting, rules, {key: values[-1] for key, values in alternatives.items()})
    if left:
        result.excess += left
        result.settings |= smallest
        return
    worst = max(first, key=lambda each: each.needed - each.there)
    for values in _tried(alternatives):
        fitting: tuple[float, dict[str, Any], dict[str, StageSettings]] | None = None
        for each in values:
            left, seconds, changed = _with(setting, rules, each)
            if not left and (fitting is None or seconds < FASTER * fitting[0]):
                fitting = (seconds, each, changed)
        if fitting is not None:
            result.settings |= fitting[2]
            why = f"as the recipe has it, {worst.words}"
            for key, value in fitting[1].items():
                result.changes = [change for change in result.changes if change.key != key]
                result.changes.append(Change(key, stated(setting, key), value, why + _kept_batch(setting, key, value)))
            return


def _with(
    setting: Setting, rules: Sequence[StageRule], values: Mapping[str, Any]
) -> tuple[list[Excess], float, dict[str, StageSettings]]:
    """Returns which stages do not fit with some settings changed, the seconds of all, and their settings by artifact."""
    changed = {rule.artifact: _under(rule.settings, values) for rule in rules}
    found = [estimate(setting, rule, changed[rule.artifact]) for rule in rules]
    left = [excess for each in found if (excess := excess_of(setting, each)) is not None]
    return left, sum(each.seconds for each in found), changed


def _tried(alternatives: Alternatives) -> Iterator[list[dict[str, Any]]]:
    """Yields the sets of changes to try together: all of one setting, then all of two, and so on."""
    for count in range(1, len(alternatives) + 1):
        yield [
            dict(zip(keys, values, strict=True))
            for keys in combinations(alternatives, count)
            for values in product(*(alternatives[key] for key in keys))
        ]


def _under(settings: StageSettings, values: Mapping[str, Any]) -> StageSettings:
    """Returns a stage's settings with those of the recipe's sections changed that it has."""
    for key, value in values.items():
        section, _, name = key.rpartition(".")
        for holder in HOLDERS[section]:
            part = getattr(settings, holder, None)
            if part is not None and name in type(part).model_fields:
                settings = settings.model_copy(update={holder: part.model_copy(update={name: value})})
        if key == "evaluate.implicit_reward" and isinstance(settings, files.EvaluateStage):
            settings = settings.model_copy(update={"initial_policy": None})
    return settings


def _by_launch(setting: Setting, rules: Sequence[StageRule]) -> list[Change]:
    """Returns the micro-batches that the processes of a launch do not divide, as the stages then choose them."""
    found = []
    for section in ("sft", "rank.fit", "train"):
        part = stated(setting, section)
        holds = any(getattr(rule.settings, name, None) is not None for rule in rules for name in HOLDERS[section])
        if part is None or not holds:
            continue
        key, processes = f"{section}.per_device_train_batch_size", setting.sharding.processes
        fitting = fitting_micro_batch(part.global_batch_size, part.per_device_train_batch_size, processes)
        if fitting != part.per_device_train_batch_size:
            why = f"{processes} processes share {part.global_batch_size} examples a step"
            found.append(Change(key, part.per_device_train_batch_size, fitting, why + _kept_batch(setting, key, fitting)))
    return found


def _kept_batch(setting: Setting, key: str, value: Any) -> str:
    """Returns how a micro-batch makes up the global batch; nothing for another setting."""
    section, _, name = key.rpartition(".")
    if name != "per_device_train_batch_size":
        return ""
    whole, processes = stated(setting, section).global_batch_size, setting.sharding.processes
    return f"; {value} x {whole // processes // value} accumulated x {processes} = {whole} a step, as before"


def best_launch(
    settings: Sequence[Setting], rules_of: Callable[[Setting], Sequence[StageRule]]
) -> tuple[Setting, Choice, list[tuple[Setting, Choice]]]:  # fmt: skip
    """Returns the launch and choice that fit with the fewest changes, then in the least time; and all that were tried.

    Where none fits, the one with the smallest excess. The first launch is the recipe's own; another one counts as a change.
    """
    tried = [(setting, choose(setting, rules_of(setting))) for setting in settings]

    def order(place: int) -> tuple[int, float, float]:
        """Returns the key by which launches are compared; main memory is more easily had than that of GPUs."""
        choice = tried[place][1]
        if choice.excess:
            on_gpu = any(each.what != MAIN for each in choice.excess)
            return 1 + on_gpu, max(each.needed - each.there for each in choice.excess), 0.0
        return 0, len(choice.changes) + ANOTHER_LAUNCH * (place > 0), choice.seconds

    place = min(range(len(tried)), key=order)
    first = tried[0][1]
    if place and first.excess:
        worst = max(first.excess, key=lambda each: each.needed - each.there)
        tried[place][1].launch_why = f"under {tried[0][0].sharding.name}, with the smallest settings, {worst.words}"
    elif place:
        tried[place][1].launch_why = f"it fits with fewer changes, or in less time, than {tried[0][0].sharding.name}"
    return *tried[place], tried
