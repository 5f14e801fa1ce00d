"""Rows of one iteration made by hand: offline pairs, samples, rankings, and log-probs in a store."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from handbook_ext.core.records import Completion, Messages, OfflinePair, PreferencePair, Ranking, assistant, completion_id, user
from handbook_ext.judging.ranker import Verdict, candidates_of, ranking
from handbook_ext.objectives.reward_form import RewardForm
from handbook_ext.recipes.settings import SelectSettings
from handbook_ext.selection.ensemble import EnsembleTerm, StoredLogProbs
from handbook_ext.selection.log_prob_store import LogProb, ScoreStore
from handbook_ext.selection.rules import Material, Selected, by_prompt, select_pairs

PROMPTS: list[Messages] = [user(f"question {number}") for number in range(6)]


def offline(number: int = 0, chosen: str = "", rejected: str = "", **columns: Any) -> OfflinePair:
    """The offline pair of a prompt: "good 0" over "bad 0" unless told."""
    sides = assistant(chosen or f"good {number}"), assistant(rejected or f"bad {number}")
    return OfflinePair.of(f"p{number}", PROMPTS[number], *sides, **columns)


def samples(number: int, *texts: str) -> list[Completion]:
    """The samples of a prompt, in the order of their numbers."""
    return [
        Completion.of(
            f"p{number}", PROMPTS[number], text, sample=index, finish_reason="stop", seed=0, prompt_tokens=1, completion_tokens=1
        )
        for index, text in enumerate(texts)
    ]


def judged(pair: OfflinePair, texts: Iterable[str], scores: Iterable[float | None]) -> Ranking:
    """The ranking of a prompt's samples, then of y_w and y_l; a score of None is a failed judgement."""
    candidates = candidates_of(samples(int(pair.prompt_id[1:]), *texts), pair)
    verdicts = [Verdict(0.0, failed=True) if score is None else Verdict(score) for score in scores]
    return ranking(pair.prompt_id, pair.prompt, list(zip(candidates, verdicts, strict=True)))


def id_of(number: int, text: str) -> str:
    """The id of a text as an answer to a prompt."""
    return completion_id(f"p{number}", PROMPTS[number], assistant(text))


def log_probs(
    policies: dict[str, dict[tuple[int, str], tuple[float, int]]], *terms: tuple[float, str, str | None], start: str = "one",
    form: RewardForm = RewardForm(),  # noqa: B008 - frozen
) -> StoredLogProbs:  # fmt: skip
    """Log-probs by policy, then by (prompt, text): (sum, tokens)."""
    values = {
        f"hash of {policy}": {id_of(*text): LogProb(*value) for text, value in texts.items()}
        for policy, texts in policies.items()
    }
    hashes = {policy: f"hash of {policy}" for policy in policies}
    return StoredLogProbs(ScoreStore(values), hashes, start, form, [EnsembleTerm(*term) for term in terms])


def selected(
    pairs: list[OfflinePair], rule: str, *, completions: Iterable[Completion] = (), rankings: Iterable[Ranking] = (),
    stored: StoredLogProbs | None = None, seed: int = 0, **settings: Any,
) -> Selected:  # fmt: skip
    """What a rule makes of these rows; `settings` are those of a recipe's section `select`."""
    material = Material(
        pairs, samples=by_prompt(completions), rankings=list(rankings), log_probs=stored, seed=seed, iteration="iter2"
    )
    return select_pairs(material, SelectSettings(rule=rule, **settings))


def texts_of(pair: PreferencePair) -> tuple[str, str]:
    """The texts of chosen and rejected."""
    return pair.chosen[-1]["content"], pair.rejected[-1]["content"]


def explored_text(pair: PreferencePair) -> str | None:
    """The text of the explored sample."""
    return pair.explore[-1]["content"] if pair.explore else None
