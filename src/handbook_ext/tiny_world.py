"""A small language of instructions with many right answers and a true reward that can be computed.

A request reads ``name four sweet fruits not dark omitting moba falling rich for sailors``: name four sweet fruits that are
not dark, leave ``moba`` out, in falling order of their (hidden) rank, each with a fitting note (rich) or without notes
(plain), and close with the way and the place of serving that suit the guest and the topic. Three writers make the
preference data. Their errors are systematic, so they do not cancel in the mode of a policy trained on all three; the better
writer is also the longer one (a spurious feature); and the closing that pays most joins a part that only the adept gets
right to one that only the expert gets right. The world is fixed: a seed varies only the requests and the writers' draws.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import lru_cache
from itertools import combinations, pairwise, product
from typing import NamedTuple, TypedDict, TypeVar

T = TypeVar("T")

COUNTS = {"two": 2, "three": 3, "four": 4, "five": 5}
NOTES_FOR_TRAIT = {"sweet": ("sugary", "honeyed", "mellow"), "dark": ("dusky", "inky", "smoky")}
NOTES_FOR_TRAIT |= {"small": ("tiny", "dainty", "slight"), "dry": ("crisp", "brittle", "baked")}
PLACE_FOR_TOPIC = {"fruits": "outdoors", "breads": "aboard", "cheeses": "upstairs"}
WAY_FOR_GUEST = {"sailors": "salted", "bakers": "warm", "judges": "sliced", "children": "whole"}
WAY_FOR_GUEST |= {"poets": "cold", "miners": "toasted", "nurses": "sliced", "clowns": "cold"}
HABIT_NOTE, HABIT_WAY, HABIT_PLACE = "nice", "fresh", "indoors"  # fit nothing and nobody
FILLER = ("well", "surely", "friend", "indeed", "lovely", "truly", "gladly", "perhaps")
TRAITS, TOPICS, GUESTS = [*NOTES_FOR_TRAIT], [*PLACE_FOR_TOPIC], [*WAY_FOR_GUEST]
ORDERS, STYLES = ["rising", "falling", "mixed"], ["plain", "rich"]
NOTES = (*(note for notes in NOTES_FOR_TRAIT.values() for note in notes), HABIT_NOTE)

WRITERS = {"novice": 0.45, "adept": 0.75, "expert": 1.0}  # worst first; cumulative shares of the SFT rows
SLIP = 0.05  # probability that a writer draws an item at random from the topic instead
HABIT, CLOSING_HABIT = 0.8, 0.95  # probability that a writer keeps a bad habit in one part of an answer, or in its closing
NUMBER_OF_REQUESTS = 48_384  # distinct requests: 4 x 4 x 3 x 3 x 7 x 3 x 2 x 8, the choices in a prompt


class Item(NamedTuple):
    """A thing that can be named, with its two traits, six fitting notes and rank (0 to 17, distinct within the topic)."""

    word: str
    topic: str
    traits: tuple[str, ...]
    notes: tuple[str, ...]
    rank: int


def _make_items() -> dict[str, Item]:
    starts, ends = ("mo", "ti", "ru", "ze", "pa", "ku", "le", "do", "si"), ("ba", "ka", "lo", "nu", "vi", "re")
    items = []
    for index, (topic, pair, _) in enumerate(product(range(3), combinations(TRAITS, 2), range(3))):
        word = starts[index * 23 % 54 // 6] + ends[index * 23 % 6]  # 23 is prime to 54: spelling tells nothing
        notes = NOTES_FOR_TRAIT[pair[0]] + NOTES_FOR_TRAIT[pair[1]]
        items.append(Item(word, TOPICS[topic], pair, notes, (index % 18 * 7 + topic * 5) % 18))
    return {item.word: item for item in sorted(items, key=lambda item: item.rank)}


ITEMS = _make_items()
_SLOTS = [["name"], COUNTS, TRAITS, TOPICS, ["not"], TRAITS, ["omitting"], ["none", *ITEMS], ORDERS, STYLES, ["for"], GUESTS]


class Request(NamedTuple):
    """What a prompt asks for; ``fitting`` are the 5 or 6 right items, never fewer than ``number``, by rising rank."""

    number: int
    trait: str
    topic: str
    unwanted: str
    omitted: str
    order: str
    style: str
    guest: str
    fitting: tuple[Item, ...]


@lru_cache(maxsize=1024)
def _suiting(topic: str, trait: str, unwanted: str) -> tuple[Item, ...]:
    return tuple(i for i in ITEMS.values() if i.topic == topic and trait in i.traits and unwanted not in i.traits)


def request_prompt(index: int) -> str:
    """The prompt of request number ``index`` (0 to NUMBER_OF_REQUESTS - 1): 12 words."""
    number, trait, topic = [*COUNTS][index % 4], TRAITS[index // 4 % 4], TOPICS[index // 48 % 3]
    unwanted = [other for other in TRAITS if other != trait][index // 16 % 3]
    omitted = ["none", *(item.word for item in _suiting(topic, trait, unwanted))][index // 144 % 7]
    order, style, guest = ORDERS[index // 1008 % 3], STYLES[index // 3024 % 2], GUESTS[index // 6048]
    return f"name {number} {trait} {topic} not {unwanted} omitting {omitted} {order} {style} for {guest}"


@lru_cache(maxsize=1024)
def parse_request(prompt: str) -> Request:
    """What ``prompt`` asks for. Raises: ValueError if it is no request of this world."""
    words = prompt.split()
    if len(words) == len(_SLOTS) and all(word in slot for word, slot in zip(words, _SLOTS, strict=True)):
        _, number, trait, topic, _, unwanted, _, omitted, order, style, _, guest = words
        suiting = _suiting(topic, trait, unwanted)
        fitting = tuple(item for item in suiting if item.word != omitted)
        if trait != unwanted and (omitted == "none" or fitting != suiting):
            return Request(COUNTS[number], trait, topic, unwanted, omitted, order, style, guest, fitting)
    raise ValueError(f"{prompt!r} is no request of the tiny world; one is {request_prompt(0)!r}")


def _read_answer(answer: str) -> tuple[list[tuple[str, str]], list[str], int]:
    """The (item, note or "") pairs, the (way, place) of the first closing or [], and the number of all other words."""
    words, closing = answer.split(), []
    if "served" in words[:-2]:
        start = words.index("served")
        closing = words[start + 1 : start + 3]
        del words[start : start + 3]
    named: list[tuple[str, str]] = []
    filler = 0
    for before, word in zip(["", *words], words, strict=False):
        if word in ITEMS:
            named.append((word, ""))
        elif word in NOTES and before in ITEMS:
            named[-1] = (before, word)
        else:
            filler += 1
    return named, closing, filler


def true_reward(prompt: str, answer: str) -> float:
    """The true reward of ``answer``, from -0.2 to 1; 0 or a little less for nonsense, whatever the two texts are.

    cover x (0.35 + 0.15 order + 0.2 notes + 0.3 closing) - 0.02 per filler word (at most ten), with
    cover: right distinct items up to the count asked for, less half of the other items named, over the count;
    order: share of neighbouring right items in the order asked for (1 for mixed or for a single item);
    notes: share of right items with a fitting note (rich) or none (plain);
    closing: 1 for the right way and place, 0.2 for one of the two.
    """
    named, closing, filler = _read_answer(answer)
    penalty = 0.02 * min(filler, 10)
    try:
        request = parse_request(prompt)
    except ValueError:
        return 0.0 - penalty  # -penalty would make -0.0
    right: dict[Item, str] = {}
    for word, note in named:
        if ITEMS[word] in request.fitting and len(right) < request.number:
            right.setdefault(ITEMS[word], note)
    cover = (len(right) - 0.5 * (len(named) - len(right))) / request.number
    if cover <= 0.0:
        return 0.0 - penalty
    rising = [a.rank < b.rank for a, b in pairwise(right)]
    order = rising.count(request.order == "rising") / len(rising) if rising and request.order != "mixed" else 1.0
    notes = sum(note in (i.notes if request.style == "rich" else [""]) for i, note in right.items()) / len(right)
    suited = sum(map(str.__eq__, closing, (WAY_FOR_GUEST[request.guest], PLACE_FOR_TOPIC[request.topic])))
    quality = 0.35 + 0.15 * order + 0.2 * notes + 0.3 * (0.0, 0.2, 1.0)[suited]
    return min(1.0, cover * quality - penalty)


def best_answer(prompt: str) -> str:
    """One of the answers whose true reward is 1. Raises: ValueError if ``prompt`` is no request of this world."""
    request = parse_request(prompt)
    items = request.fitting[: request.number][:: -1 if request.order == "falling" else 1]
    words = [word for item in items for word in (item.word, item.notes[0])[: 1 + (request.style == "rich")]]
    return " ".join([*words, "served", WAY_FOR_GUEST[request.guest], PLACE_FOR_TOPIC[request.topic]])


def _pick(rng: random.Random, choices: Sequence[T]) -> T:
    # Only Random.random() is promised to give the same numbers in every Python version.
    return choices[int(rng.random() * len(choices))]


def _sample(rng: random.Random, choices: Sequence[T], count: int) -> list[T]:
    return sorted(choices, key=lambda _: rng.random())[:count]


def _items_by(writer: str, request: Request, rng: random.Random) -> list[Item]:
    """The items a writer names, in the writer's order."""
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


def write_answer(prompt: str, writer: str, rng: random.Random) -> str:
    """What ``writer`` answers to ``prompt``: a draw of 2 to 20 words. Raises: ValueError for an unknown prompt or writer.

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
    habit = rng.random() < CLOSING_HABIT
    way = HABIT_WAY if habit and not expert else WAY_FOR_GUEST[request.guest]
    place = HABIT_PLACE if habit and expert else PLACE_FOR_TOPIC[request.topic]
    return " ".join([*words, "served", way, place])


class SftRow(TypedDict):
    """A prompt with the answer of one writer."""

    prompt: str
    answer: str
    writer: str


class PairRow(TypedDict):
    """A preference pair; the scores are the true rewards of the texts shown: a swapped pair's chosen has the lower."""

    prompt: str
    chosen: str
    rejected: str
    score_chosen: float
    score_rejected: float
    swapped: bool


class WorldData(NamedTuple):
    """The rows of one call of world_data."""

    sft: list[SftRow]
    train: list[PairRow]
    test: list[PairRow]


def _sft_row(prompt: str, key: str) -> SftRow:
    rng = random.Random(key)
    draw = rng.random()
    writer = next(writer for writer, share in WRITERS.items() if draw < share)
    return SftRow(prompt=prompt, answer=write_answer(prompt, writer, rng), writer=writer)


def _pair_row(prompt: str, key: str, flip_rate: float) -> PairRow:
    """Answers of two different writers, the better one chosen; then swapped with probability ``flip_rate``."""
    rng = random.Random(key)
    swapped = rng.random() < flip_rate
    low = high = (0.0, "")
    while low[0] == high[0]:
        answers = [write_answer(prompt, writer, rng) for writer in _sample(rng, [*WRITERS], 2)]
        low, high = sorted((true_reward(prompt, answer), answer) for answer in answers)
    chosen, rejected = (low, high) if swapped else (high, low)
    return PairRow(prompt=prompt, chosen=chosen[1], rejected=rejected[1], score_chosen=chosen[0],
                   score_rejected=rejected[0], swapped=swapped)  # fmt: skip


def world_data(*, seed: int, sft: int, train: int, test: int, flip_rate: float) -> WorldData:
    """``sft`` answers by the writers, ``train`` preference pairs with flipped labels, ``test`` pairs without flips.

    Each train pair is flipped on its own with probability ``flip_rate``; one flipped at a low rate is also flipped at every
    higher one. Prompts are distinct while NUMBER_OF_REQUESTS lasts; beyond it sft and train repeat and share prompts, but
    a test prompt never occurs elsewhere. Row i does not depend on how many rows of its list follow.
    Raises: ValueError if a size is negative, the test rows leave no request, or ``flip_rate`` is outside 0 to 1.
    """
    if min(sft, train, test) < 0 or test >= NUMBER_OF_REQUESTS or not 0 <= flip_rate <= 1:
        wanted = f"sizes must be >= 0, test < {NUMBER_OF_REQUESTS}, and flip_rate from 0 to 1"
        raise ValueError(f"{sft=}, {train=}, {test=}, {flip_rate=}: {wanted}")
    shuffled = _sample(random.Random(f"{seed}/requests"), range(NUMBER_OF_REQUESTS), NUMBER_OF_REQUESTS)
    rest = shuffled[test:]
    return WorldData(
        sft=[_sft_row(request_prompt(rest[-1 - i % len(rest)]), f"{seed}/sft/{i}") for i in range(sft)],
        train=[_pair_row(request_prompt(rest[i % len(rest)]), f"{seed}/train/{i}", flip_rate) for i in range(train)],
        test=[_pair_row(request_prompt(shuffled[i]), f"{seed}/test/{i}", 0.0) for i in range(test)],
    )
