"""What a run of mutation testing found: counted by file, as JSON and as Markdown."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tests.mutants.mutations import Mutant

KILLED, TIMEOUT, SURVIVED, EQUIVALENT = "killed", "timeout", "survived", "equivalent"
STATES = (KILLED, TIMEOUT, SURVIVED, EQUIVALENT)
MIN_KILLED, MAX_EQUIVALENT = 0.90, 0.03


@dataclass(frozen=True)
class Outcome:
    """What became of a mutant, one of STATES; a timeout counts as killed. `name` is that in named.yaml, if any."""

    mutant: Mutant
    name: str
    state: str
    seconds: float
    reason: str = ""


def share_of(outcomes: Sequence[Outcome], *states: str) -> float:
    """Returns the share of the sampled mutants that are in these states; named ones do not count."""
    sampled = [one.state for one in outcomes if not one.name]
    return sum(state in states for state in sampled) / max(1, len(sampled))


def faults(outcomes: Sequence[Outcome]) -> list[str]:
    """Returns why the run as a whole has failed, nothing where it has not."""
    killed, equivalent = share_of(outcomes, KILLED, TIMEOUT), share_of(outcomes, EQUIVALENT)
    found = [f"{100 * killed:.1f} % are killed, at least {100 * MIN_KILLED:.0f} % must be"] if killed < MIN_KILLED else []
    if equivalent > MAX_EQUIVALENT:
        found.append(f"{100 * equivalent:.1f} % are declared equivalent, at most {100 * MAX_EQUIVALENT:.0f} % may be")
    found += [f"the named mutant '{one.name}' survives" for one in outcomes if one.name and one.state == SURVIVED]
    wrong = [one.mutant.after for one in outcomes if one.reason and one.state != EQUIVALENT]
    found += [f"killed, though in equivalent.yaml: {after!r}" for after in wrong]
    return found


def read_outcomes(path: Path) -> list[Outcome]:
    """Returns the outcomes of an earlier run, none where there was none; the mutants are without their sources."""
    rows = json.loads(path.read_text(encoding="utf-8"))["mutants"] if path.is_file() else []
    return [Outcome(Mutant(**row.pop("mutant"), source=""), **row) for row in rows]


def write_report(folder: Path, outcomes: Sequence[Outcome], about: dict[str, Any]) -> str:
    """Writes report.json and report.md; returns the latter's table. `about` says how the sample was made and how long it took."""
    outcomes = sorted(outcomes, key=lambda one: one.mutant.key)
    rows = [asdict(one) for one in outcomes]
    for row in rows:
        del row["mutant"]["source"]
    table = _table(outcomes)
    text = [f"# Mutation testing\n\n{', '.join(f'{key} {value}' for key, value in about.items())}\n", table]
    for state in (SURVIVED, TIMEOUT, EQUIVALENT):
        text.append(f"\n## {state.capitalize()}\n")
        text += [f"{one.name or one.reason}\n```diff\n{one.mutant.diff}\n```".lstrip() for one in outcomes if one.state == state]
    summary = {"killed": share_of(outcomes, KILLED, TIMEOUT), "equivalent": share_of(outcomes, EQUIVALENT)}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "report.json").write_text(json.dumps({**about, **summary, "mutants": rows}, indent=1), encoding="utf-8")
    (folder / "report.md").write_text("\n".join(text) + "\n", encoding="utf-8")
    return table


def _table(outcomes: Sequence[Outcome]) -> str:
    """Returns how many mutants of each file and of all ended how, named ones apart."""
    sampled = [one for one in outcomes if not one.name]
    groups = {file: [one for one in sampled if one.mutant.file == file] for file in sorted({one.mutant.file for one in sampled})}
    groups |= {"all": sampled, "named": [one for one in outcomes if one.name]}
    lines = [f"| file | mutants | {' | '.join(STATES)} | killed in all |", "|---" * (len(STATES) + 3) + "|"]
    for file, group in groups.items():
        counts = Counter(one.state for one in group)
        rate = (counts[KILLED] + counts[TIMEOUT]) / max(1, len(group))
        lines.append(f"| {file} | {len(group)} | {' | '.join(str(counts[state]) for state in STATES)} | {100 * rate:.1f} % |")
    return "\n".join(lines) + "\n"
