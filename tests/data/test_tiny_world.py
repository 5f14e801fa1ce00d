"""The tiny world: hand-computed rewards, writers, and the promises about rows, flips and prompts."""

import random
import subprocess
import sys
from dataclasses import fields

import pytest

from handbook_ext.data import tiny_writers
from handbook_ext.data.tiny_world import (
    NUMBER_OF_REQUESTS,
    WAY_FOR_GUEST,
    best_answer,
    parse_request,
    request_prompt,
    true_reward,
)
from handbook_ext.data.tiny_writers import WRITERS, World, WorldData, world_data, write_answer
from handbook_ext.recipes.settings import DataSettings

# The fruits that fit both, with their ranks: zevi 2, runu 3, kuba 6, lelo 10, sire 13, tika 17; moba is dark.
RICH = "name three sweet fruits not dark omitting none falling rich for sailors"
PLAIN = "name two sweet fruits not dark omitting tika rising plain for poets"


@pytest.fixture(scope="module")
def world() -> WorldData:
    return world_data(seed=3, sft=2000, train=1000, test=300, flip_rate=0.2)


@pytest.mark.parametrize(
    ("prompt", "answer", "reward"),
    [
        (RICH, "tika tiny kuba crisp zevi mellow served salted outdoors", 1.0),
        (RICH, "here zevi nice kuba nice tika nice served fresh outdoors", 0.35 + 0.06 - 0.02),  # an adept
        (RICH, "tika tiny kuba crisp", 2 / 3 * 0.70),
        (RICH, "tika tiny kuba crisp moba inky", 1.5 / 3 * 0.70),  # moba is dark
        (RICH, "tika tiny tika tiny kuba crisp", 1.5 / 3 * 0.70),  # named twice
        (RICH, "kuba crisp tika tiny zevi dusky served warm aboard", 0.35 + 0.15 / 2 + 0.20 * 2 / 3),
        (RICH, "tika served salted outdoors", 1 / 3 * 0.80),
        (PLAIN, "zevi runu served cold outdoors", 1.0),
        (PLAIN, "runu tiny zevi served cold indoors", 0.35 + 0.20 / 2 + 0.06),
        (PLAIN, "zevi", 1 / 2 * 0.70),
        (PLAIN, "zevi tika", 0.5 / 2 * 0.70),  # tika is to be omitted
        (PLAIN, "zevi runu kuba", 1.5 / 2 * 0.70),  # one more than asked for
        (PLAIN, "zevi runu served cold", 0.70 - 0.04),  # no closing without a place: two words of filler
        (PLAIN, "well " * 30 + "zevi runu", 0.70 - 0.20),  # filler costs no more than ten words
        (PLAIN, "moba zevi zevi zevi", 0.0),  # one right, three wrong
    ],
)
def test_reward_computed_by_hand(prompt: str, answer: str, reward: float) -> None:
    assert true_reward(prompt, answer) == pytest.approx(reward)


@pytest.mark.parametrize("prompt", [RICH, PLAIN, "", "name", PLAIN.replace("tika", "moba"), "\x00 é" * 9])
@pytest.mark.parametrize("answer", ["", " ", "served warm", "what is this", "no " * 500, "\ufffd\n\u3042 \x00"])
def test_nonsense_is_worth_about_nothing(prompt: str, answer: str) -> None:
    assert -0.2 <= true_reward(prompt, answer) <= 0.0


def test_any_shuffle_of_words_has_a_reward_of_at_most_one(world: WorldData) -> None:
    rng = random.Random(0)
    words = sorted({word for row in world.sft for word in f"{row['prompt']} {row['answer']}".split()})
    for row in world.test:
        assert -0.2 <= true_reward(row["prompt"], " ".join(rng.choices(words, k=12))) <= 1.0


def test_every_request_has_an_answer_of_reward_one() -> None:
    prompts = [request_prompt(index) for index in range(0, NUMBER_OF_REQUESTS, 11)]
    assert [true_reward(prompt, best_answer(prompt)) for prompt in prompts] == pytest.approx([1.0] * len(prompts))
    assert all(len(prompt.split()) == 12 for prompt in prompts)


def test_requests_are_distinct_and_many() -> None:
    assert len({request_prompt(index) for index in range(NUMBER_OF_REQUESTS)}) == NUMBER_OF_REQUESTS >= 20_000


def test_better_writers_earn_more_and_write_more(world: WorldData) -> None:
    means = []
    for writer in WRITERS:
        rows = [row for row in world.sft if row["writer"] == writer]
        reward = sum(true_reward(row["prompt"], row["answer"]) for row in rows) / len(rows)
        means.append((reward, sum(len(row["answer"].split()) for row in rows) / len(rows)))
    rewards, lengths = zip(*means, strict=True)
    assert rewards[0] + 0.1 < rewards[1] < rewards[2] - 0.1
    assert lengths[0] + 2 < lengths[1] < lengths[2] - 2
    assert rewards[2] < 0.7


def test_the_closing_that_pays_most_is_rare_but_its_parts_are_not(world: WorldData) -> None:
    ways, places, both = 0, 0, 0
    for row in world.sft:
        request = parse_request(row["prompt"])
        assert request is not None
        best = best_answer(row["prompt"]).split()
        way = f"served {WAY_FOR_GUEST[request.guest]} " in row["answer"]
        place = row["answer"].endswith(best[-1])
        ways, places, both = ways + way, places + place, both + (way and place)
    assert min(ways, places) > 0.2 * len(world.sft)
    assert 0 < both < 0.05 * len(world.sft)


@pytest.mark.parametrize("share", [0.5, 0.7, 0.9])
@pytest.mark.parametrize("answers", [2, 4])
def test_length_tells_quality_as_often_as_is_set(share: float, answers: int) -> None:
    data = world_data(seed=3, sft=0, train=800, test=0, flip_rate=0.0, answers=answers, world=World(longer_better=share))
    more = [len(row["chosen"].split()) - len(row["rejected"].split()) for row in data.train]
    # The best of four answers is the longest or the shortest now and then: no worse one is on the side that was drawn.
    assert sum(words > 0 for words in more) / len(more) == pytest.approx(share, abs=0.04 if answers == 2 else 0.2)
    assert 0 not in more or answers > 2


def test_pairs_whose_better_answer_is_shorter_exist_for_every_kind_of_request() -> None:
    shapes = {(request.number, request.order, request.style): prompt
              for prompt in (request_prompt(index) for index in range(0, NUMBER_OF_REQUESTS, 7))
              if (request := parse_request(prompt))}  # fmt: skip
    assert len(shapes) == 24
    for prompt in shapes.values():
        for longer in (True, False):
            (better, high), (worse, low) = tiny_writers._two_answers(prompt, longer, random.Random(prompt), World())
            assert better > worse and (len(high.split()) > len(low.split())) == longer


def test_a_recipe_that_says_nothing_of_the_world_has_the_writers_own() -> None:
    assert World() == World(**{field.name: getattr(DataSettings(dataset="tiny_world"), field.name) for field in fields(World)})


@pytest.mark.parametrize("share", [0.01, 0.3])
def test_the_best_closing_is_as_rare_as_is_set(share: float) -> None:
    rows = world_data(seed=3, sft=4000, train=0, test=0, flip_rate=0.0, world=World(best_closings=share)).sft
    better = [row for row in rows if row["writer"] != "novice"]
    best = [row["answer"].endswith(best_answer(row["prompt"]).partition("served")[2]) for row in better]
    assert sum(best) / len(best) == pytest.approx(share, abs=0.02)


def test_rows_repeat_for_a_seed_and_differ_between_seeds(world: WorldData) -> None:
    assert world_data(seed=3, sft=2000, train=1000, test=300, flip_rate=0.2) == world
    other = world_data(seed=4, sft=20, train=20, test=20, flip_rate=0.2)
    assert other.sft != world.sft[:20] and other.test != world.test[:20]


def test_rows_do_not_depend_on_how_many_follow(world: WorldData) -> None:
    shorter = world_data(seed=3, sft=50, train=40, test=300, flip_rate=0.2)
    assert (shorter.sft, shorter.train, shorter.test) == (world.sft[:50], world.train[:40], world.test)


def test_rows_do_not_depend_on_the_hash_seed() -> None:
    code = (
        "import hashlib; from handbook_ext.data.tiny_writers import world_data;"
        "print(hashlib.sha256(repr(world_data(seed=0, sft=50, train=50, test=9, flip_rate=0.4)).encode()).hexdigest())"
    )
    runs = [
        subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": ":".join(sys.path), "PYTHONHASHSEED": seed},
                       capture_output=True, text=True, check=True).stdout
        for seed in ("1", "2")
    ]  # fmt: skip
    assert runs[0] == runs[1] and len(runs[0]) == 65


def test_prompts_are_distinct(world: WorldData) -> None:
    prompts = [row["prompt"] for rows in (world.sft, world.train, world.test) for row in rows]
    assert len(set(prompts)) == len(prompts) == 3300


def test_test_prompts_stay_apart_when_requests_run_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiny_writers, "NUMBER_OF_REQUESTS", 100)
    data = world_data(seed=0, sft=300, train=200, test=60, flip_rate=0.0)
    asked = {row["prompt"] for row in data.sft} | {row["prompt"] for row in data.train}
    assert (len(data.sft), len(data.train), len(asked)) == (300, 200, 40)
    assert asked.isdisjoint(row["prompt"] for row in data.test)


def test_flips_are_flagged_and_come_at_the_known_rate(world: WorldData) -> None:
    for row in [*world.train, *world.test]:
        assert row["score_chosen"] == true_reward(row["prompt"], row["chosen"])
        assert row["score_rejected"] == true_reward(row["prompt"], row["rejected"])
        assert (row["score_chosen"] < row["score_rejected"]) == row["swapped"]
        assert row["score_chosen"] != row["score_rejected"]
    swapped = [row["swapped"] for row in world.train]
    assert sum(swapped) / len(swapped) == pytest.approx(0.2, abs=0.03)
    assert not any(row["swapped"] for row in world.test)


def test_flips_change_nothing_but_the_label_and_are_nested(world: WorldData) -> None:
    clean = world_data(seed=3, sft=0, train=300, test=300, flip_rate=0.0).train
    more = world_data(seed=3, sft=0, train=300, test=300, flip_rate=0.5).train
    for none, some, many in zip(clean, world.train, more, strict=False):
        assert not none["swapped"] and some["swapped"] <= many["swapped"]
        expected = (none["rejected"], none["chosen"]) if some["swapped"] else (none["chosen"], none["rejected"])
        assert (some["chosen"], some["rejected"]) == expected


def test_longer_is_mostly_chosen(world: WorldData) -> None:
    longer = [len(row["chosen"].split()) > len(row["rejected"].split()) for row in world.test]
    assert sum(longer) / len(longer) > 0.6


def test_unusable_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="'hello' is no request of the tiny world; one is 'name two "):
        best_answer("hello")
    with pytest.raises(ValueError, match="'poet' is no writer of the tiny world; writers are novice, adept, expert"):
        write_answer(PLAIN, "poet", random.Random(0))
    with pytest.raises(ValueError, match="train=-1"):
        world_data(seed=0, sft=1, train=-1, test=1, flip_rate=0.0)
    with pytest.raises(ValueError, match="test=48384"):
        world_data(seed=0, sft=1, train=1, test=NUMBER_OF_REQUESTS, flip_rate=0.0)
    with pytest.raises(ValueError, match=r"flip_rate=1\.5"):
        world_data(seed=0, sft=1, train=1, test=1, flip_rate=1.5)
