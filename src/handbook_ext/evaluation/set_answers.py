"""A policy's answers to a prompt set, turn by turn: a follow-up is asked after the policy's own answer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from handbook_ext.core.records import Messages, assistant, derived_seed, user
from handbook_ext.core.set_records import SetAnswer, SetPrompt, SetTurn
from handbook_ext.evaluation.shares import in_shares
from handbook_ext.policies.chat import ChatEncoder
from handbook_ext.policies.launch import Launch
from handbook_ext.recipes.settings_benchmarks import DecodingSettings
from handbook_ext.sampling.engine import Engine
from handbook_ext.sampling.generation import Job


def answered(
    prompts: Sequence[SetPrompt], engine: Engine, encoder: ChatEncoder, decoding: DecodingSettings, launch: Launch,
    folder: Path, *, seed: int, name: str, cut: Callable[[list[Job]], list[list[Job]]],
) -> list[SetAnswer]:  # fmt: skip
    """Returns the answers of all prompts, in their order, in every process; finished shards are kept in the folder.

    The seed of a turn depends on the run's seed, the set, the prompt and the turn: policies of a run draw with the same numbers,
    which lowers the variance of their differences. `cut` makes shards of requests.
    """
    turns: dict[str, list[SetTurn]] = {each.prompt_id: [] for each in prompts}
    for turn in range(1 + max((len(each.follow_ups) for each in prompts), default=0)):
        asked = [each for each in prompts if len(each.follow_ups) >= turn]
        for temperature in sorted({_temperature(each, decoding) for each in asked}):
            alike = [each for each in asked if _temperature(each, decoding) == temperature]
            jobs = _jobs(alike, turns, encoder, turn=turn, seed=seed, name=name)
            work = partial(engine.answer, temperature=temperature, top_p=decoding.top_p, max_new_tokens=decoding.max_new_tokens)
            what = f"{name}, turn {turn + 1} at temperature {temperature:g}"
            for row in in_shares(folder / f"turn-{turn + 1}-{temperature:g}", cut(jobs), work, launch, what):
                turns[row["prompt_id"]].append(
                    SetTurn(text=row["text"], tokens=row["completion_tokens"], finish_reason=row["finish_reason"])
                )
    return [
        SetAnswer(prompt_id=each.prompt_id, answers=turns[each.prompt_id], seed=derived_seed(seed, name, each.prompt_id, 0))
        for each in prompts
    ]


def asked_so_far(prompt: SetPrompt, answers: Sequence[str], turn: int) -> Messages:
    """Returns the conversation up to the question of a turn, counted from 0."""
    messages = list(prompt.prompt)
    for answer, follow_up in zip(answers[:turn], prompt.follow_ups[:turn], strict=True):
        messages += assistant(answer) + user(follow_up)
    return messages


def _temperature(prompt: SetPrompt, decoding: DecodingSettings) -> float:
    """Returns the temperature at which a prompt is answered."""
    return decoding.temperatures.get(prompt.category, decoding.temperature)


def _jobs(
    prompts: Sequence[SetPrompt], turns: dict[str, list[SetTurn]], encoder: ChatEncoder, *, turn: int, seed: int, name: str
) -> list[Job]:
    """Returns the requests of a turn."""
    asked = [asked_so_far(each, [answer.text for answer in turns[each.prompt_id]], turn) for each in prompts]
    encoded = encoder.prompts([(messages, each.prompt_id) for each, messages in zip(prompts, asked, strict=True)])
    return [
        Job(each.prompt_id, turn, messages, ids or [], derived_seed(seed, name, each.prompt_id, turn))
        for each, messages, ids in zip(prompts, asked, encoded, strict=True)
    ]
