"""What every ranker is: it judges the candidates of prompts, set by set; and what becomes of its verdicts."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from handbook_ext.core.records import Candidate, Completion, Messages, OfflinePair, Origin, Ranking


@dataclass(frozen=True)
class Verdict:
    """A ranker's score of one completion; larger is better.

    `truncated`: it did not see the whole text. `failed`: it gave no readable judgement, and `score` means nothing.
    `disagreements`: in how many comparisons with others of its set the two orders name different winners.
    """

    score: float
    truncated: bool = False
    failed: bool = False
    disagreements: int = 0


class CandidateSet(NamedTuple):
    """A prompt and the texts of its candidates, which are judged together."""

    prompt: Messages
    texts: Sequence[str]


class Ranker(Protocol):
    """Judges sets of candidates, each independently of the other sets.

    `setwise` tells whether a candidate's score depends on the others of its set, as where candidates are compared in pairs.
    """

    @property
    def setwise(self) -> bool:
        """Tells whether scores are relative to the set."""
        ...

    def judge(self, sets: Sequence[CandidateSet]) -> list[list[Verdict]]:
        """Returns a verdict per candidate of each set, in their order."""
        ...

    def facts(self) -> dict[str, Any]:
        """Returns what a manifest records of the judging besides the verdicts, such as tokens and cost of an endpoint."""
        ...


class Pointwise:
    """A ranker that scores each completion alone: whoever implements `score` is one."""

    setwise = False

    def score(self, items: Sequence[tuple[Messages, str]]) -> list[Verdict]:
        """Returns the verdict on each (prompt, completion)."""
        raise NotImplementedError

    def judge(self, sets: Sequence[CandidateSet]) -> list[list[Verdict]]:
        """Returns a verdict per candidate of each set; all are scored in one call."""
        verdicts = iter(self.score([(each.prompt, text) for each in sets for text in each.texts]))
        return [[next(verdicts) for _ in each.texts] for each in sets]

    def facts(self) -> dict[str, Any]:
        """Returns nothing: the verdicts say all."""
        return {}


def rewards(ranker: Ranker, rows: Sequence[OfflinePair], texts: Sequence[str]) -> list[Verdict]:
    """Returns the verdict on one completion of each row's prompt.

    That of a setwise ranker is the completion's score in a set with the chosen and the rejected answer of its row.
    """
    beside = [[row.chosen_answer.text, row.rejected_answer.text] if ranker.setwise else [] for row in rows]
    sets = [CandidateSet(row.prompt, [text, *others]) for row, text, others in zip(rows, texts, beside, strict=True)]
    return [first for first, *_ in ranker.judge(sets)]


class Unjudged(NamedTuple):
    """A candidate before its judgement: who wrote it, the number of its sample, its text and its id."""

    origin: Origin
    sample: int | None
    text: str
    completion_id: str


def ranking(prompt_id: str, prompt: Messages, candidates: Sequence[tuple[Unjudged, Verdict]]) -> Ranking:
    """Returns the candidates with ranks: 1 is the largest score, equal scores share the better rank."""
    scores = [-math.inf if verdict.failed else verdict.score for _, verdict in candidates]
    ranked = [
        Candidate(
            origin=candidate.origin, sample=candidate.sample, text=candidate.text, completion_id=candidate.completion_id,
            score=verdict.score, truncated=verdict.truncated, failed=verdict.failed,
            rank=1 + sum(score > own for score in scores),
        )
        for (candidate, verdict), own in zip(candidates, scores, strict=True)
    ]  # fmt: skip
    ties = sum(scores.count(score) > 1 for score in scores)
    # Each comparison is counted by both of its candidates.
    disagreements = sum(verdict.disagreements for _, verdict in candidates) // 2
    return Ranking(prompt_id=prompt_id, prompt=prompt, candidates=ranked, ties=ties, disagreements=disagreements)


def candidates_of(samples: list[Completion], offline: OfflinePair | None) -> list[Unjudged]:
    """Returns a prompt's candidates in the order of the official code: samples, then the offline chosen and rejected, if any."""
    found = [Unjudged("on_policy", row.sample, row.text, row.completion_id) for row in samples]
    sides = [] if offline is None else [offline.chosen_answer, offline.rejected_answer]
    return found + [Unjudged("offline", None, side.text, side.completion_id) for side in sides]


def by_length(lengths: Sequence[int], batch_size: int, tokens_per_batch: int | None = None) -> Iterator[list[int]]:
    """Yields the places of the texts of each batch, the shortest first, so that little is padded.

    A batch has batch_size texts, or instead at most tokens_per_batch tokens with padding; a longer text is alone.
    """
    batch: list[int] = []
    for place in sorted(range(len(lengths)), key=lambda place: lengths[place]):
        # The last text is the longest, to which the batch is padded.
        tokens = (len(batch) + 1) * lengths[place]
        full = len(batch) == batch_size if tokens_per_batch is None else tokens > tokens_per_batch
        if batch and full:
            yield batch
            batch = []
        batch.append(place)
    if batch:
        yield batch
