"""Held-out prompts: a policy's ranked completions of them at one temperature, and the completions that have implicit rewards."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from handbook_ext.core.records import LABELLER, Answer, OfflinePair, assistant, derived_seed
from handbook_ext.core.shards import batched, fill_shards, read_shards
from handbook_ext.evaluation.implicit_reward import ScoredCompletion
from handbook_ext.judging.ranker import Ranker, rewards
from handbook_ext.policies.launch import Launch
from handbook_ext.sampling.generation import Job

Prompts = Sequence[tuple[OfflinePair, list[int]]]
"""Held-out rows with the token ids of their prompts."""


def decoding_name(temperature: float) -> str:
    """Returns the name of a decoding in eval.json and reports."""
    return "greedy" if temperature == 0 else "sampled" if temperature == 0.7 else f"sampled at {temperature:g}"


def sample_held_out(
    prompts: Prompts, answer: Callable[[list[Job]], Any], folder: Path, launch: Launch, *,
    temperature: float, seed: int, shard: int,
) -> list[dict[str, Any]]:  # fmt: skip
    """Returns the rows of one completion per prompt, in the order of the prompts, on the first process; others get none.

    The seed of a completion depends on the run's seed, temperature and prompt. Finished shards, of so many requests each, are
    kept in the folder.
    """
    # The iteration is not part of the seed: all policies of a run draw with the same numbers, which lowers the variance of their
    # differences.
    jobs = [
        Job(row.prompt_id, 0, row.prompt, ids, derived_seed(seed, "evaluate", temperature, row.prompt_id)) for row, ids in prompts
    ]
    # A batch generates until its longest completion ends, and pads its prompts: prompts of like length go together.
    batches = batched(sorted(jobs, key=lambda job: len(job.prompt_ids)), shard)
    shards = folder / f"temperature-{temperature:g}"
    fill_shards(
        shards, batches, answer, rank=launch.rank, processes=launch.processes,
        progress=launch.progress(f"evaluate at temperature {temperature:g}", "batch"),
    )  # fmt: skip
    launch.wait()
    if not launch.main:
        return []
    # Back to the order of the prompts, by which policies are compared.
    found = {row["prompt_id"]: row for row in read_shards(shards, len(batches))}
    return [found[row.prompt_id] for row, _ in prompts]


def judged_decoding(
    prompts: Prompts, answers: Sequence[dict[str, Any]], ranker: Ranker, temperature: float, labeller: Ranker | None = None
) -> dict[str, Any]:
    """Returns eval.json's entry of a decoding: each completion with its reward (the ranker's unit) and tokens, and the means.

    The reward of a completion without a readable verdict is null; the means are over the others, and `unjudged` counts it.
    labeller: the ranker that labelled the pairs, where another one judges; its rewards stand beside those of record.
    """
    rows = [row for row, _ in prompts]
    texts = [answer["text"] for answer in answers]
    judged: list[dict[str, Any]] = [
        {
            "prompt_id": row.prompt_id, "prompt": row.prompt[-1]["content"], "reward": reward,
            "tokens": answer["completion_tokens"], "finish_reason": answer["finish_reason"], "text": answer["text"],
            "completion_id": answer["completion_id"],
        }
        for row, answer, reward in zip(rows, answers, rewards_or_none(ranker, rows, texts), strict=True)
    ]  # fmt: skip
    if labeller is not None:
        beside = rewards_or_none(labeller, rows, texts)
        judged = [row | {LABELLER: reward} for row, reward in zip(judged, beside, strict=True)]
    measured = ("reward", "tokens", *([LABELLER] if labeller is not None else []))
    means = {f"mean_{name}": _mean([row[name] for row in judged]) for name in measured}
    unjudged = sum(row["reward"] is None for row in judged)
    return {"temperature": temperature, **means, "unjudged": unjudged, "rows": judged}


def rewards_or_none(ranker: Ranker, rows: Sequence[OfflinePair], texts: Sequence[str]) -> list[float | None]:
    """Returns the reward of one completion of each row's prompt, None where there is no readable verdict."""
    return [None if verdict.failed else verdict.score for verdict in rewards(ranker, rows, texts)]


def held_out_completions(
    rows: Sequence[OfflinePair], decodings: dict[str, dict[str, Any]], ranker: Ranker
) -> list[ScoredCompletion]:
    """Returns the held-out chosen and rejected completions, and the policy's own at the highest temperature, with rewards."""
    offline = [
        (row, side, answer) for row in rows for side, answer in (("chosen", row.chosen_answer), ("rejected", row.rejected_answer))
    ]
    found_rewards = rewards_or_none(ranker, [row for row, _, _ in offline], [answer.text for _, _, answer in offline])
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
