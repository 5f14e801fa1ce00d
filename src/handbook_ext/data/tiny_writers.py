"""The tiny world's writers, whose answers of different skill make the demonstrations and the offline preference pairs."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypedDict, TypeVar

from handbook_ext.data.tiny_world import (
    FILLER,
    HABIT_NOTE,
    HABIT_PLACE,
    HABIT_WAY,
    ITEMS,
    NUMBER_OF_REQUESTS,
    PLACE_FOR_TOPIC,
    WAY_FOR_GUEST,
    Item,
    Request,
    best_answer,
    parse_request,
    points,
    request_prompt,
    true_reward,
)

T = TypeVar("T")

WRITERS = {"novice": 0.45, "adept": 0.75, "expert": 1.0}  # worst first; cumulative shares of the SFT rows
TRIES = 20  # draws for an answer unlike those before: a novice has few ways to answer some requests
SLIP = 0.05  # probability that a writer draws an item at random from the topic instead
HABIT = 0.8  # probability that a writer keeps a bad habit in one part of an answer


@dataclass(frozen=True)
class World:
    """What can be set of the world: how the writers close, and which pairs are shown.

    best_closings: probability that the adept or the expert closes with the right way and the right place, and so how rarely
        a policy trained on them samples what pays most. longer_better: share of the pairs in which the better answer is the
        longer one, in words (0.5 makes length say nothing of quality).
    """

    best_closings: float = 0.05
    longer_better: float = 0.85


WORLD = World()


def _pick(rng: random.Random, choices: Sequence[T]) -> T:
    """Returns one of the choices, all equally likely."""
    # Only Random.random() is guaranteed to be reproducible across Python versions.
    return choices[int(rng.random() * len(choices))]


def _sample(rng: random.Random, choices: Sequence[T], count: int) -> list[T]:
    """Returns that many of the choices, in random order, without repetition."""
    return sorted(choices, key=lambda _: rng.random())[:count]


def _items_by(writer: str, request: Request, rng: random.Random) -> list[Item]:
    """Returns the items that a writer names, in the writer's order."""
    topical = [item for item in ITEMS.values() if item.topic == request.topic]
    limit = min(request.number, {"novice": 3, "adept": 4, "expert": 5}[writer])
    if writer == "novice":
        first = _pick(rng, [item for item in topical if {request.trait, request.unwanted} == set(item.traits)])
        others = [item for item in topical if request.trait in item.traits and item != first]
        items = [first, *_sample(rng, others, limit - 1)]
    elif writer == "adept" and request.omitted != "none" and rng.random() < HABIT:
        items = [ITEMS[request.omitted], *_sample(rng, request.fitting, limit - 1)]
    else:
        items = _sample(rng, request.fitting, limit)
    items = [_pick(rng, topical) if rng.random() < SLIP else item for item in items]
    rising = request.order != "falling" or writer == "novice" or (writer == "adept" and rng.random() < HABIT)
    return sorted(items, key=lambda item: item.rank, reverse=not rising)


def write_answer(prompt: str, writer: str, rng: random.Random, world: World = WORLD) -> str:
    """Returns what ``writer`` answers to ``prompt``, a draw of 2 to 20 words; raises ValueError for an unknown prompt or writer.

    The novice takes "not" for "and" once, forgets it otherwise, and names at most three bare items. The adept names at most
    four; its habits are what should be omitted, rising order, the same empty note on all rich items, and a wrong way of
    serving. The expert's are notes on plain answers too and a wrong place, after one to seven words of filler.
    """
    request = parse_request(prompt)
    if writer not in WRITERS:
        raise ValueError(f"{writer!r} is no writer of the tiny world; writers are {', '.join(WRITERS)}")
    expert, items = writer == "expert", _items_by(writer, request, rng)
    if writer == "novice":
        return " ".join(item.word for item in items)
    words = [_pick(rng, FILLER) for _ in range(1 + int(rng.random() * 7))] if expert else ["here"]
    habit = rng.random() < HABIT
    noted = request.style == "rich" or (expert and habit)
    for item in items:
        note = _pick(rng, item.notes)
        words += [item.word] + [note if expert or not habit else HABIT_NOTE] * noted
    habit = rng.random() < 1 - world.best_closings
    way = HABIT_WAY if habit and not expert else WAY_FOR_GUEST[request.guest]
    place = HABIT_PLACE if habit and expert else PLACE_FOR_TOPIC[request.topic]
    return " ".join([*words, "served", way, place])


class SftRow(TypedDict):
    """A prompt with the answer of one writer."""

    prompt: str
    answer: str
    writer: str


class PairRow(TypedDict):
    """A preference pair; the scores are the true rewards of the texts shown: a swapped pair's chosen has the lower.

    ``answers`` are all answers with their rewards, best first, where more than two were asked for.
    """

    prompt: str
    chosen: str
    rejected: str
    score_chosen: float
    score_rejected: float
    swapped: bool
    answers: list[tuple[str, float]]


class JudgeRow(TypedDict):
    """An answer to a prompt with the points that a judge gives it, 0 to 5."""

    prompt: str
    answer: str
    points: int


class WorldData(NamedTuple):
    """The rows of one call of world_data."""

    sft: list[SftRow]
    train: list[PairRow]
    test: list[PairRow]
    judge: list[JudgeRow]


def _sft_row(prompt: str, key: str, world: World) -> SftRow:
    """Returns the answer of a writer drawn by the shares of WRITERS."""
    rng = random.Random(key)
    draw = rng.random()
    writer = next(writer for writer, share in WRITERS.items() if draw < share)
    return SftRow(prompt=prompt, answer=write_answer(prompt, writer, rng, world), writer=writer)


def _rated_answers(prompt: str, count: int, rng: random.Random, world: World) -> list[tuple[float, str]]:
    """Returns rewards and texts of ``count`` answers by writers drawn for each, best first; not all rewards are equal."""
    rated: list[tuple[float, str]] = []
    while not rated or rated[0][0] == rated[-1][0]:
        texts: list[str] = []
        for _ in range(count):
            text = write_answer(prompt, _pick(rng, [*WRITERS]), rng, world)
            for _ in range(TRIES):
                if text not in texts:
                    break
                text = write_answer(prompt, _pick(rng, [*WRITERS]), rng, world)
            texts.append(text)
        rated = sorted(((true_reward(prompt, text), text) for text in texts), key=lambda answer: -answer[0])
    return rated


def _two_answers(prompt: str, longer: bool, rng: random.Random, world: World) -> list[tuple[float, str]]:
    """Returns rewards and texts of the first two drafts whose better one is the longer or, unless ``longer``, the shorter."""
    while True:
        answers = [write_answer(prompt, _pick(rng, [*WRITERS]), rng, world) for _ in range(2)]
        (worse, low), (better, high) = sorted((true_reward(prompt, answer), answer) for answer in answers)
        more_words = _words(high) - _words(low)
        if better > worse and more_words and (more_words > 0) == longer:
            return [(better, high), (worse, low)]


def _words(answer: str) -> int:
    """Returns the length of an answer in words."""
    return len(answer.split())


def _pair_row(prompt: str, key: str, flip_rate: float, answers: int, world: World) -> PairRow:
    """Returns the best answer over the other or a worse one, then swapped with probability ``flip_rate``.

    Among more than two answers, a random worse one on the side that was drawn, longer or not, or any where none is on it.
    """
    rng = random.Random(key)
    swapped, longer = rng.random() < flip_rate, rng.random() < world.longer_better
    rated = _rated_answers(prompt, answers, rng, world) if answers > 2 else _two_answers(prompt, longer, rng, world)
    high, worse = rated[0], [answer for answer in rated if answer[0] < rated[0][0]]
    low = _pick(rng, [answer for answer in worse if (_words(high[1]) > _words(answer[1])) == longer] or worse)
    chosen, rejected = (low, high) if swapped else (high, low)
    return PairRow(prompt=prompt, chosen=chosen[1], rejected=rejected[1], score_chosen=chosen[0],
                   score_rejected=rejected[0], swapped=swapped,
                   answers=[(text, reward) for reward, text in rated if answers > 2])  # fmt: skip


def _judge_row(prompt: str, key: str, world: World) -> JudgeRow:
    """Returns an answer to judge, redrawn until it has the points drawn first, so that 0 to 5 are about equally frequent."""
    rng = random.Random(key)
    wanted = int(rng.random() * 6)
    for _ in range(TRIES):
        # The items of one text and the closing of another: no writer alone gets everything right, or nearly nothing.
        parts = [_judged_text(prompt, rng, world).partition(" served ") for _ in range(2)]
        answer = parts[0][0] + parts[1][1] + parts[1][2]
        if points(prompt, answer) == wanted:
            break
    return JudgeRow(prompt=prompt, answer=answer, points=points(prompt, answer))


def _judged_text(prompt: str, rng: random.Random, world: World) -> str:
    """Returns what a writer answers, to this request or to another one, or the best answer."""
    draw = rng.random()
    if draw < 0.25:
        return best_answer(prompt)
    other = request_prompt(int(rng.random() * NUMBER_OF_REQUESTS))
    return write_answer(prompt if draw < 0.75 else other, _pick(rng, [*WRITERS]), rng, world)


def world_data(
    *, seed: int, sft: int, train: int, test: int, flip_rate: float, answers: int = 2, judge: int = 0, world: World = WORLD
) -> WorldData:
    """Returns ``sft`` answers by the writers, ``train`` preference pairs with flipped labels, ``test`` pairs without flips.

    Each train pair is made of that many ``answers``, each test pair of two. ``judge`` is the number of answers with points,
    to requests that follow those of ``sft``.

    Each train pair is flipped on its own with probability ``flip_rate``; one flipped at a low rate is also flipped at every
    higher one. Prompts are distinct while NUMBER_OF_REQUESTS lasts; beyond it sft and train repeat and share prompts, but
    a test prompt never occurs elsewhere. Row i does not depend on how many rows of its list follow.
    Raises: ValueError if a size is negative, the test rows leave no request, ``answers`` < 2 or ``flip_rate`` is outside 0 to 1.
    """
    if min(sft, train, test, judge, answers - 2) < 0 or test >= NUMBER_OF_REQUESTS or not 0 <= flip_rate <= 1:
        wanted = f"sizes must be >= 0, test < {NUMBER_OF_REQUESTS}, answers >= 2, and flip_rate from 0 to 1"
        raise ValueError(f"{sft=}, {train=}, {test=}, {judge=}, {answers=}, {flip_rate=}: {wanted}")
    shuffled = _sample(random.Random(f"{seed}/requests"), range(NUMBER_OF_REQUESTS), NUMBER_OF_REQUESTS)
    rest = [request_prompt(index) for index in shuffled[test:]]

    def pairs(name: str, prompts: Sequence[str], flip_rate: float, answers: int) -> list[PairRow]:
        return [_pair_row(prompt, f"{seed}/{name}/{i}", flip_rate, answers, world) for i, prompt in enumerate(prompts)]

    return WorldData(
        sft=[_sft_row(rest[-1 - i % len(rest)], f"{seed}/sft/{i}", world) for i in range(sft)],
        train=pairs("train", [rest[i % len(rest)] for i in range(train)], flip_rate, answers),
        test=pairs("test", [request_prompt(index) for index in shuffled[:test]], 0.0, 2),
        judge=[_judge_row(rest[-1 - (sft + i) % len(rest)], f"{seed}/judge/{i}", world) for i in range(judge)],
    )
