"""The judge's rubric, the points of the tiny world, and the rows made for judging and for several rated answers."""

import hashlib
import json
from collections import Counter

import pytest

from handbook_ext.core.errors import UserError
from handbook_ext.data.offline import load_offline_data
from handbook_ext.data.rubric import DEFAULT_RUBRIC, TINY_RUBRIC, parse_points, render
from handbook_ext.data.tiny_world import best_answer, points, true_reward
from handbook_ext.data.tiny_writers import world_data
from handbook_ext.recipes.settings import DataSettings

# The fruits that fit both, with their ranks: zevi 2, runu 3, kuba 6, lelo 10, sire 13, tika 17; moba is dark.
RICH = "name three sweet fruits not dark omitting none falling rich for sailors"
PLAIN = "name two sweet fruits not dark omitting tika rising plain for poets"


def test_a_rubric_holds_both_texts_as_they_are() -> None:
    whole = render("what is <b>{{ x }}</b>?", "it's {% this %} & that")
    assert "<user>\nwhat is <b>{{ x }}</b>?\n</user>" in whole and "<response>\nit's {% this %} & that\n</response>" in whole
    assert all(word in DEFAULT_RUBRIC for word in ("Relevance", "Substance", "Usefulness", "Clarity", "Expertise"))
    assert whole.endswith("Score: <points>") and parse_points(whole) is None
    assert render("a", "b", TINY_RUBRIC) == "judge a answer b"


@pytest.mark.parametrize(
    ("rubric", "words"),
    [
        ("judge {{ prompt", "not valid Jinja"),
        ("judge {{ prompt }}", "this one has: prompt"),
        ("judge {{ prompt }} {{ response }} {{ answer }}", "this one has: answer, prompt, response"),
        ("{{ prompt.topic }} {{ response }}", "cannot be filled in"),
        ("{{ prompt.__class__.__mro__ }} {{ response }}", "cannot be filled in"),
    ],
)
def test_a_rubric_that_cannot_work_is_refused(rubric: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        render("a", "b", rubric)


@pytest.mark.parametrize(
    ("text", "score"),
    [
        ("Good.\nScore: 4", 4.0), ("Score: 4/5", 4.0), ("**Score:** 4", 4.0), ("**Score**: **3**", 3.0),
        ("score = 2 out of 5", 2.0), ("Score: 3.5", 3.5), ("Score: 3.", 3.0), ("Score:\n0", 0.0), ("__Score__: 2", 2.0),
        ("Score: 1 is too low.\nFinal score: 5", 5.0),
        ("Score: 6", None), ("Score: -1", None), ("Score: 45", None), ("Score: 4/10", None), ("Score: five", None), ("4", None),
        ("underscore: 4", None), ("", None), ("Score: 4\nScore: 9", None), ("Score: <points>", None),
    ],
)  # fmt: skip
def test_points_are_read_from_the_last_score(text: str, score: float | None) -> None:
    assert parse_points(text) == score


@pytest.mark.parametrize(
    ("prompt", "answer", "expected"),
    [
        (RICH, "tika tiny kuba crisp zevi mellow served salted outdoors", 5),
        (RICH, "well tika tiny kuba crisp zevi mellow served salted indoors", 4),  # the place; filler costs no point
        (RICH, "zevi mellow kuba crisp tika tiny served salted outdoors", 4),  # rising
        (RICH, "tika tiny kuba nice zevi mellow served salted outdoors", 4),  # a note
        (RICH, "tika tiny kuba crisp served salted outdoors", 4),  # one item too few
        (RICH, "tika tiny kuba crisp zevi mellow moba inky served salted outdoors", 4),  # one too many
        (RICH, "zevi nice kuba nice tika nice served fresh outdoors", 2),
        (RICH, "zevi dusky kuba nice served fresh outdoors", 1),
        (RICH, "moba inky served salted outdoors", 1),  # the closing alone
        (RICH, "moba inky", 0), (RICH, "", 0), ("what is this", "tika", 0),
        (PLAIN, "zevi runu served cold outdoors", 5), (PLAIN, "zevi tika", 3), (PLAIN, "zevi zevi", 3),
    ],
)  # fmt: skip
def test_points_counted_by_hand(prompt: str, answer: str, expected: int) -> None:
    assert points(prompt, answer) == expected


def test_judge_rows_ask_the_tiny_rubric_and_hold_every_number_of_points() -> None:
    data = DataSettings(dataset="tiny_world", train_rows=4, test_rows=4, sft_rows=10, judge_rows=300)
    loaded = load_offline_data(data, 1)
    writers, judge = loaded.demonstrations[:10], loaded.demonstrations[10:]
    assert writers == load_offline_data(data.model_copy(update={"judge_rows": 0}), 1).demonstrations
    counts: Counter[str] = Counter()
    for row in judge:
        prompt, answer = row.prompt[0]["content"].removeprefix("judge ").split(" answer ")
        assert row.prompt == [{"role": "user", "content": render(prompt, answer, TINY_RUBRIC)}]
        assert row.completion == [{"role": "assistant", "content": f"Score: {points(prompt, answer)}"}]
        counts[row.completion[0]["content"]] += 1
    assert len(judge) == 300 and len(counts) == 6 and min(counts.values()) > 15
    asked = {row.prompt[0]["content"].split(" answer ")[0] for row in judge}
    assert len(asked) == 300
    assert asked.isdisjoint(f"judge {row.prompt[0]['content']}" for row in [*writers, *loaded.train, *loaded.test])


def test_several_answers_are_rated_best_first() -> None:
    loaded = load_offline_data(DataSettings(dataset="tiny_world", train_rows=200, test_rows=5, sft_rows=5, answers=5), 1)
    places = Counter()
    for pair in loaded.train:
        prompt, texts = pair.prompt[0]["content"], [answer.text for answer in pair.answers]
        scores = [true_reward(prompt, text) for text in texts]
        assert [answer.score for answer in pair.answers] == scores == sorted(scores, reverse=True)
        assert len(set(texts)) == 5 and best_answer(prompt) not in texts[1:]
        assert (pair.chosen[0]["content"], pair.score_chosen) == (texts[0], scores[0])
        assert pair.score_rejected is not None and pair.score_rejected < scores[0]
        places[texts.index(pair.rejected[0]["content"])] += 1
    assert places.keys() == {1, 2, 3, 4} and min(places.values()) > 25
    assert all(pair.answers == [] for pair in loaded.test)
    assert world_data(seed=1, sft=0, train=9, test=5, flip_rate=0.0, answers=5).train[8]["answers"] == [
        (answer.text, answer.score) for answer in loaded.train[8].answers
    ]


def test_two_answers_give_the_rows_that_they_gave() -> None:
    loaded = load_offline_data(DataSettings(dataset="tiny_world", train_rows=20, test_rows=5, sft_rows=10), 1)
    rows = [
        row.model_dump(exclude={"answers", "chosen_id", "rejected_id", "raw_row", "raw_rows"})
        for row in [*loaded.train, *loaded.test, *loaded.demonstrations]
    ]
    digest = hashlib.sha256(json.dumps(rows).encode()).hexdigest()
    assert digest == "55dd708c6b3fa3accfce460e7c0817e64137817ca5395f7592479b90885eb727"
    assert all(pair.answers == [] for pair in loaded.train)


def test_the_tiny_world_gives_golden_answers_but_never_judgements() -> None:
    data = DataSettings(dataset="tiny_world", train_rows=6, test_rows=4, sft_rows=10, judge_rows=5, prompts="demonstrations")
    loaded = load_offline_data(data, 1)
    assert [pair.chosen for pair in loaded.train] == [row.completion for row in loaded.demonstrations[:6]]
    assert all(pair.rejected == pair.chosen for pair in loaded.train) and len(loaded.demonstrations) == 15
    assert (
        load_offline_data(data.model_copy(update={"train_rows": None}), 1).train[-1].chosen == loaded.demonstrations[9].completion
    )
    assert all(pair.rejected != pair.chosen for pair in loaded.test)
