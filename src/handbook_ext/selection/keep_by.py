"""The values by which SeRA keeps the largest offline pairs: one function and one row of the table for each `select.keep_by`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from handbook_ext.core.records import OfflinePair, derived_seed
from handbook_ext.selection.material import Material, Needs, require


@dataclass(frozen=True)
class KeepBy:
    """A way to order offline pairs: the value of a pair, what it reads, and one line for docs and error messages."""

    value: Callable[[OfflinePair, Material], float]
    needs: Needs
    summary: str


def margin(pair: OfflinePair, material: Material) -> float:
    """Returns the implicit reward margin of a pair, mixed over the ensemble, in nats or nats per token (SeRA, Eq. 5 and 7)."""
    # Linear in the policies, so mixing the rewards of the two completions mixes the margins of Eq. 7.
    reward = material.stored.implicit_reward
    return reward(pair.chosen_id) - reward(pair.rejected_id)


def log_prob_margin(pair: OfflinePair, material: Material) -> float:
    """Returns log pi(chosen) - log pi(rejected) in nats, pi the policy that starts the iteration."""
    log_prob = material.stored.at_start
    return log_prob(pair.chosen_id).total - log_prob(pair.rejected_id).total


def chosen_log_prob(pair: OfflinePair, material: Material) -> float:
    """Returns log pi(chosen) in nats, pi the policy that starts the iteration."""
    return material.stored.at_start(pair.chosen_id).total


def score_gap(pair: OfflinePair, material: Material) -> float:
    """Returns the gap of the data's own scores; raises UserError where the row has none."""
    require(pair, "data_scores")
    return (pair.score_chosen or 0.0) - (pair.score_rejected or 0.0)


def seeded_draw(pair: OfflinePair, material: Material) -> float:
    """Returns a number from 0 to 1 that depends on seed, iteration and prompt id alone."""
    # Of the prompt and not its position: the draw is the same where other rows are dropped. Seeds are below 2**63.
    return derived_seed("keep", material.seed, material.iteration, pair.prompt_id) / 2**63


def chosen_length(pair: OfflinePair, material: Material) -> float:
    """Returns the words of chosen less those of rejected, as a control: length is a spurious feature of many data sets."""
    return float(len(pair.chosen_answer.text.split()) - len(pair.rejected_answer.text.split()))


KEEP_BY = {
    "margin": KeepBy(margin, Needs(offline_log_probs=True, offline_margins=True), "implicit reward margin (SeRA)"),
    "score_gap": KeepBy(score_gap, Needs(data_scores=True), "gap of the data's scores"),
    "log_prob": KeepBy(log_prob_margin, Needs(offline_log_probs=True), "log-prob margin of the policy"),
    "chosen_log_prob": KeepBy(chosen_log_prob, Needs(offline_log_probs=True), "log-prob of chosen"),
    "random": KeepBy(seeded_draw, Needs(), "a seeded draw"),
    "chosen_length": KeepBy(chosen_length, Needs(), "words of chosen less rejected"),
}
