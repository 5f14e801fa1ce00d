"""The score store: log-probs of completions under policies, each computed once and read by all later iterations.

A row is {"policy", "completion", "sum", "mean", "tokens"}: a policy's hash, a completion's id, log-probs in nats over the
completion's tokens. The store of an iteration is its folder `logprobs`; those of a run are read together.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from handbook_ext.core.errors import UserError
from handbook_ext.core.jsonl import iter_jsonl


@dataclass(frozen=True, slots=True)
class LogProb:
    """A completion's log-prob, summed over its tokens (nats)."""

    total: float
    tokens: int


@dataclass
class ScoreStore:
    """Log-probs by policy and completion id."""

    values: dict[str, dict[str, LogProb]] = field(default_factory=dict)

    def under(self, policy: str) -> dict[str, LogProb]:
        """Returns the log-probs under one policy, by completion id."""
        return self.values.get(policy, {})

    def of(self, policy: str, completion: str) -> LogProb:
        """Returns one log-prob; raises UserError where it was never computed."""
        found = self.under(policy).get(completion)
        if found is None:
            raise UserError(
                f"the score store lacks completion {completion} under policy {policy[:12]}; run make, which scores it"
            )
        return found

    @property
    def entries(self) -> int:
        """Returns how many log-probs there are; each took one forward pass of a completion."""
        return sum(map(len, self.values.values()))


def store_row(policy: str, completion: str, total: float, tokens: int) -> dict[str, Any]:
    """Returns the row of one log-prob."""
    return {"policy": policy, "completion": completion, "sum": total, "mean": total / tokens, "tokens": tokens}


def read_stores(folders: Iterable[Path]) -> ScoreStore:
    """Returns the stores of several iterations as one; raises UserError where a policy has scored a completion twice."""
    store = ScoreStore()
    for path in (path for folder in folders for path in sorted(folder.glob("*.jsonl"))):
        for number, row in iter_jsonl(path):
            known = store.values.setdefault(row["policy"], {})
            # Two passes may differ in the last bits, with their batches; which one is read would depend on the order of files.
            if row["completion"] in known:
                raise UserError(
                    f"{path}:{number}: completion {row['completion']} is scored twice by policy {row['policy'][:12]}; "
                    f"delete {path.parent} and run make"
                )
            known[row["completion"]] = LogProb(row["sum"], row["tokens"])
    return store


def reference_sums(folder: Path, policy: str) -> dict[str, float]:
    """Returns summed log-probs (nats) by completion id under the policy that training starts from.

    Raises UserError where the folder has none.
    """
    found = read_stores([folder]).under(policy)
    if not found:
        raise UserError(f"{folder}: holds nothing under policy {policy[:12]}, from which training starts; run make")
    return {completion: value.total for completion, value in found.items()}
