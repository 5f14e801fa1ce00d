"""What a selection rule is given, what it says that it needs, and what it returns."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from handbook_ext.core.errors import UserError
from handbook_ext.core.records import Completion, OfflinePair, PreferencePair, Ranking
from handbook_ext.selection.ensemble import StoredLogProbs


class SelectOptions(Protocol):
    """The settings that rules read, as a recipe's section `select` has them."""

    @property
    def rule(self) -> str:
        """Returns a name of RULES."""

    @property
    def explore(self) -> bool:
        """Returns whether sample 0 of each prompt goes with its pair, for SELM's exploration term."""

    @property
    def explore_as_chosen(self) -> str:
        """Returns `keep`, or `skip` where a pair whose chosen is the explored sample shall have no exploration term."""

    @property
    def keep(self) -> float:
        """Returns the share of offline pairs that SeRA keeps."""

    @property
    def keep_by(self) -> str:
        """Returns a name of KEEP_BY: what the kept pairs are the largest in."""

    @property
    def bootstrap(self) -> float:
        """Returns SeRA's pairs of the policy's own samples, as a share of the offline pairs."""

    @property
    def bootstrap_labels(self) -> str:
        """Returns who says which of SeRA's own completions is chosen: `margin`, `ranker` or `coin`."""

    @property
    def gamma(self) -> float:
        """Returns the weight of the older policy in SeRA's ensemble."""

    @property
    def margin_reference(self) -> str:
        """Returns whose log-probs a policy's margin is taken against: `previous` or `start`."""

    @property
    def rejected_rank(self) -> int:
        """Returns the rank, from the worst, of the rated completion that Curry-DPO rejects."""


@dataclass(frozen=True)
class Needs:
    """What a rule reads besides the offline pairs.

    `offline_log_probs` and `sample_log_probs` are those under the policy that starts the iteration; `offline_margins` and
    `sample_margins` ask for the policies of the ensemble, and their references, as well. `data_scores` (the data's own, of
    chosen and rejected) and `rated_answers` (several per prompt) are asked of every offline row. `offline_ranked`: the rankings
    must hold the offline completions too.
    """

    samples: bool = False
    rankings: bool = False
    offline_log_probs: bool = False
    sample_log_probs: bool = False
    offline_margins: bool = False
    sample_margins: bool = False
    data_scores: bool = False
    rated_answers: bool = False
    offline_ranked: bool = False

    @property
    def log_probs(self) -> bool:
        """Returns whether log-probs of any kind are read, so that scoring comes before selection."""
        return self.offline_log_probs or self.sample_log_probs or self.margins

    @property
    def margins(self) -> bool:
        """Returns whether implicit reward margins are read, so that a policy must have been trained before."""
        return self.offline_margins or self.sample_margins


@dataclass(frozen=True)
class Material:
    """What the pairs of an iteration are made of; a rule reads the parts that its `Needs` name.

    `samples` are completions by prompt id, in the order of their numbers; they are empty where rankings are read and no log-probs
    of samples, since rankings hold the samples' texts. `log_probs` is None where the rule needs none.
    """

    offline: Sequence[OfflinePair]
    samples: Mapping[str, Sequence[Completion]] = field(default_factory=dict)
    rankings: Sequence[Ranking] = ()
    log_probs: StoredLogProbs | None = None
    seed: int = 0
    iteration: str = ""

    @property
    def stored(self) -> StoredLogProbs:
        """Returns the log-probs; a UserError where the rule needs some and none are given."""
        if self.log_probs is None:
            raise UserError("the selection needs log-probs of the completions, and none are given; score them first")
        return self.log_probs


@dataclass
class Selected:
    """The pairs of an iteration, of how many rows they were made, why rows were dropped, and facts for the manifest."""

    pairs: list[PreferencePair]
    rows_in: int
    dropped: Counter[str]
    facts: dict[str, Any] = field(default_factory=dict)


def portion(rows: list[OfflinePair], index: int, of: int, most: int | None = None) -> list[OfflinePair]:
    """Returns the rows in the index-th of `of` equal consecutive parts of the raw data; floor division leaves the last unused.

    most: raw rows that a part has at most; None is no limit. A row that was dropped makes its own part smaller and moves no other
    row, as where SELM's code slices the raw split.
    Raises UserError where there is no row in the part.
    """
    if of == 1 and most is None:
        return rows
    raw = rows[0].raw_rows
    if raw == 0:
        raise UserError("data.portions: the rows do not say where in the raw data they stand; delete data/rows and run make")
    size = min(raw // of, most or raw)
    if size == 0:
        raise UserError(f"data.portions: {raw} rows cannot make {of} portions; lower it or give more rows")
    part = [row for row in rows if index * size <= row.raw_row < (index + 1) * size]
    if not part:
        raise UserError(f"data.portions: all {size} rows of portion {index + 1} of {of} were dropped; lower it, or see data/rows")
    return part


def by_prompt(completions: Iterable[Completion]) -> dict[str, list[Completion]]:
    """Returns the samples of each prompt, in their order."""
    samples: dict[str, list[Completion]] = defaultdict(list)
    for row in completions:
        samples[row.prompt_id].append(row)
    return dict(samples)


def require(row: OfflinePair, need: str) -> None:
    """Raises UserError where a row lacks `data_scores` (of both completions) or `rated_answers`, whichever `need` names."""
    lacks, what, remedy = {
        "data_scores": (
            None in (row.score_chosen, row.score_rejected), "score_chosen and score_rejected, which this row lacks",
            "use data with scores, or another select.rule or select.keep_by",
        ),
        "rated_answers": (
            not row.answers, "several rated answers per prompt",
            "use data of the form ultrafeedback, data.answers: 4 for tiny_world, or another select.rule",
        ),
    }[need]  # fmt: skip
    if lacks:
        raise UserError(f"{row.source or row.prompt_id}: the selection needs {what}; {remedy}")


def distinct(pairs: list[PreferencePair], dropped: Counter[str]) -> list[PreferencePair]:
    """Returns the pairs whose two completions differ; counts the others."""
    # A margin of zero whatever the policy: such a pair would add a constant to the loss and dilute the step's mean.
    kept = [pair for pair in pairs if pair.chosen != pair.rejected]
    dropped["chosen equals rejected"] += len(pairs) - len(kept)
    return kept
