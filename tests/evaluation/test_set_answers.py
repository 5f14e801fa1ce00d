"""Answers to a prompt set in turns: what is asked of the policy, at which temperature, with which seed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from handbook_ext.core.records import Completion, Messages, assistant, user
from handbook_ext.core.set_records import SetPrompt
from handbook_ext.evaluation.set_answers import answered
from handbook_ext.policies.launch import Launch
from handbook_ext.recipes.settings_benchmarks import DecodingSettings
from handbook_ext.sampling.generation import Job

PROMPTS = [
    SetPrompt(prompt_id="a", prompt=user("one"), follow_ups=["two"], category="math"),
    SetPrompt(prompt_id="b", prompt=user("three"), category="writing"),
    SetPrompt(prompt_id="c", prompt=user("four"), follow_ups=["five"], category="other"),
]


class Policy:
    """Answers with the question it was asked last, and keeps each request with its temperature."""

    def __init__(self) -> None:
        self.asked: list[tuple[Job, float]] = []

    def prompts(self, rows: Sequence[tuple[Messages, str]]) -> list[list[int]]:
        return [[1] for _ in rows]

    def answer(self, jobs: Sequence[Job], *, temperature: float, top_p: float, max_new_tokens: int) -> list[Completion]:
        self.asked += [(job, temperature) for job in jobs]
        about = {"finish_reason": "stop", "prompt_tokens": 1, "completion_tokens": 2}
        return [
            Completion.of(
                job.prompt_id, job.prompt, f"re: {job.prompt[-1]['content']}", sample=job.sample, seed=job.seed, **about
            )
            for job in jobs
        ]


def run(folder: Path, name: str = "bench", seed: int = 1) -> tuple[Policy, Any]:
    policy, decoding = Policy(), DecodingSettings(temperature=0.3, temperatures={"math": 0.0, "writing": 0.7})
    launch = Launch(0, 1, torch.device("cpu"))
    found = answered(
        PROMPTS, policy, policy, decoding, launch, folder, seed=seed, name=name, cut=lambda jobs: [[job] for job in jobs]
    )  # type: ignore[arg-type]
    return policy, found


def test_a_turn_is_asked_after_the_policys_own_answers_at_the_temperature_of_its_category(tmp_path: Path) -> None:
    policy, found = run(tmp_path)
    assert [(row.prompt_id, [turn.text for turn in row.answers]) for row in found] == [
        ("a", ["re: one", "re: two"]), ("b", ["re: three"]), ("c", ["re: four", "re: five"])
    ]  # fmt: skip
    asked = {(job.prompt_id, job.sample): (job.prompt, temperature) for job, temperature in policy.asked}
    assert {key: temperature for key, (_, temperature) in asked.items()} == {
        ("a", 0): 0.0, ("b", 0): 0.7, ("c", 0): 0.3, ("a", 1): 0.0, ("c", 1): 0.3
    }  # fmt: skip
    assert asked["c", 1][0] == [*user("four"), *assistant("re: four"), *user("five")]


def test_the_seed_of_an_answer_is_that_of_its_run_set_prompt_and_turn_alone(tmp_path: Path) -> None:
    seeds = [
        {(job.prompt_id, job.sample): job.seed for job, _ in run(tmp_path / str(place), *about)[0].asked}
        for place, about in enumerate([("bench", 1), ("bench", 1), ("other", 1), ("bench", 2)])
    ]
    assert seeds[0] == seeds[1]
    distinct = [value for of_run in (seeds[0], seeds[2], seeds[3]) for value in of_run.values()]
    assert len(set(distinct)) == 15
