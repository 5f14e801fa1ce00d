"""What the rows of a stage are as a model meets them: their lengths after truncation, micro-batches, samples. No torch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

from handbook_ext.graph.stages import Limits, Portion
from handbook_ext.planning.amounts import Amounts, Lengths, mean
from handbook_ext.planning.memory_model import Rows
from handbook_ext.recipes.iteration import Iteration
from handbook_ext.recipes.settings import RankSettings


@dataclass(frozen=True)
class PairRows:
    """Prefix-shared rows of an iteration: how many, their mean tokens and predicted tokens, and sorted (tokens, predicted)."""

    pairs: int
    tokens: float
    predicted: float
    sizes: tuple[tuple[float, float], ...]

    def longest(self, micro_batch: int) -> Rows:
        """Returns the longest micro-batch: rows as long as the longest of all, since a step's are sorted by length."""
        return Rows(micro_batch, self.sizes[-1][0], micro_batch * self.sizes[-1][1])

    def padded(self, micro_batch: int, global_batch: int) -> float:
        """Returns the mean positions of a row with its padding: a step's rows are sorted, and cut into micro-batches."""
        count = max(1, round(global_batch / micro_batch))
        groups = [self.sizes[round(i * len(self.sizes) / count) : round((i + 1) * len(self.sizes) / count)] for i in range(count)]
        return mean([group[-1][0] for group in groups if group])


def kept_share(amounts: Amounts, limits: Limits) -> float:
    """Returns the share of rows whose prompt is not dropped as too long."""
    kept = amounts.once(("kept", limits.model_dump_json()), lambda: sum(each.under(limits) is not None for each in amounts.pairs))
    return kept / max(1, len(amounts.pairs))


def portion_rows(amounts: Amounts, portion: Portion) -> int:
    """Returns the rows of an iteration's portion."""
    rows = amounts.train // portion.of
    return rows if portion.most is None else min(rows, portion.most)


def pair_rows(amounts: Amounts, each: Iteration, limits: Limits, pairs: int, *, explore: bool) -> PairRows:
    """Returns the rows that an iteration trains on; samples are taken to be as long as the data's chosen completions.

    The explored sample has a part of its own where it is neither the best nor the worst of the candidates.
    """
    key = ("pairs", each.name, limits.model_dump_json(), pairs, explore)
    return amounts.once(key, lambda: _pair_rows(amounts, each, limits, pairs, explore=explore))


def _pair_rows(amounts: Amounts, each: Iteration, limits: Limits, pairs: int, *, explore: bool) -> PairRows:
    """Returns the rows of `pair_rows`."""
    generate = each.settings.generate
    own = distinct_explored(each) if explore else 0.0
    sampled = sampled_share(each)
    sizes = []
    for row in amounts.pairs:
        found = row.under(limits)
        if found is None:
            continue
        sample = min(found.chosen, generate.max_new_tokens)
        completions = (found.chosen + found.rejected) * (1 - sampled) + 2 * sample * sampled + own * sample
        sizes.append((found.prompt + completions, completions))
    sizes = sorted(sizes) or [(float(limits.max_length), float(limits.max_length) / 2)]
    return PairRows(pairs, mean([size for size, _ in sizes]), mean([part for _, part in sizes]), tuple(sizes))


def sampled_share(each: Iteration) -> float:
    """Returns the share of the pairs' completions that the policy has sampled, were candidates equally good."""
    if not each.needs.samples:
        return 0.0
    if each.settings.select.rule == "sera":
        select = each.settings.select
        return select.bootstrap / (select.keep + select.bootstrap)
    if each.needs.rankings:
        samples = each.settings.generate.num_completions
        return 1.0 if each.settings.rank.candidates == "samples" else samples / (samples + 2)
    return 0.5


def distinct_explored(each: Iteration) -> float:
    """Returns the share of pairs whose explored sample is neither chosen nor rejected, were candidates equally good."""
    samples = each.settings.generate.num_completions
    candidates = samples + (0 if each.settings.rank.candidates == "samples" else 2)
    return max(0.0, 1 - 2 / candidates) if each.needs.rankings and candidates > 1 else 0.0


@dataclass(frozen=True)
class Sampled:
    """What is sampled, in tokens: a prompt's mean, with its padding, and longest; a completion's mean, and longest of a batch."""

    prompt: float
    padded: float
    longest: float
    new: float
    most: float


def sampled_lengths(amounts: Amounts, limits: Limits, new_tokens: int, batch: int, batches: int) -> Sampled:
    """Returns the lengths of sampling: as the data's chosen completions, and a batch goes on until its longest has ended.

    Requests are sorted by their prompts before they are cut into batches.
    """
    key = ("sampled", limits.model_dump_json(), new_tokens, batch, batches)
    return amounts.once(key, lambda: _sampled_lengths(amounts, limits, new_tokens, batch, batches))


def _sampled_lengths(amounts: Amounts, limits: Limits, new_tokens: int, batch: int, batches: int) -> Sampled:
    """Returns the lengths of `sampled_lengths`."""
    kept = [each for each in amounts.pairs if _fits(each, limits)]
    prompts = [_prompt(each, limits) for each in kept] or [limits.max_length // 2]
    news = sorted(min(each.chosen, new_tokens) for each in kept) or [new_tokens]
    # The longest of a batch is near that quantile of all.
    most = news[min(len(news) - 1, math.ceil(len(news) * (1 - 1 / (1 + batch))) - 1)]
    ranked, count = sorted(prompts), min(batches, len(prompts))
    padded = mean([ranked[math.ceil((place + 1) * len(ranked) / count) - 1] for place in range(count)])
    return Sampled(mean(prompts), padded, max(prompts), mean(news), float(most))


def _fits(row: Lengths, limits: Limits) -> bool:
    """Tells whether a row's prompt is sampled from."""
    most = limits.max_prompt_length or limits.max_length - 1
    return limits.long_prompts != "drop" or row.prompt <= most


def _prompt(row: Lengths, limits: Limits) -> int:
    """Returns the tokens of a prompt in sampling: whole under SELM's truncation, else within its limit."""
    cut = limits.max_prompt_length if limits.truncation == "always" else None
    return min(row.prompt, cut or limits.max_length - 1)


def comparisons(rank: RankSettings, candidates: int) -> int:
    """Returns how often a ranker reads a prompt with its candidates: each once, or PairRM each pair in both orders."""
    if rank.ranker != "pairrm":
        return candidates
    return 4 * max(1, candidates - 1) if rank.tournament else candidates * (candidates - 1)


def judged_length(amounts: Amounts, rank: RankSettings) -> tuple[float, float]:
    """Returns the mean and the longest tokens of what a ranker reads at once."""
    key = ("judged", rank.ranker, rank.max_length, rank.source_max_length, rank.candidate_max_length)
    return amounts.once(key, lambda: _judged_length(amounts, rank))


def _judged_length(amounts: Amounts, rank: RankSettings) -> tuple[float, float]:
    """Returns the lengths of `judged_length`."""
    if rank.ranker == "pairrm":
        sizes = [
            min(each.prompt, rank.source_max_length) + 2 * min(each.chosen, rank.candidate_max_length) for each in amounts.pairs
        ]
    else:
        sizes = [min(each.prompt + each.chosen, rank.max_length) for each in amounts.pairs]
    return mean(sizes), float(max(sizes, default=1))


@lru_cache(maxsize=64)
def padded_mean(lengths: tuple[int, ...], batch: int) -> float:
    """Returns the mean length of the longest of `batch` drawn at random, by the quantiles of all."""
    ranked = sorted(lengths)
    count = len(ranked)
    return sum(value * (((i + 1) / count) ** batch - (i / count) ** batch) for i, value in enumerate(ranked))
