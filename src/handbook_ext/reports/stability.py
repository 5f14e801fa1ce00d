"""Whether a recipe does what it should whatever the last bit of a machine and the seed: rows of runs to one table.

Rows of other settings than the new ones are left out, never mixed in.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from itertools import product
from statistics import median

from handbook_ext.core.errors import UserError
from handbook_ext.reports.evaluations import Json
from handbook_ext.reports.page_environment import page_environment
from handbook_ext.reports.stability_rows import StabilityRow

FRESH = 101
"""The first seed that no setting of a recipe was chosen by; all above are as fresh."""
OFTEN = 20
"""Of how many runs one may have an iteration that fell by more than noise."""
SHARE = 0.75
"""The share of prompts of which the last policy is to beat the start, in each run."""


def merged(before: Sequence[StabilityRow], new: Sequence[StabilityRow]) -> tuple[list[StabilityRow], list[str]]:
    """Returns the rows of one table, and a line for what was left out: a row of other settings, or one that was made again.

    A row that has not changed keeps its date. Raises UserError where the new rows are of several settings.
    """
    digest = one_digest(new)
    keys = {row.key for row in new}
    other = [row for row in before if row.digest != digest]
    dated = {row.key: row for row in before}
    made = [dated[row.key] if row.key in dated and _same(dated[row.key], row) else row for row in new]
    changed = [row for row in made if row.key in dated and dated[row.key].digest == digest and row is not dated[row.key]]
    notes = []
    if other:
        of = ", ".join(sorted({f"{row.run} ({row.digest})" for row in other}))
        notes.append(f"{len(other)} rows of other settings are left out: {of}; the new ones are of {new[0].run} ({digest})")
    if changed:
        which = ", ".join(f"{row.machine} seed {row.seed}" for row in changed)
        notes.append(f"rows that were made again with other numbers or code replace those before: {which}")
    return sorted(
        [*(row for row in before if row.digest == digest and row.key not in keys), *made], key=lambda row: row.key
    ), notes


def one_digest(rows: Iterable[StabilityRow]) -> str:
    """Returns the digest of the settings of rows; raises UserError where they have several, or there are none."""
    found = {row.digest: row for row in rows}
    if len(found) != 1:
        told = "; ".join(f"{digest}: {row.run}, {row.machine}, seed {row.seed}" for digest, row in found.items())
        raise UserError(f"rows of one table are made under the same settings, and these are not ({told or 'there is none'})")
    return next(iter(found))


def summarise_rows(rows: Sequence[StabilityRow]) -> Json:
    """Returns the numbers of a table over its rows; raises UserError where they are of several settings."""
    digest, first = one_digest(rows), rows[0]
    fallen = [row for row in rows if row.fell]
    won = {(row.machine, row.seed): _won(row) for row in rows}
    lowest = min(won, key=lambda key: won[key])
    there = {row.key for row in rows}
    cells = product({row.cpu for row in rows}, {row.machine for row in rows}, {row.seed for row in rows})
    minutes = [row.seconds / 60 for row in rows]
    return {
        "run": first.run, "digest": digest, "reward": first.reward, "primary": first.primary,
        "confidence": first.confidence, "runs": len(rows),
        "initial": next(iter(first.policies)), "last": first.last, "decodings": list(first.policies[first.last]),
        "machines": _listed(row.machine for row in rows), "seeds": sorted({row.seed for row in rows}),
        "fresh": all(row.seed >= FRESH for row in rows), "first_fresh": FRESH,
        "fell": len(fallen), "fell_primary": sum(any(each[row.primary].fell for each in row.policies.values()) for row in rows),
        "falls_allowed": len(rows) / OFTEN, "few_falls": len(fallen) * OFTEN <= len(rows),
        "share": SHARE, "won": sum(value >= SHARE for value in won.values()),
        "lowest": {"machine": lowest[0], "seed": lowest[1], "value": won[lowest]},
        "ranges": {name: _ranges(rows, name) for name in first.policies},
        "minutes": {"least": min(minutes), "median": median(minutes), "most": max(minutes)},
        "missing": [f"{machine} seed {seed}" for cpu, machine, seed in sorted(cells) if (cpu, machine, seed) not in there],
        "equal": _equal(rows), "prompts": _listed(row.prompts for row in rows), "dates": _listed(row.date for row in rows),
        "cpus": _listed(row.cpu for row in rows), "torch": _listed(row.torch for row in rows),
        "commits": _listed(commit for row in rows for commit in row.commits),
        "kernels": {row.machine: ", ".join(filter(None, [row.capability, row.mkl_cbwr])) for row in rows},
    }  # fmt: skip


def render_rows(rows: Sequence[StabilityRow]) -> dict[str, str]:
    """Returns the files of a table by suffix: its rows with their summary as JSON, a line for each row; and Markdown."""
    summary = summarise_rows(rows)
    lines = ",\n".join(json.dumps(row.model_dump(mode="json")) for row in rows)
    page = page_environment().get_template("stability.md.j2").render(rows=rows, **summary)
    return {".json": f'{{"summary": {json.dumps(summary)},\n"rows": [\n{lines}\n]}}\n', ".md": page}


def _won(row: StabilityRow) -> float:
    """Returns the share of prompts of which the last policy beats the start, under the verdict's decoding."""
    won = row.policies[row.last][row.primary].won
    return 0.0 if won is None else won.value


def _ranges(rows: Sequence[StabilityRow], policy: str) -> Json:
    """Returns by decoding the least and the greatest mean reward of a policy, and share of prompts won against the start."""
    found: Json = {}
    for key in rows[0].policies[policy]:
        each = [row.policies[policy][key] for row in rows]
        won = [one.won.value for one in each if one.won is not None]
        found[key] = {
            "reward": [min(one.reward.value for one in each), max(one.reward.value for one in each)],
            "won": [min(won), max(won)] if won else None, "fell": sum(one.fell for one in each),
        }  # fmt: skip
    return found


def _equal(rows: Sequence[StabilityRow]) -> list[list[str]]:
    """Returns the machines that gave the same numbers under every seed that they share: they are one machine, not several."""
    by_machine = {
        name: {row.seed: row.policies for row in rows if row.machine == name} for name in _listed(row.machine for row in rows)
    }
    groups: list[list[str]] = []
    for name, policies in by_machine.items():
        for group in groups:
            seeds = policies.keys() & by_machine[group[0]].keys()
            if seeds and all(policies[seed] == by_machine[group[0]][seed] for seed in seeds):
                group.append(name)
                break
        else:
            groups.append([name])
    return [group for group in groups if len(group) > 1]


def _same(before: StabilityRow, now: StabilityRow) -> bool:
    """Returns whether two rows differ in their date at most."""
    return before.model_copy(update={"date": now.date}) == now


def _listed(values: Iterable[str | int]) -> list[str | int]:
    """Returns each value once, in order of appearance."""
    return list(dict.fromkeys(values))
