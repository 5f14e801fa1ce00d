"""Requests for samples: one per prompt and sample, whose seed depends on run, iteration, prompt and sample alone."""

from __future__ import annotations

import pytest
from transformers import PreTrainedTokenizerFast

from handbook_ext.core.records import OfflinePair, assistant, user
from handbook_ext.policies.chat import ChatEncoder
from handbook_ext.sampling.generation import jobs_of

ROWS = [OfflinePair.of(name, user(prompt), assistant("x"), assistant("y")) for name, prompt in (("p", "a lamp"), ("q", "a"))]


@pytest.fixture
def encoder(tokenizer: PreTrainedTokenizerFast) -> ChatEncoder:
    return ChatEncoder(tokenizer, max_length=60, max_prompt_length=30, long_prompts="drop")


def seeds(
    encoder: ChatEncoder, rows: list[OfflinePair] = ROWS, *, seed: int = 1, iteration: str = "iter1"
) -> dict[tuple[str, int], int]:
    jobs, _ = jobs_of(rows, encoder, samples=2, seed=seed, iteration=iteration)
    return {(job.prompt_id, job.sample): job.seed for job in jobs}


def test_every_prompt_is_asked_for_each_sample_the_shorter_prompt_first(encoder: ChatEncoder) -> None:
    jobs, dropped = jobs_of(ROWS, encoder, samples=3, seed=1, iteration="iter1")
    assert [(job.prompt_id, job.sample) for job in jobs] == [(name, sample) for name in "qp" for sample in range(3)]
    assert [job.prompt_ids for job in jobs[::3]] == [encoder.prompt_ids(row.prompt, "") for row in ROWS[::-1]]
    assert [job.prompt for job in jobs[::3]] == [user("a"), user("a lamp")]
    assert dropped == 0


def test_the_seeds_of_two_iterations_two_runs_and_two_samples_differ(encoder: ChatEncoder) -> None:
    """Were they equal, an iteration would sample again with the random numbers of the one before."""
    drawn = [seeds(encoder), seeds(encoder, iteration="iter2"), seeds(encoder, seed=2)]
    assert len({value for each in drawn for value in each.values()}) == 3 * 4


def test_a_seed_does_not_depend_on_the_other_prompts(encoder: ChatEncoder) -> None:
    assert seeds(encoder, ROWS[::-1]) == seeds(encoder)
    assert seeds(encoder, ROWS[1:]).items() <= seeds(encoder).items()


def test_prompts_that_are_too_long_are_counted_and_not_asked(encoder: ChatEncoder) -> None:
    long = OfflinePair.of("long", user("a winter by the lake " * 9), assistant("x"), assistant("y"))
    jobs, dropped = jobs_of([long, *ROWS], encoder, samples=1, seed=1, iteration="iter1")
    assert ([job.prompt_id for job in jobs], dropped) == (["q", "p"], 1)
