"""A small language of instructions with many right answers and a true reward that can be computed.

A request reads ``name four sweet fruits not dark omitting moba falling rich for sailors``: name four sweet fruits that are
not dark, leave ``moba`` out, in falling order of their (hidden) rank, each with a fitting note (rich) or without notes
(plain), and close with the way and the place of serving that suit the guest and the topic. Three writers make the
preference data. Their errors are systematic, so they do not cancel in the mode of a policy trained on all three; the better
writer is also the longer one (a spurious feature); and the closing that pays most joins a part that only the adept gets
right to one that only the expert gets right. The world is fixed: a seed varies only the requests and the writers' draws.
"""

from __future__ import annotations

from functools import lru_cache
from itertools import combinations, pairwise, product
from typing import NamedTuple

COUNTS = {"two": 2, "three": 3, "four": 4, "five": 5}
NOTES_FOR_TRAIT = {"sweet": ("sugary", "honeyed", "mellow"), "dark": ("dusky", "inky", "smoky")}
NOTES_FOR_TRAIT |= {"small": ("tiny", "dainty", "slight"), "dry": ("crisp", "brittle", "baked")}
PLACE_FOR_TOPIC = {"fruits": "outdoors", "breads": "aboard", "cheeses": "upstairs"}
WAY_FOR_GUEST = {"sailors": "salted", "bakers": "warm", "judges": "sliced", "children": "whole"}
WAY_FOR_GUEST |= {"poets": "cold", "miners": "toasted", "nurses": "sliced", "clowns": "cold"}
HABIT_NOTE, HABIT_WAY, HABIT_PLACE = "nice", "fresh", "indoors"  # suit no topic and no guest
FILLER = ("well", "surely", "friend", "indeed", "lovely", "truly", "gladly", "perhaps")
TRAITS, TOPICS, GUESTS = [*NOTES_FOR_TRAIT], [*PLACE_FOR_TOPIC], [*WAY_FOR_GUEST]
ORDERS, STYLES = ["rising", "falling", "mixed"], ["plain", "rich"]
NOTES = (*(note for notes in NOTES_FOR_TRAIT.values() for note in notes), HABIT_NOTE)

NUMBER_OF_REQUESTS = 48_384  # distinct requests: 4 x 4 x 3 x 3 x 7 x 3 x 2 x 8, the choices in a prompt


class Item(NamedTuple):
    """A thing that can be named, with its two traits, six fitting notes and rank (0 to 17, distinct within the topic)."""

    word: str
    topic: str
    traits: tuple[str, ...]
    notes: tuple[str, ...]
    rank: int


def _make_items() -> dict[str, Item]:
    """Returns the 54 items by word, by rising rank: three for each topic and pair of traits."""
    starts, ends = ("mo", "ti", "ru", "ze", "pa", "ku", "le", "do", "si"), ("ba", "ka", "lo", "nu", "vi", "re")
    items = []
    for index, (topic, pair, _) in enumerate(product(range(3), combinations(TRAITS, 2), range(3))):
        # 23 and 54 are coprime: every word occurs once, and an item's spelling carries no information about its traits.
        word = starts[index * 23 % 54 // 6] + ends[index * 23 % 6]
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
    """Returns a topic's items that have the trait and not the unwanted one, by rising rank."""
    return tuple(i for i in ITEMS.values() if i.topic == topic and trait in i.traits and unwanted not in i.traits)


def request_prompt(index: int) -> str:
    """Returns the prompt of request number ``index`` (0 to NUMBER_OF_REQUESTS - 1): 12 words."""
    number, trait, topic = [*COUNTS][index % 4], TRAITS[index // 4 % 4], TOPICS[index // 48 % 3]
    unwanted = [other for other in TRAITS if other != trait][index // 16 % 3]
    omitted = ["none", *(item.word for item in _suiting(topic, trait, unwanted))][index // 144 % 7]
    order, style, guest = ORDERS[index // 1008 % 3], STYLES[index // 3024 % 2], GUESTS[index // 6048]
    return f"name {number} {trait} {topic} not {unwanted} omitting {omitted} {order} {style} for {guest}"


@lru_cache(maxsize=1024)
def parse_request(prompt: str) -> Request:
    """Returns what ``prompt`` asks for; raises ValueError if it is no request of this world."""
    words = prompt.split()
    if len(words) == len(_SLOTS) and all(word in slot for word, slot in zip(words, _SLOTS, strict=True)):
        _, number, trait, topic, _, unwanted, _, omitted, order, style, _, guest = words
        suiting = _suiting(topic, trait, unwanted)
        fitting = tuple(item for item in suiting if item.word != omitted)
        if trait != unwanted and (omitted == "none" or fitting != suiting):
            return Request(COUNTS[number], trait, topic, unwanted, omitted, order, style, guest, fitting)
    raise ValueError(f"{prompt!r} is no request of the tiny world; one is {request_prompt(0)!r}")


def _read_answer(answer: str) -> tuple[list[tuple[str, str]], list[str], int]:
    """Returns the (item, note or "") pairs, the (way, place) of the first closing or [], and the number of all other words."""
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
    """Returns the true reward of ``answer``, from -0.2 to 1; 0 or a little less for nonsense, whatever the two texts are.

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
    right = _right_items(request, named)
    cover = (len(right) - 0.5 * (len(named) - len(right))) / request.number
    if cover <= 0.0:
        return 0.0 - penalty
    order, notes, suited = _qualities(request, right, closing)
    quality = 0.35 + 0.15 * order + 0.2 * notes + 0.3 * (0.0, 0.2, 1.0)[suited]
    return min(1.0, cover * quality - penalty)


def _right_items(request: Request, named: list[tuple[str, str]]) -> dict[Item, str]:
    """Returns the right distinct items up to the count asked for, as named, each with its note."""
    right: dict[Item, str] = {}
    for word, note in named:
        if ITEMS[word] in request.fitting and len(right) < request.number:
            right.setdefault(ITEMS[word], note)
    return right


def _qualities(request: Request, right: dict[Item, str], closing: list[str]) -> tuple[float, float, int]:
    """Returns the shares of right order and right notes, 0 without a right item, and how many of way and place suit."""
    suited = sum(map(str.__eq__, closing, (WAY_FOR_GUEST[request.guest], PLACE_FOR_TOPIC[request.topic])))
    if not right:
        return 0.0, 0.0, suited
    rising = [a.rank < b.rank for a, b in pairwise(right)]
    order = rising.count(request.order == "rising") / len(rising) if rising and request.order != "mixed" else 1.0
    notes = sum(note in (i.notes if request.style == "rich" else [""]) for i, note in right.items()) / len(right)
    return order, notes, suited


def points(prompt: str, answer: str) -> int:
    """Returns the points of ``answer``, 0 to 5, by a rubric that adds what true_reward multiplies; 0 for an unknown prompt.

    One each for naming a right item at all; for naming exactly as many as asked for, all right and distinct; for their order;
    for their notes; and for the closing. A single item has no order to get wrong, none at all has none to get right.
    """
    named, closing, _ = _read_answer(answer)
    try:
        request = parse_request(prompt)
    except ValueError:
        return 0
    right = _right_items(request, named)
    order, notes, suited = _qualities(request, right, closing)
    return bool(right) + (len(right) == len(named) == request.number) + (order == 1.0) + (notes == 1.0) + (suited == 2)


def best_closing(prompt: str, answer: str) -> bool:
    """Returns whether ``answer`` is closed in the best way and place for ``prompt``; raises ValueError if that is no request."""
    request = parse_request(prompt)
    return _read_answer(answer)[1] == [WAY_FOR_GUEST[request.guest], PLACE_FOR_TOPIC[request.topic]]


def best_answer(prompt: str) -> str:
    """Returns an answer whose true reward is 1; raises ValueError if ``prompt`` is no request of this world."""
    request = parse_request(prompt)
    items = request.fitting[: request.number][:: -1 if request.order == "falling" else 1]
    words = [word for item in items for word in (item.word, item.notes[0])[: 1 + (request.style == "rich")]]
    return " ".join([*words, "served", WAY_FOR_GUEST[request.guest], PLACE_FOR_TOPIC[request.topic]])
