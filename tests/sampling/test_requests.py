"""Requests for samples: one per prompt and sample, whose seed depends on run, iteration, prompt and sample alone."""

from __future__ import annotations

import pytest
from transformers import PreTrainedTokenizerFast

from handbook_ext.core.records import OfflinePair, assistant, user
from handbook_ext.policies.chat import ChatEncoder
from handbook_ext.sampling.generation import Job, jobs_of, request_batches

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


def test_batches_are_of_like_length_the_longest_first_and_within_the_positions_of_the_cache() -> None:
    jobs = [Job(f"p{length}", 0, [], [1] * length, 0) for length in (3, 50, 1, 20, 2, 10)]

    def lengths(**limits: int) -> list[list[int]]:
        return [[len(job.prompt_ids) for job in batch] for batch in request_batches(jobs, max_new_tokens=10, **limits)]

    assert lengths(size=4) == [[20, 50], [1, 2, 3, 10]]
    # 3 x (3 + 10) = 39 positions; a fourth request would make it 4 x 20. The last alone takes more than there are.
    assert lengths(size=4, tokens=50) == [[50], [20], [10], [1, 2, 3]]
    assert lengths(size=2, tokens=50) == [[50], [20], [3, 10], [1, 2]]
    assert lengths(size=9, tokens=60) == [[50], [10, 20], [1, 2, 3]]
    assert request_batches([], size=4, max_new_tokens=10) == []
