"""A language model behind an endpoint as a ranker: points for each candidate, or the candidates of a prompt in pairs."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from statistics import fmean
from typing import Any

from handbook_ext.core.errors import UserError
from handbook_ext.judging.endpoint import Endpoint
from handbook_ext.judging.judge_client import JudgeClient
from handbook_ext.judging.judge_questions import PARSERS, Kind, ask_one, ask_two
from handbook_ext.judging.ranker import CandidateSet, Verdict
from handbook_ext.judging.verdict_cache import VerdictCache
from handbook_ext.policies.conversations import conversation

Game = tuple[int, int, int]
"""A comparison: the number of its set, and of the two candidates."""


class EndpointJudge:
    """Asks a language model about candidates. What it replies unreadably is a failed verdict, counted and never a number.

    kind: `single` gives 1 to 10 points, `additive` 0 to 5; under `pairwise` the score of a candidate is the share of the others
    that it beats, a tie being half: every pair is asked in both orders and is a tie where these disagree. A comparison counts
    where both of its replies can be read. Two candidates with the same text are a tie that nobody is asked about.
    """

    def __init__(
        self, model: str, endpoint: Endpoint, *, cache: VerdictCache, kind: Kind = "single", question: str | None = None,
        longest_pause: float = 60.0,
    ) -> None:  # fmt: skip
        """Takes the model's name at the endpoint, and the question as Jinja text, None for our own.

        Raises UserError for a question that does not ask for what is read.
        """
        if question is not None and kind != "additive" and "[[" not in question:
            raise UserError(
                f"rank.rubric: it does not ask for a verdict in double brackets, and a judge of kind {kind} is read by them; "
                f"say in it to end with {'[[A]], [[B]] or [[C]]' if kind == 'pairwise' else 'points from 1 to 10, such as [[5]]'}"
            )
        self.kind, self.question, self.cache = kind, question, cache
        self.client = JudgeClient(model, endpoint, cache, longest_pause=longest_pause)
        self.unreadable = 0

    @property
    def setwise(self) -> bool:
        """Tells whether a candidate's score depends on the others of its set."""
        return self.kind == "pairwise"

    def judge(self, sets: Sequence[CandidateSet]) -> list[list[Verdict]]:
        """Returns a verdict per candidate of each set."""
        return self._pairwise(sets) if self.setwise else self._pointwise(sets)

    def facts(self) -> dict[str, Any]:
        """Returns what a manifest records: replies, tokens and cost (USD) of the stage, and what this process asked and read."""
        totals = self.cache.totals()
        cost = self.client.endpoint.cost(totals["prompt_tokens"], totals["completion_tokens"])
        own = {
            "asked": self.client.asked, "from_cache": self.client.from_cache, "unreadable": self.unreadable,
            "refused": self.client.refused, "unusable_tries": len(self.client.unusable),
            "unusable_tokens": sum(self.client.unusable),
        }  # fmt: skip
        return {"judge": {**totals, "cost_usd": cost, **own}}

    def _pointwise(self, sets: Sequence[CandidateSet]) -> list[list[Verdict]]:
        """Returns the points of each candidate."""
        items = [(conversation(each.prompt), text) for each in sets for text in each.texts]
        points = iter(self._read([ask_one(self.kind, self.question, prompt, text) for prompt, text in items]))
        return [[_verdict(next(points)) for _ in each.texts] for each in sets]

    def _pairwise(self, sets: Sequence[CandidateSet]) -> list[list[Verdict]]:
        """Returns the share of the others that each candidate beats."""
        games = [(number, *pair) for number, each in enumerate(sets) for pair in combinations(range(len(each.texts)), 2)]
        results: list[list[list[float]]] = [[[] for _ in each.texts] for each in sets]
        disagreements = [[0] * len(each.texts) for each in sets]
        for (number, one, other), (forward, backward) in zip(games, self._played(sets, games), strict=True):
            if forward is None or backward is None:
                continue
            disagree = forward != 1 - backward
            won = 0.5 if disagree else forward
            for candidate, share in ((one, won), (other, 1 - won)):
                results[number][candidate].append(share)
                disagreements[number][candidate] += disagree
        alone = [0.5 if len(each.texts) == 1 else None for each in sets]  # Nobody to compare with.
        return [
            [
                _verdict(fmean(shares) if shares else alone[number], doubts)
                for shares, doubts in zip(own, disagreements[number], strict=True)
            ]
            for number, own in enumerate(results)
        ]

    def _played(self, sets: Sequence[CandidateSet], games: Sequence[Game]) -> list[tuple[float | None, float | None]]:
        """Returns of each comparison what the first answer shown wins, in both orders."""
        shown = []
        for number, one, other in games:
            texts = sets[number].texts
            shown += [(number, texts[one], texts[other]), (number, texts[other], texts[one])]
        asked = [
            ask_two(self.question, conversation(sets[number].prompt), first, second)
            for number, first, second in shown
            if first != second
        ]
        replies = iter(self._read(asked))
        found = [0.5 if first == second else next(replies) for _, first, second in shown]
        return list(zip(found[::2], found[1::2], strict=True))

    def _read(self, questions: Sequence[str]) -> list[float | None]:
        """Returns what the replies say, None for those that cannot be read, which are counted."""
        found = [PARSERS[self.kind](reply) for reply in self.client.ask(questions)]
        self.unreadable += sum(each is None for each in found)
        return found


def _verdict(score: float | None, disagreements: int = 0) -> Verdict:
    """Returns the verdict of a score, failed where there is none."""
    return Verdict(0.0, failed=True) if score is None else Verdict(score, disagreements=disagreements)
