"""What the stages that goals still need cannot have here: all of it at once, before any of them starts. No torch.

A stage that is finished needs nothing; so a run goes on where its ranker, or the network, is gone after its last use.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from handbook_ext.core.machine import free_memory
from handbook_ext.core.stage import Stage
from handbook_ext.graph.rule import StageRule, whole_of
from handbook_ext.graph.run_rules import run_rules
from handbook_ext.graph.stages import DataStage
from handbook_ext.graph.why import State, states
from handbook_ext.planning.lacks import FINDERS, Lack
from handbook_ext.planning.space import disk_needed, free_disk, held_by, memory_needed, size, weights_of
from handbook_ext.recipes.run import Run

Wanted = Mapping[tuple[str, str], None]
"""The artifacts that a goal asks for, each as the name of its run and its path in the run's folder, in their order."""

Looked = dict[str, list[tuple[StageRule, State]]]
"""By run the state of each of its artifacts, so that goals which share a run look at it once."""

SHOWN = 3  # Artifacts that a line names.


@dataclass(frozen=True)
class Pending:
    """The stages of a run that are still to be made for a goal, in their order, and the folder of the run."""

    run: Run
    folder: Path
    rules: tuple[StageRule, ...]

    @property
    def needing(self) -> bool:
        """Tells whether any of the stages does more than prepare data."""
        return any(not isinstance(rule.settings, DataStage) for rule in self.rules)


def pending_of(runs: Mapping[str, Run], wanted: Wanted, folder: Path, looked: Looked | None = None) -> list[Pending]:
    """Returns the stages still to be made for a goal, by run; no run whose stages are all finished."""
    names = dict.fromkeys(run for run, _ in wanted)
    found = [Pending(runs[name], folder / name, tuple(unfinished(runs[name], wanted, folder, looked))) for name in names]
    return [each for each in found if each.rules]


def unfinished(run: Run, wanted: Wanted, folder: Path, looked: Looked | None = None) -> list[StageRule]:
    """Returns the stages of a run that are still to be made for what is wanted, in their order; `folder` is that of all runs."""
    return [rule for rule, state in _needed(run, wanted, folder, looked) if state.why]


def edited(runs: Mapping[str, Run], goals: Mapping[str, Wanted], folder: Path, looked: Looked | None = None) -> list[str]:
    """Returns a line for each finished artifact that goals need and that is not what its stage made; each once."""
    found: dict[str, None] = {}
    for wanted in goals.values():
        for name in dict.fromkeys(run for run, _ in wanted):
            for _, state in _needed(runs[name], wanted, folder, looked):
                if state.edited is not None:
                    found[f"{folder / name / state.artifact} {state.edited}"] = None
    return [*found]


def _needed(run: Run, wanted: Wanted, folder: Path, looked: Looked | None) -> list[tuple[StageRule, State]]:
    """Returns the stages that what is wanted of a run needs, in their order, each with the state of its artifact."""
    looked = {} if looked is None else looked
    if run.name not in looked:
        rules = run_rules(run)
        looked[run.name] = list(zip(rules, states(rules, folder / run.name), strict=True))
    needed = {artifact for name, artifact in wanted if name == run.name}
    for rule, _ in reversed(looked[run.name]):
        if rule.artifact in needed:
            needed |= {whole_of(each) for each in (*rule.inputs, *rule.after)}
    return [(rule, state) for rule, state in looked[run.name] if rule.artifact in needed]


def missing(goals: Mapping[str, Sequence[Pending]]) -> list[str]:
    """Returns a line that says how much the goals' stages lack here, then one for each thing; none where all is there."""
    needed_by: dict[Lack, dict[str, None]] = {}
    counts = {}
    for goal, stages in goals.items():
        found: set[Lack] = set()
        # Preparing data needs nothing.
        pending = [each for each in stages if each.needing]
        for each in pending:
            for lack, rule in _lacks(each):
                found.add(lack)
                name = rule.artifact if len(pending) == 1 and len(goals) == 1 else f"{each.run.name}/{rule.artifact}"
                needed_by.setdefault(lack, {})[name] = None
        disk = _lack_of_disk(pending)
        if disk is not None:
            found.add(disk)
            needed_by.setdefault(disk, {})[goal] = None
        if found:
            counts[goal] = len(found)
    if not needed_by:
        return []
    what = "1 thing is" if len(needed_by) == 1 else f"{len(needed_by)} things are"
    which = " and ".join(goal if len(counts) == 1 else f"{goal} ({count})" for goal, count in counts.items())
    lines = [f"{_named(list(names))}: {lack.what}; {lack.remedy}" for lack, names in needed_by.items()]
    return [f"{what} missing here for {which}, so nothing was started", *lines]


def unknown_sizes(goals: Mapping[str, Sequence[Pending]]) -> list[str]:
    """Returns a line for each run whose policy is not here yet, so that nobody knows how much space it takes."""
    runs = {each.run.name: each for pending in goals.values() for each in pending if each.needing}
    return [
        f"{name}: how large its policies are is not known before one is here, so disk space and memory were not compared"
        for name, each in runs.items()
        if weights_of(each.run, each.folder) is None
    ]


def _named(names: Sequence[str]) -> str:
    """Returns the first names, and how many there are more."""
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")


def _lacks(pending: Pending) -> Iterator[tuple[Lack, StageRule]]:
    """Yields what each stage lacks, one kind after the other."""
    run = pending.run
    for find in FINDERS:
        for rule in pending.rules:
            yield from ((lack, rule) for lack in find(run, rule))
    weights = weights_of(run, pending.folder)
    # The memory of a cluster's nodes is theirs to say.
    needed, free = 0 if weights is None or run.launch.on_cluster else memory_needed(run, pending.rules, weights), free_memory()
    if free is not None and needed > free:
        loading = [rule for rule in pending.rules if rule.on_device]
        yield (
            Lack(
                f"a policy of {weights:,} weights on the CPU takes {size(needed)} of memory at least, and {size(free)} are free",
                "train adapters (model.lora), choose a smaller policy, or a launch on GPUs",
            ),
            max(loading, key=lambda rule: memory_needed(run, [rule], weights or 0)),
        )


def _lack_of_disk(pending: Sequence[Pending]) -> Lack | None:
    """Returns that the disk has less space than all policies to be made need."""
    needed = 0
    for each in pending:
        weights = weights_of(each.run, each.folder)
        if weights is not None:
            held = held_by(Stage(each.folder / rule.artifact, rule.settings).workspace for rule in each.rules)
            needed += max(0, disk_needed(each.run, each.rules, weights) - held)
    free = free_disk(pending[0].folder) if needed else 0
    if needed <= free:
        return None
    return Lack(
        f"policies and one checkpoint of their training take {size(needed)} of disk space at least, and {size(free)} are free",
        "free some, or put the runs on another disk with RUNS=",
    )
