"""Ledgers: runs that others submit, checked from their parts, and what they measured.

A ledger is `<run>.ledger.zip`, which scripts/pack_run.py writes. Nothing in it is signed. What is checked is that it is one
whole: that every number follows from rows that are inside, and every artifact from those it says it was made from. Whoever
recomputes all of it can still invent answers, verdicts of a judge, hardware, and weights that nobody sees: ledger/README.md.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from handbook_ext.core.errors import UserError
from handbook_ext.reports.ledger_archive import Ledger, read_ledger
from handbook_ext.reports.ledger_checks import chain_faults, gaps, manifest_faults
from handbook_ext.reports.ledger_numbers import evaluation_faults, summary_faults
from handbook_ext.reports.ledger_pack import artifacts_of
from handbook_ext.reports.ledger_recipe import recipe_findings


@dataclass(frozen=True)
class Group:
    """A group of checks: its name, what it looked at or why it could not, and what differs."""

    name: str
    words: str
    faults: list[str] = field(default_factory=list)


@contextmanager
def unpacked(ledger: Ledger) -> Iterator[Path]:
    """Yields a folder with the files of a ledger, called like its run, and removes it."""
    with tempfile.TemporaryDirectory(prefix="ledger-") as folder:
        run = Path(folder).resolve() / ledger.run
        for name, content in ledger.files.items():
            (run / name).parent.mkdir(parents=True, exist_ok=True)
            (run / name).write_bytes(content)
        yield run


def verified_ledger(path: Path) -> tuple[Ledger, list[Group]]:
    """Returns a ledger and what its checks found; raises UserError for what is no ledger, or not what its index says."""
    ledger = read_ledger(path)
    words = f"{len(ledger.files)} files, {ledger.size / 1e6:.1f} MB, with the hashes of the index"
    return ledger, [Group("archive", words), *content_groups(ledger)]


def content_groups(ledger: Ledger) -> list[Group]:
    """Returns what the checks of a ledger's content found, one group each, whatever its archive is."""
    with unpacked(ledger) as run:
        artifacts = artifacts_of(run)
        taken_out = gaps(run)
        words = f"{len(artifacts)}: hashes, keys, settings, counts"
        if taken_out:
            words += f"; paths were taken out of {len(taken_out)} files, so these are not held to a hash: {', '.join(taken_out)}"
        found = [Group("manifests", words, list(manifest_faults(run)))]
        found.append(Group("chain", "each stage was made from what is inside", list(chain_faults(run))))
        if any(group.faults for group in found):
            return found  # What follows reads these files as a run's, and would say the same less clearly.
        recipe = recipe_findings(run, ledger.run)
        words = (
            f"those of recipe {ledger.run} here" if recipe.unknown is None else f"not compared with a recipe: {recipe.unknown}"
        )
        found.append(Group("settings", words, recipe.faults))
        loop = [path for path in artifacts if path.name == "eval.json" and len(path.relative_to(run).parts) == 2]
        faults = [fault for path in loop for fault in evaluation_faults(path, str(path.relative_to(run)))]
        found.append(Group("evaluations", f"{len(loop)}: means, implicit rewards, and rewards where they are known", faults))
        found.append(Group("summary", "every mean, win rate and interval of the report", list(summary_faults(run))))
    return found


def refuse_faults(path: Path, groups: list[Group]) -> None:
    """Raises UserError with a line for each fault that checks found in a ledger."""
    faults = [f"{path}: {group.name}: {fault}" for group in groups for fault in group.faults]
    if faults:
        raise UserError(*faults)
