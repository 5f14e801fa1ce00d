"""What goals need: their runs, the artifacts of each, and the lines of make that connect them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from handbook_ext.graph.makefile import plain
from handbook_ext.recipes.run import Run


@dataclass
class Plan:
    """The runs that goals need, by name, the lines of make that connect goals with them, and the runs to be explained.

    `wanted` has by goal the artifacts to be made for it: each the name of its run and the path in the run's folder. `planned` has
    by run what a plan of its hardware was asked for; nothing of such a run is made. `endings` has by goal what is shown once
    it is reached: the name of its run, the artifacts in the run's folder, and the goal that goes on from it, "" for none.
    `notes` are lines that are told before anything starts.
    """

    runs: dict[str, Run] = field(default_factory=dict)
    lines: list[str] = field(default_factory=list)
    explained: list[str] = field(default_factory=list)
    wanted: dict[str, dict[tuple[str, str], None]] = field(default_factory=dict)
    planned: dict[str, dict[str, str | int]] = field(default_factory=dict)

    notes: list[str] = field(default_factory=list)
    endings: dict[str, tuple[str, tuple[str, ...], str]] = field(default_factory=dict)

    def add(self, run: Run) -> Run:
        """Adds a run once, with the prompt sets of all goals that ask for it; returns it."""
        before = self.runs.get(run.name, run)
        sets = tuple(dict.fromkeys([*before.sets, *run.sets]))
        self.runs[run.name] = replace(before, sets=sets, released=before.released or run.released)
        return self.runs[run.name]

    def want(self, goal: str, run: Run, artifact: str) -> None:
        """Adds an artifact that a goal asks for."""
        self.wanted.setdefault(goal, {})[run.name, artifact] = None

    def goal(self, name: str, needed: Sequence[str], *commands: str, share: bool = False) -> None:
        """Adds a goal that is no file. With `share` runs take over what is equal by content."""
        if f".PHONY: {name}" in self.lines:
            return  # A table that is asked for beside all tables.
        needed = [plain(each) for each in dict.fromkeys(needed)]
        self.lines += [f".PHONY: {plain(name)}", *([f"{name}: export HANDBOOK_SHARE := 1"] if share else [])]
        self.lines += [" \\\n    ".join([f"{name}:", *needed]), *(f"\t{command}" for command in commands)]

    def then(self, goal: str, command: str) -> None:
        """Adds a command to the end of a goal's own."""
        place = max(at for at, line in enumerate(self.lines) if line.partition(" ")[0] == f"{goal}:") + 1
        while place < len(self.lines) and self.lines[place].startswith("\t"):
            place += 1
        self.lines.insert(place, f"\t{command}")
