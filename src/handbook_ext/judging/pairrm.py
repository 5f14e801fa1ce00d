"""PairRM as a ranker (arXiv 2306.02561): the candidates of a prompt are compared in pairs, each pair in both orders."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from handbook_ext.judging.pairrm_model import load_pairrm
from handbook_ext.judging.pairrm_text import EncodedSet, PairText
from handbook_ext.judging.ranker import CandidateSet, Verdict, by_length

Order = tuple[int, int, int]
"""A comparison in one order: the number of its set, and of the first and the second candidate."""
CPU_TOKENS = 2048  # Of a batch where nobody says otherwise: a CPU gains nothing by more, and its caches hold less.


@dataclass
class _Contest:
    """The comparisons of a set so far: by how much one candidate is better than another where it stands first."""

    encoded: EncodedSet
    better: dict[tuple[int, int], float] = field(default_factory=dict)

    def lead(self, one: int, other: int) -> float:
        """Returns by how much one candidate is better than another, over both orders."""
        return self.better[one, other] - self.better[other, one]

    def disagreements(self, number: int) -> int:
        """Returns in how many of a candidate's comparisons the two orders name different winners."""
        counts = self.encoded.counts
        pairs = [(one, other) for one, other in self.better if one == number]
        return sum(counts[other] for one, other in pairs if self.better[one, other] * self.better[other, one] > 0)


class PairRM:
    """Scores the candidates of a set by their comparisons with the others: score_i = sum_j (c_ij - c_ji) / n.

    c_ij is the network's logit that candidate i, standing first, is better than j, and n the number of candidates. Equal texts
    are judged once and have equal scores; they draw with each other. A score does not depend on the other sets.

    tournament: only what decides the best and the worst is compared, in two knock-out rounds that share the first: about 3n/2
    pairs in place of n(n-1)/2. The best has score 1, the worst -1, all others 0. Where A beats B, B beats C and C beats A, the
    outcome can differ from that of all comparisons.
    """

    setwise = True

    def __init__(
        self, source: str, *, device: torch.device, batch_size: int = 32, tokens_per_batch: int | None = None,
        revision: str | None = None, source_max_length: int = 1224, candidate_max_length: int = 412, bf16: bool = False,
        tournament: bool = False, legacy_truncation: bool = False,
    ) -> None:  # fmt: skip
        """Loads the network; lengths are in tokens, batch_size in comparisons. Raises UserError for what is no PairRM.

        tokens_per_batch counts padding, and stands in place of batch_size.
        """
        network, tokenizer = load_pairrm(source, revision)
        self.network = network.settle(device, torch.bfloat16 if bf16 else torch.float32)
        self.text = PairText(
            tokenizer, source_max_length=source_max_length, candidate_max_length=candidate_max_length,
            legacy_truncation=legacy_truncation,
        )  # fmt: skip
        self.device, self.batch_size, self.tournament = device, batch_size, tournament
        self.tokens_per_batch = CPU_TOKENS if tokens_per_batch is None and device.type == "cpu" else tokens_per_batch
        self.pad = tokenizer.pad_token_id

    def judge(self, sets: Sequence[CandidateSet]) -> list[list[Verdict]]:
        """Returns a verdict per candidate of each set; `truncated` where it or its prompt was cut."""
        contests = [_Contest(encoded) for encoded in self.text.encode(sets)]
        scores = self._knock_out(contests) if self.tournament else self._compare_all(contests)
        return [
            [
                Verdict(own[number], each.encoded.cut[number], disagreements=each.disagreements(number))
                for number in each.encoded.numbers
            ]
            for each, own in zip(contests, scores, strict=True)
        ]

    def facts(self) -> dict[str, Any]:
        """Returns nothing: the verdicts say all."""
        return {}

    def _compare_all(self, contests: Sequence[_Contest]) -> list[list[float]]:
        """Returns the scores of each set's distinct candidates by all comparisons."""
        self._compare(
            contests,
            [(number, one, other) for number, each in enumerate(contests) for one, other in _pairs(len(each.encoded.candidates))],
        )
        result = []
        for each in contests:
            counts = each.encoded.counts
            names = range(len(counts))
            leads = [[counts[other] * each.lead(one, other) for other in names if other != one] for one in names]
            result.append([sum(own) / sum(counts) for own in leads])
        return result

    def _knock_out(self, contests: Sequence[_Contest]) -> list[list[float]]:
        """Returns the scores of each set's distinct candidates by two knock-out rounds; all sets play a round together."""
        alive = [list(range(len(each.encoded.candidates))) for each in contests]
        winners, losers = self._round(contests, alive)
        best = self._last(contests, winners, first=True)
        # One without an opponent is in both; where it is the best by a circle of wins, it is not the worst as well.
        losers = [[name for name in names if name != top] or names for names, top in zip(losers, best, strict=True)]
        worst = self._last(contests, losers, first=False)
        result = []
        for each, top, bottom in zip(contests, best, worst, strict=True):
            own = [0.0] * len(each.encoded.candidates)
            if top != bottom:
                own[top], own[bottom] = 1.0, -1.0
            result.append(own)
        return result

    def _round(self, contests: Sequence[_Contest], alive: Sequence[list[int]]) -> tuple[list[list[int]], list[list[int]]]:
        """Returns who wins and who loses where neighbours meet; a last one without an opponent is in both."""
        games = [list(zip(names[::2], names[1::2], strict=False)) for names in alive]
        orders = [(number, *pair) for number, each in enumerate(games) for game in each for pair in (game, game[::-1])]
        self._compare(contests, orders)
        winners, losers = [], []
        for each, played, names in zip(contests, games, alive, strict=True):
            sorted_games = [game if each.lead(*game) >= 0 else game[::-1] for game in played]
            left = names[2 * len(played) :]
            winners.append([first for first, _ in sorted_games] + left)
            losers.append([second for _, second in sorted_games] + left)
        return winners, losers

    def _last(self, contests: Sequence[_Contest], alive: list[list[int]], *, first: bool) -> list[int]:
        """Returns who is left of each set after as many rounds as are needed: of the winners, or of the losers."""
        while max((len(names) for names in alive), default=0) > 1:
            alive = self._round(contests, alive)[0 if first else 1]
        return [names[0] for names in alive]

    @torch.inference_mode()
    def _compare(self, contests: Sequence[_Contest], orders: Iterable[Order]) -> None:
        """Computes comparisons that are not known yet; those of like length share a batch, so that little is padded."""
        wanted = [(number, one, other) for number, one, other in orders if (one, other) not in contests[number].better]
        rows = {order: self._row(contests[order[0]].encoded, order[1], order[2]) for order in wanted}
        for numbers in by_length([len(rows[order][0]) for order in wanted], self.batch_size, self.tokens_per_batch):
            batch = [wanted[number] for number in numbers]
            longest = len(rows[batch[-1]][0])
            ids = torch.tensor([rows[order][0] + [self.pad] * (longest - len(rows[order][0])) for order in batch])
            lengths = torch.tensor([len(rows[order][0]) for order in batch])
            mask = (torch.arange(longest)[None] < lengths[:, None]).long()
            places = torch.tensor([rows[order][1] for order in batch]).to(self.device)
            logits = self.network(ids.to(self.device), mask.to(self.device), places).float().tolist()
            for (number, one, other), logit in zip(batch, logits, strict=True):
                contests[number].better[one, other] = logit

    def _row(self, encoded: EncodedSet, one: int, other: int) -> tuple[list[int], tuple[int, int, int]]:
        """Returns the ids of a comparison, and where its three markers lie: each behind a class token."""
        source, first, last = encoded.source, encoded.candidates[one], encoded.candidates[other]
        second = [last[0], self.text.second, *last[2:]]
        return source + first + second, (1, len(source) + 1, len(source) + len(first) + 1)


def _pairs(count: int) -> list[tuple[int, int]]:
    """Returns all ordered pairs of numbers below `count`."""
    return [(one, other) for one in range(count) for other in range(count) if one != other]
