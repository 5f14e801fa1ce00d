"""Held-out completions: their seeds and order, whose rewards stand where, and which of them have implicit rewards."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from handbook_ext.core.records import LABELLER, Messages, OfflinePair, assistant, derived_seed, user
from handbook_ext.evaluation.decoding import HeldOutJudge, held_out_completions, judged_decoding, sample_held_out
from handbook_ext.judging.ranker import Pointwise, Verdict
from handbook_ext.policies.launch import Launch
from handbook_ext.sampling.generation import Job

ALONE = Launch(0, 1, torch.device("cpu"))
ROWS = [OfflinePair.of(f"p{n}", user(f"question {n}"), assistant("right" * n), assistant("wrong!")) for n in range(1, 5)]
PROMPTS = [(row, [1] * (9 - n)) for n, row in enumerate(ROWS)]


class Length(Pointwise):
    """A text's length as its reward, times a factor."""

    def __init__(self, factor: float) -> None:
        self.factor = factor

    def score(self, items: Sequence[tuple[Messages, str]]) -> list[Verdict]:
        return [Verdict(self.factor * len(text)) for _, text in items]


class Answers:
    """A sampler that counts what it is asked, and answers with the seed."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def __call__(self, jobs: list[Job]) -> list[dict[str, Any]]:
        self.asked += [job.prompt_id for job in jobs]
        return [
            {
                "prompt_id": job.prompt_id, "seed": job.seed, "text": "x" * len(job.prompt_ids), "completion_tokens": 3,
                "finish_reason": "stop", "completion_id": f"c-{job.prompt_id}",
            }
            for job in jobs
        ]  # fmt: skip


def sampled(folder: Path, temperature: float, answers: Answers, seed: int = 5) -> list[dict[str, Any]]:
    """The rows of a temperature, in shards of three that begin with the last prompt."""
    return sample_held_out(
        PROMPTS, answers, folder, ALONE, temperature=temperature, seed=seed, cut=lambda jobs: [jobs[:0:-1], jobs[:1]]
    )


def test_samples_are_in_the_order_of_the_prompts_with_seeds_of_run_temperature_and_prompt(tmp_path: Path) -> None:
    rows = sampled(tmp_path, 0.7, Answers())
    assert [row["prompt_id"] for row in rows] == ["p1", "p2", "p3", "p4"]
    assert [row["seed"] for row in rows] == [derived_seed(5, "evaluate", 0.7, name) for name in ("p1", "p2", "p3", "p4")]
    seeds = [row["seed"] for row in rows + sampled(tmp_path / "b", 1.0, Answers()) + sampled(tmp_path / "c", 0.7, Answers(), 6)]
    assert len(set(seeds)) == 12


def test_each_temperature_has_shards_of_its_own_and_keeps_them(tmp_path: Path) -> None:
    answers = Answers()
    first, second = (sampled(tmp_path, temperature, answers) for temperature in (0.7, 1.0))
    assert first != second and len(answers.asked) == 8
    assert sampled(tmp_path, 0.7, answers) == first and len(answers.asked) == 8


def test_the_judge_of_record_and_the_labeller_keep_their_rewards_apart(tmp_path: Path) -> None:
    """Both have one folder, in which shares are kept: under one name the second would read the first one's rewards."""
    judge, labeller = (HeldOutJudge(Length(factor), ALONE, tmp_path) for factor in (1.0, -2.0))
    answers = sampled(tmp_path, 0.7, Answers())
    found = judged_decoding(PROMPTS, answers, judge, 0.7, labeller)
    assert [row["reward"] for row in found["rows"]] == [9.0, 8.0, 7.0, 6.0]
    assert [row[LABELLER] for row in found["rows"]] == [-18.0, -16.0, -14.0, -12.0]
    assert (found["mean_reward"], found[f"mean_{LABELLER}"], found["mean_tokens"]) == (7.5, -15.0, 3.0)
    greedy = judged_decoding(PROMPTS, [answer | {"text": "y"} for answer in answers], judge, 0.0, labeller)
    assert [row["reward"] for row in greedy["rows"]] == [1.0] * 4 and LABELLER in greedy["rows"][0]


def test_implicit_rewards_are_of_the_offline_answers_and_of_the_samples_of_the_highest_temperature(tmp_path: Path) -> None:
    """Greedy answers would estimate no KL; each completion has the reward of its own text."""
    judge = HeldOutJudge(Length(1.0), ALONE, tmp_path)
    answers = sampled(tmp_path, 0.7, Answers())
    cold, hot = (
        judged_decoding(PROMPTS, [row | {"text": text, "completion_id": text + row["prompt_id"]} for row in answers], judge, heat)
        for text, heat in (("cold", 0.0), ("quite hot", 1.0))
    )
    found = held_out_completions(ROWS, {"greedy": cold, "sampled": hot}, judge)
    assert [(each.side, each.reward) for each in found[:8]] == [
        pair for n in range(1, 5) for pair in (("chosen", 5.0 * n), ("rejected", 6.0))
    ]
    assert [each.answer.completion_id for each in found[:2]] == [ROWS[0].chosen_id, ROWS[0].rejected_id]
    assert [(each.side, each.reward, each.answer.completion_id) for each in found[8:]] == [
        ("sample", 9.0, f"quite hotp{n}") for n in range(1, 5)
    ]
    assert [each.prompt_id for each in found[8:]] == [row.prompt_id for row in ROWS]
