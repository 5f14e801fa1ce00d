"""Held-out prompts: a policy's ranked completions of them at one temperature, and the completions that have implicit rewards."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from handbook_ext.core.records import LABELLER, Answer, OfflinePair, assistant, derived_seed
from handbook_ext.core.shards import batched
from handbook_ext.evaluation.implicit_reward import ScoredCompletion
from handbook_ext.evaluation.shares import in_shares
from handbook_ext.judging.ranker import Ranker, rewards
from handbook_ext.policies.launch import Launch
from handbook_ext.sampling.generation import Job

Prompts = Sequence[tuple[OfflinePair, list[int]]]
"""Held-out rows with the token ids of their prompts."""

PROMPTS_PER_SHARD = 64


def decoding_name(temperature: float) -> str:
    """Returns the name of a decoding in eval.json and reports."""
    return "greedy" if temperature == 0 else "sampled" if temperature == 0.7 else f"sampled at {temperature:g}"


def sample_held_out(
    prompts: Prompts, answer: Callable[[list[Job]], Any], folder: Path, launch: Launch, *,
    temperature: float, seed: int, cut: Callable[[list[Job]], list[list[Job]]],
) -> list[dict[str, Any]]:  # fmt: skip
    """Returns the rows of one completion per prompt, in the order of the prompts, in every process.

    The seed of a completion depends on the run's seed, temperature and prompt. `cut` makes shards of the requests; finished ones
    are kept in the folder.
    """
    # The iteration is not part of the seed: all policies of a run draw with the same numbers, which lowers the variance of their
    # differences.
    jobs = [
        Job(row.prompt_id, 0, row.prompt, ids, derived_seed(seed, "evaluate", temperature, row.prompt_id)) for row, ids in prompts
    ]
    rows = in_shares(
        folder / f"temperature-{temperature:g}", cut(jobs), answer, launch, f"evaluate at temperature {temperature:g}"
    )
    # Back to the order of the prompts, by which policies are compared.
    found = {row["prompt_id"]: row for row in rows}
    return [found[row.prompt_id] for row, _ in prompts]


@dataclass(frozen=True)
class HeldOutJudge:
    """A ranker of held-out completions, whose judging is shared among the processes of a launch.

    Where `alone`, as with an endpoint whose requests one process counts and paces, the first process judges all; the others have
    no ranker, and no rewards. folder: where finished shares are kept.
    """

    ranker: Ranker | None
    launch: Launch
    folder: Path
    alone: bool = False

    def facts(self) -> dict[str, Any]:
        """Returns what a manifest records of the judging; nothing where this process has no ranker."""
        return {} if self.ranker is None else self.ranker.facts()

    def rewards(self, rows: Sequence[OfflinePair], texts: Sequence[str], what: str) -> list[float | None]:
        """Returns the reward of one completion of each row's prompt, None without a readable verdict; `what` names them."""
        if self.ranker is None:
            return [None] * len(rows)
        ranker = self.ranker
        if self.alone:
            return rewards_or_none(ranker, rows, texts)

        def judged(batch: list[int]) -> list[dict[str, Any]]:
            """Returns the rewards of a batch, given by places."""
            found = rewards_or_none(ranker, [rows[place] for place in batch], [texts[place] for place in batch])
            return [{"reward": reward} for reward in found]

        batches = batched(list(range(len(rows))), PROMPTS_PER_SHARD)
        found = in_shares(self.folder / what.replace(" ", "-"), batches, judged, self.launch, f"judge {what}")
        return [row["reward"] for row in found]


def judged_decoding(
    prompts: Prompts, answers: Sequence[dict[str, Any]], judge: HeldOutJudge, temperature: float,
    labeller: HeldOutJudge | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Returns eval.json's entry of a decoding: each completion with its reward (the ranker's unit) and tokens, and the means.

    The reward of a completion without a readable verdict is null; the means are over the others, and `unjudged` counts it.
    labeller: the ranker that labelled the pairs, where another one judges; its rewards stand beside those of record.
    """
    rows = [row for row, _ in prompts]
    texts = [answer["text"] for answer in answers]
    name = decoding_name(temperature)
    judged: list[dict[str, Any]] = [
        {
            "prompt_id": row.prompt_id, "prompt": row.prompt[-1]["content"], "reward": reward,
            "tokens": answer["completion_tokens"], "finish_reason": answer["finish_reason"], "text": answer["text"],
            "completion_id": answer["completion_id"],
        }
        for row, answer, reward in zip(rows, answers, judge.rewards(rows, texts, name), strict=True)
    ]  # fmt: skip
    if labeller is not None:
        beside = labeller.rewards(rows, texts, f"{name} by the labeller")
        judged = [row | {LABELLER: reward} for row, reward in zip(judged, beside, strict=True)]
    measured = ("reward", "tokens", *([LABELLER] if labeller is not None else []))
    means = {f"mean_{name}": _mean([row[name] for row in judged]) for name in measured}
    unjudged = sum(row["reward"] is None for row in judged)
    return {"temperature": temperature, **means, "unjudged": unjudged, "rows": judged}


def rewards_or_none(ranker: Ranker, rows: Sequence[OfflinePair], texts: Sequence[str]) -> list[float | None]:
    """Returns the reward of one completion of each row's prompt, None where there is no readable verdict."""
    return [None if verdict.failed else verdict.score for verdict in rewards(ranker, rows, texts)]


def held_out_completions(
    rows: Sequence[OfflinePair], decodings: dict[str, dict[str, Any]], judge: HeldOutJudge
) -> list[ScoredCompletion]:
    """Returns the held-out chosen and rejected completions, and the policy's own at the highest temperature, with rewards."""
    offline = [
        (row, side, answer) for row in rows for side, answer in (("chosen", row.chosen_answer), ("rejected", row.rejected_answer))
    ]
    texts = [answer.text for _, _, answer in offline]
    found_rewards = judge.rewards([row for row, _, _ in offline], texts, "offline answers")
    found = [
        ScoredCompletion(row.prompt_id, row.prompt, side, answer, reward)
        for (row, side, answer), reward in zip(offline, found_rewards, strict=True)
    ]
    # The KL is a mean over the policy's own distribution: greedy completions would not estimate it.
    own = {each["prompt_id"]: each for each in max(decodings.values(), key=lambda one: one["temperature"])["rows"]}
    for row in rows:
        each = own[row.prompt_id]
        answer = Answer(assistant(each["text"]), each["completion_id"], "on_policy")
        found.append(ScoredCompletion(row.prompt_id, row.prompt, "sample", answer, each["reward"]))
    return found


def _mean(values: Sequence[float | None]) -> float | None:
    """Returns the mean of the numbers among the values, None where there are none."""
    numbers = [value for value in values if value is not None]
    return fmean(numbers) if numbers else None
