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
from typing import NamedTuple

from handbook_ext.core.artifacts import finished_manifest, read_manifest
from handbook_ext.core.errors import UserError
from handbook_ext.core.provenance import hardware_words
from handbook_ext.evaluation.set_evaluation import Grader, MeasuredValue, SetEvaluation, parsed_set_evaluation, set_evaluations
from handbook_ext.reports.ledger_archive import SUFFIX, Ledger, read_ledger, write_ledger
from handbook_ext.reports.ledger_checks import chain_faults, gaps, manifest_faults
from handbook_ext.reports.ledger_numbers import evaluation_faults, summary_faults
from handbook_ext.reports.ledger_pack import artifacts_of
from handbook_ext.reports.ledger_recipe import recipe_findings
from handbook_ext.reports.ledger_sets import not_recomputed, set_faults

LEDGER = Path("ledger")
"""The folder of submitted runs."""
SUMMARY = "summary"
"""The group of what a report says."""


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


def verified_ledger(path: Path, gamed: Path | None = None) -> tuple[Ledger, list[Group]]:
    """Returns a ledger and what its checks found; raises UserError for what is no ledger, or not what its index says.

    gamed: the file by which AlpacaEval's length control is fitted again, None for the hub's.
    """
    ledger = read_ledger(path)
    words = f"{len(ledger.files)} files, {ledger.size / 1e6:.1f} MB, with the hashes of the index"
    return ledger, [Group("archive", words), *content_groups(ledger, gamed)]


def content_groups(ledger: Ledger, gamed: Path | None = None) -> list[Group]:
    """Returns what the checks of a ledger's content found, one group each, whatever its archive is."""
    with unpacked(ledger) as run:
        found = [_manifests(run), Group("chain", "each stage was made from what is inside", _told(chain_faults(run), run))]
        if any(group.faults for group in found):
            return found  # What follows reads these files as a run's, and would say the same less clearly.
        found.append(_settings(run, ledger.run))
        loop = sorted(path for path in run.glob("*/eval.json"))
        faults = _told((fault for path in loop for fault in evaluation_faults(path, str(path.relative_to(run)))), run)
        found.append(Group("evaluations", f"{len(loop)}: means, implicit rewards, and rewards where they are known", faults))
        words = "every mean, win rate and interval of the report"
        found.append(Group(SUMMARY, words, _told(summary_faults(run), run)))
        found.append(_sets(run, gamed))
    return found


def _manifests(run: Path) -> Group:
    """Returns what the checks of single manifests found, and which files no hash holds."""
    faults = _told(manifest_faults(run), run)
    words = f"{len(artifacts_of(run))}: hashes, keys, settings, counts"
    taken_out = [] if faults else gaps(run)
    unheld = [name for name in taken_out if not name.endswith((".yaml", "manifest.json"))]
    words += f"; paths or hosts were taken out of {len(taken_out)} files" if taken_out else ""
    words += f", so that no hash holds {', '.join(unheld)}" if unheld else ""
    return Group("manifests", words, faults)


def _settings(run: Path, name: str) -> Group:
    """Returns what comparing with the recipe found, or why there was nothing to compare with."""
    unknown = None

    def compared() -> Iterator[str]:
        """Yields the faults, and notes why there was no recipe."""
        nonlocal unknown
        findings = recipe_findings(run, name)
        unknown = findings.unknown
        yield from findings.faults

    faults = _told(compared(), run)
    return Group(
        "settings", f"those of recipe {name} here" if unknown is None else f"not compared with a recipe: {unknown}", faults
    )


def _sets(run: Path, gamed: Path | None) -> Group:
    """Returns what the checks of evaluations on prompt sets found, and which measures follow from nothing that is inside."""
    sets = set_evaluations(run)
    faults = _told((fault for path in sets.values() for fault in set_faults(path, run, gamed)), run)
    words = f"{len(sets)} evaluations on prompt sets: verdicts, means and standard errors"
    if faults:
        return Group("sets", words, faults)
    taken = [f"{policy} {chosen} {name}" for (policy, chosen), path in sets.items() for name in not_recomputed(path, run, gamed)]
    return Group("sets", words + (f"; not worked out again: {', '.join(taken)}" if taken else ""))


def _told(faults: Iterator[str], run: Path) -> list[str]:
    """Returns faults without the folder where a ledger lies unpacked; content that no check can read is one as well."""
    found = []
    try:
        found += faults
    except UserError as error:
        found += map(str, error.args)
    except (KeyError, TypeError, AttributeError, ValueError, IndexError, ArithmeticError, RecursionError) as error:
        found.append(f"what is inside is not what a run leaves ({error!r})")
    return [fault.replace(f"{run}/", "") for fault in found]


class Entry(NamedTuple):
    """A measure that a ledger submits: mean, standard error and number of prompts, who judged, on which machine, in which file.

    `evaluation` is the whole of it, with decoding, contamination and what else a table says beside a value.
    """

    value: float
    standard_error: float | None
    n: int
    judge: Grader | None
    hardware: str
    file: str
    measured: MeasuredValue
    evaluation: SetEvaluation

    @property
    def words(self) -> str:
        """Returns the measure on one line."""
        error = "" if self.standard_error is None else f" ± {self.standard_error:.2f}"
        judged = "" if self.judge is None else f", judged by {self.judge.model}"
        return f"{self.value:.2f}{error} {self.measured.unit}, n {self.n}{judged}, on {self.hardware}"


Key = tuple[str, str, str, str]
"""Recipe with what overrides it, policy, set, measure."""


def measurements_of(ledger: Ledger, file: str) -> dict[Key, Entry]:
    """Returns what a ledger measured on prompt sets; raises UserError where an evaluation is not what lies beside it."""
    found: dict[Key, Entry] = {}
    with unpacked(ledger) as run:
        for (policy, chosen), path in set_evaluations(run).items():
            if faults := list(set_faults(path, run)):
                raise UserError(*(f"{file}: {fault}" for fault in faults))
            # Of a released checkpoint nobody here trained, the machine is the one that answered.
            trained = finished_manifest(run / policy / "policy") or finished_manifest(path.with_name("answers.jsonl"))
            hardware = hardware_words(trained or read_manifest(path))
            recipe = str(read_manifest(path)["recipe"])
            evaluation = parsed_set_evaluation(path)
            for name, one in evaluation.measures.items():
                if one.value is not None:
                    found[recipe, policy, chosen, name] = Entry(
                        one.value, one.standard_error, one.n, one.judge, hardware, file, one, evaluation
                    )
    return found


def ledger_measurements(folder: Path = LEDGER) -> dict[Key, Entry]:
    """Returns what the ledgers of a folder measured on prompt sets; a recipe's first file by name speaks for it.

    Each file is held to its index and each evaluation to the rows beside it; the rest was checked when the file was added. Raises
    UserError for a file that is no ledger any more.
    """
    found: dict[Key, Entry] = {}
    for path in sorted(folder.glob(f"*{SUFFIX}")) if folder.is_dir() else []:
        for key, entry in measurements_of(read_ledger(path), path.name).items():
            found.setdefault(key, entry)
    return found


def add_to_ledger(path: Path, folder: Path = LEDGER) -> Path:
    """Returns where a file that was verified now lies in the folder of submitted ones; one of another content is not replaced."""
    target, content = folder / path.name, path.read_bytes()
    if target.exists() and target.read_bytes() != content:
        raise UserError(f"{target}: is there already, with another content; remove it first, or give {path} another name")
    write_ledger(target, content)
    return target


def refuse_faults(path: Path, groups: list[Group]) -> None:
    """Raises UserError with a line for each fault that checks found in a ledger."""
    faults = [f"{path}: {group.name}: {fault}" for group in groups for fault in group.faults]
    if faults:
        raise UserError(*faults)
