"""One turn of the loop: its settings, and which stages, files and properties of the data these ask for."""

from __future__ import annotations

from dataclasses import dataclass

from handbook_ext.recipe_files import Tree
from handbook_ext.settings import Recipe


@dataclass(frozen=True)
class Iteration:
    """One turn of the loop: its settings, the policy it starts from (None: the checkpoint), its part of the data."""

    name: str
    settings: Recipe
    tree: Tree
    policy_from: str | None
    index: int

    @property
    def judged(self) -> bool:
        """Tells whether a ranker judges the samples."""
        return self.settings.select.rule in ("best_and_worst", "against_chosen")

    @property
    def sampled(self) -> bool:
        """Tells whether completions are generated; else the pairs are of the data alone."""
        select = self.settings.select
        return self.judged or select.rule == "gold_over_sample" or (select.rule == "review" and select.bootstrap > 0)

    @property
    def made_from(self) -> list[str]:
        """Returns the files of the iteration that its pairs are made from, beside the data and the score stores."""
        return ["rankings.jsonl"] if self.judged else ["completions.jsonl"] * self.sampled

    @property
    def needs(self) -> list[str]:
        """Returns what the selection asks of every row of the data: scores, or several rated answers."""
        select = self.settings.select
        by_score = select.rule == "review" and select.keep > 0 and select.keep_by == "score_gap"
        return ["answers"] * (select.rule == "curriculum") + ["scores"] * by_score

    @property
    def reviewed(self) -> bool:
        """Tells whether log-probs decide the selection, so that scoring comes before it."""
        select = self.settings.select
        by_log_prob = select.keep > 0 and select.keep_by in ("margin", "log_prob", "chosen_log_prob")
        return select.rule == "review" and (by_log_prob or select.bootstrap > 0)

    @property
    def watched(self) -> bool:
        """Tells whether the recipe sets a limit that must hold before the next iteration starts."""
        return any(limit is not None for limit in self.settings.health.model_dump().values())

    @property
    def scored(self) -> bool:
        """Tells whether there is a score store: for the selection, or for a loss with a reference."""
        return self.reviewed or self.settings.train.needs_reference
