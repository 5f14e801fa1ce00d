"""Why selection kept or dropped a prompt: the iteration's own rule is asked again, with what it was given."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from handbook_ext.core.artifacts import read_manifest
from handbook_ext.core.errors import UserError
from handbook_ext.core.jsonl import read_rows
from handbook_ext.core.records import Completion, OfflinePair, PreferencePair
from handbook_ext.graph.stages import SelectStage
from handbook_ext.objectives.reward_form import RewardForm
from handbook_ext.reports.trails import Trail, files_of_selection
from handbook_ext.selection.ensemble import EnsembleTerm, StoredLogProbs, read_log_probs
from handbook_ext.selection.rules import KEEP_BY, Material, by_prompt, needs_of, select_pairs
from handbook_ext.selection.sera import counts, on_policy_pair, sera_needs, top_k_indices

BY_ALL = "sera"
"""The rule whose verdict on a prompt depends on all the others; any other rule looks at one prompt alone."""
UNITS = {"log_prob": "nats", "chosen_log_prob": "nats", "chosen_length": "words"}


@dataclass(frozen=True)
class Selection:
    """The selection of an iteration: its settings as its manifest has them, and the files that it read."""

    folder: Path
    settings: SelectStage
    files: dict[str, list[Path]]

    @classmethod
    def of(cls, folder: Path) -> Selection:
        """Returns the selection that made an iteration's pairs; raises UserError where an older version made them."""
        try:
            settings = SelectStage.model_validate(read_manifest(folder / "pairs.jsonl")["settings"])
        except ValueError as error:
            first = str(error).splitlines()[0]
            raise UserError(
                f"{folder}: its pairs were selected under settings that this version does not know ({first}); check out the "
                "commit that its manifest names, or select again"
            ) from None
        return cls(folder, settings, files_of_selection(folder))

    @property
    def unit(self) -> str:
        """Returns the unit of an implicit reward margin."""
        return "nats per token" if self.settings.reward_form.get("length_normalized") else "nats"

    @cached_property
    def log_probs(self) -> StoredLogProbs | None:
        """Returns the log-probs that the rule reads, None where it reads none."""
        if not needs_of(self.settings.select).log_probs:
            return None
        terms = [EnsembleTerm(**term) for term in self.settings.terms]
        form = RewardForm(**self.settings.reward_form)
        return read_log_probs(self.files["log_probs"], starts_from=self.settings.policy, form=form, terms=terms)

    @cached_property
    def everything(self) -> Material:
        """Returns what the rule was given, of all prompts."""
        settings = self.settings
        samples = by_prompt(row for path in self.files.get("completions", []) for row in read_rows(path, Completion))
        offline = settings.portion.rows_of(read_rows(self.files["rows"][0], OfflinePair))
        return Material(offline, samples, (), self.log_probs, settings.seed, settings.iteration)

    def given(self, row: OfflinePair) -> bool:
        """Returns whether a row of the data is in the iteration's portion."""
        try:
            return bool(self.settings.portion.rows_of([row]))
        except UserError:  # What is said of a portion without any row.
            return False

    def asked_again(self, trail: Trail, row: OfflinePair) -> tuple[list[PreferencePair], list[str]]:
        """Returns the pairs that the rule makes of one prompt alone, and its reasons where it drops one."""
        rankings = [] if trail.ranking is None else [trail.ranking]
        samples = {row.prompt_id: trail.samples} if trail.samples and not rankings else {}
        material = Material([row], samples, rankings, self.log_probs, self.settings.seed, self.settings.iteration)
        selected = select_pairs(material, self.settings.select)
        return selected.pairs, [reason for reason, count in selected.dropped.items() if count]


def decision(selection: Selection, trail: Trail) -> list[str]:
    """Returns sentences on what the rule does with a prompt, and whether pairs.jsonl says the same."""
    row, options = trail.offline, selection.settings.select
    if row is None:
        return ["the data do not hold this prompt any more"]
    if options.rule == BY_ALL:
        found = [_offline_place(selection, trail.offline), _own_place(selection, row.prompt_id)]
        lines, expected = [line for line, _ in found if line], [side for _, side in found if side]
        kept = ["offline" if pair.chosen_origin == "offline" else "own" for _, pair in trail.pairs]
        return lines + ([] if sorted(expected) == sorted(kept) else [_changed(selection)])
    pairs, dropped = selection.asked_again(trail, row)
    lines = [f"dropped: {reason}" for reason in dropped]
    before = [(pair.chosen_id, pair.rejected_id) for _, pair in trail.pairs]
    return lines + ([] if [(one.chosen_id, one.rejected_id) for one in pairs] == before else [_changed(selection)])


def place_of(values: Sequence[float], index: int) -> int:
    """Returns the place of one of the values, 1 for the largest; of equal ones the first goes first, as in selection."""
    own = values[index]
    return 1 + sum(value > own for value in values) + sum(value == own for value in values[:index])


def _offline_place(selection: Selection, row: OfflinePair) -> tuple[str, str]:
    """Returns SeRA's verdict on an offline pair in words, and "offline" where it is kept; nothing where none is."""
    options, material = selection.settings.select, selection.everything
    keep, _ = counts(len(material.offline), options.keep, options.bootstrap)
    if not keep:
        return "", ""
    scored = sera_needs(options).offline_log_probs
    if scored and not material.stored.scored(row.chosen_id):
        return "offline pair dropped: prompt too long", ""
    if row.chosen == row.rejected:
        return "offline pair dropped: chosen equals rejected", ""
    usable = [
        each
        for each in material.offline
        if each.chosen != each.rejected and (not scored or material.stored.scored(each.chosen_id))
    ]
    by = KEEP_BY[options.keep_by]
    values = [by.value(each, material) for each in usable]
    index = [each.prompt_id for each in usable].index(row.prompt_id)
    unit = selection.unit if by.needs.margins else UNITS.get(options.keep_by, "")
    what = f"{options.keep_by.replace('_', ' ')} ({by.summary}) {values[index]:.4g}{unit and f' {unit}'}"
    return _verdict("offline pair", what, values, index, keep, "K"), "offline" if _among(values, keep, index) else ""


def _own_place(selection: Selection, prompt_id: str) -> tuple[str, str]:
    """Returns SeRA's verdict on the pair of a prompt's own samples in words, and "own" where it is added."""
    options, material = selection.settings.select, selection.everything
    _, add = counts(len(material.offline), options.keep, options.bootstrap)
    if not add:
        return "", ""
    if prompt_id not in material.samples:
        return "no pair of own samples: the policy has none to this prompt (too long)", ""
    reasons: Counter[str] = Counter()
    pairs = [pair for each in material.samples.values() if (pair := on_policy_pair(each, material, reasons)) is not None]
    names = [pair.prompt_id for pair in pairs]
    if prompt_id not in names:
        return "own pair dropped: all samples are equal", ""
    values, index = [pair.margin or 0.0 for pair in pairs], names.index(prompt_id)
    what = f"margin {values[index]:.4g} {selection.unit} between its best and its worst sample"
    line = _verdict("own pair", what, values, index, add, "K~")
    if not _among(values, add, index):
        return line, ""
    labels = options.bootstrap_labels
    return line + ("" if labels == "margin" else f"; which of the two is chosen says the {labels}"), "own"


def _verdict(pair: str, what: str, values: Sequence[float], index: int, count: int, name: str) -> str:
    """Returns the sentence on a pair's place among all."""
    least = sorted(values, reverse=True)[min(count, len(values)) - 1]
    ends = "kept" if _among(values, count, index) else "dropped"
    place = f"place {place_of(values, index)} of {len(values)}"
    return f"{pair}: {what} is {place}, {name} = {count} are kept, down to {least:.4g}: {ends}"


def _among(values: Sequence[float], count: int, index: int) -> bool:
    """Returns whether selection keeps a value."""
    return index in set(top_k_indices(values, count))


def _changed(selection: Selection) -> str:
    """Returns the sentence for pairs that the rule does not make any more."""
    commit = str((read_manifest(selection.folder / "pairs.jsonl").get("code") or {}).get("commit"))[:12]
    return (
        f"asked again, the rule decides otherwise than pairs.jsonl has it: its code or its inputs changed since (commit {commit})"
    )
