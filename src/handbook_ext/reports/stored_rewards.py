"""Log-probs of single completions in a run's score stores, and the implicit rewards that selection made of them."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from handbook_ext.core.artifacts import START, finished_manifest
from handbook_ext.core.jsonl import iter_jsonl
from handbook_ext.objectives.reward_form import RewardForm
from handbook_ext.reports.evaluations import Json
from handbook_ext.selection.log_prob_store import LogProb

LogProbs = dict[str, dict[str, LogProb]]
"""Log-probs by policy hash and completion id."""


def policy_names(run: Path) -> dict[str, str]:
    """Returns the names of a run's policies by their hashes, the first one's too, which a stage may only have read."""
    names = {}
    for manifest in map(finished_manifest, sorted(path.parent for path in run.glob("iter*/logprobs/manifest.json"))):
        # The store says under whom it scored; its settings say what that policy is called.
        if manifest is not None:
            names[str(manifest.get("policy"))] = str(manifest["settings"].get("policy", START))
            names |= {str(sha256): name for name, sha256 in manifest["external"].items()}
    for folder in sorted(run.glob("*/policy")):
        if (manifest := finished_manifest(folder)) is not None:
            names[str(manifest.get("policy"))] = folder.parent.name
    return names


def stored_log_probs(stores: Iterable[Path], wanted: Collection[str]) -> LogProbs:
    """Returns the log-probs of some completions in score stores; one that several stores hold as the last has it."""
    found: LogProbs = {}
    for path in (path for folder in stores for path in sorted(folder.glob("*.jsonl"))):
        for _, row in iter_jsonl(path):
            if row["completion"] in wanted:
                found.setdefault(row["policy"], {})[row["completion"]] = LogProb(row["sum"], row["tokens"])
    return found


def rewards_by_term(
    settings: Mapping[str, Any], completions: Collection[str], log_probs: LogProbs, names: Mapping[str, str]
) -> dict[str, Json]:
    """Returns each completion's implicit reward term by term (SeRA, Eq. 7) and their mix; nothing where no margins select.

    settings: those of the selection, as its manifest has them. names: of the policies, by hash. A reward is None where some
    term was never scored, as of completions that selection did not compare.
    """
    form, found = RewardForm(**settings.get("reward_form") or {}), {}
    hashes = {name: sha256 for sha256, name in names.items()}
    for completion in completions:
        parts = []
        for term in settings.get("terms") or []:
            own = log_probs.get(hashes.get(term["policy"], ""), {}).get(completion)
            reference = log_probs.get(hashes.get(term["reference"] or "", ""), {}).get(completion)
            if own is None or (term["reference"] and reference is None):
                continue
            value = form.value(own.total, reference.total if reference else 0.0, own.tokens)
            stored = {"log_prob": own.total, "reference_log_prob": None if reference is None else reference.total}
            parts.append({**term, **stored, "value": value})
        if parts:
            whole = len(parts) == len(settings["terms"])
            mixed = sum(part["weight"] * part["value"] for part in parts) if whole else None
            found[completion] = {"parts": parts, "value": mixed}
    return found
