"""One turn of the loop: its settings, and which stages, files and properties of the data these ask for."""

from __future__ import annotations

from dataclasses import dataclass

from handbook_ext.recipes.settings import Recipe
from handbook_ext.recipes.yaml_tree import Tree


@dataclass(frozen=True)
class Iteration:
    """One turn of the loop: its settings, the policy it starts from (None: the checkpoint), its part of the data."""

    name: str
    settings: Recipe
    tree: Tree
    policy_from: str | None
    index: int

    @property
    def ranks(self) -> bool:
        """Tells whether a ranker judges the samples."""
        return self.settings.select.rule in ("best_and_worst", "against_chosen")

    @property
    def generates(self) -> bool:
        """Tells whether completions are generated; else the pairs are of the data alone."""
        select = self.settings.select
        return self.ranks or select.rule == "gold_over_sample" or (select.rule == "sera" and select.bootstrap > 0)

    @property
    def made_from(self) -> list[str]:
        """Returns the files of the iteration that its pairs are made from, beside the data and the score stores."""
        return ["rankings.jsonl"] if self.ranks else ["completions.jsonl"] * self.generates

    @property
    def needs(self) -> list[str]:
        """Returns what the selection asks of every row of the data: scores, or several rated answers."""
        select = self.settings.select
        by_score = select.rule == "sera" and select.keep > 0 and select.keep_by == "score_gap"
        return ["answers"] * (select.rule == "curriculum") + ["scores"] * by_score

    @property
    def scores_before_selection(self) -> bool:
        """Tells whether log-probs decide the selection, so that scoring comes before it."""
        select = self.settings.select
        by_log_prob = select.keep > 0 and select.keep_by in ("margin", "log_prob", "chosen_log_prob")
        return select.rule == "sera" and (by_log_prob or select.bootstrap > 0)

    @property
    def health_limited(self) -> bool:
        """Tells whether the recipe sets a limit that must hold before the next iteration starts."""
        return any(limit is not None for limit in self.settings.health.model_dump().values())

    @property
    def has_log_probs(self) -> bool:
        """Tells whether there is a score store: for the selection, or for a loss with a reference."""
        return self.scores_before_selection or self.settings.train.needs_reference
