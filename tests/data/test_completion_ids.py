"""Every completion carries its id from the row where it is born, and no later change of the row leaves an old id behind."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from handbook_ext.core.records import Answer, Completion, OfflinePair, PreferencePair, assistant, completion_id, user
from handbook_ext.data.offline import flipped, load_offline_data
from handbook_ext.recipes.settings import DataSettings
from tests.data.test_offline import load

TURNS = [*user("a"), *assistant("b"), *user("c")]
PLAIN = {"prompt": "count please", "chosen": "one two", "rejected": "three"}
ROWS = {
    "pairs": [PLAIN, {**PLAIN, "prompt_id": "named"}, {"prompt": TURNS, "chosen": "x", "rejected": "y"}],
    "ultrafeedback": [
        {
            "instruction": "count please",
            "completions": [{"response": text, "overall_score": score} for text, score in (("one", 3), ("two", 8), ("three", 5))],
        }
    ],
    "hh_rlhf": [
        {"chosen": "\n\nHuman: hello\n\nAssistant: good day", "rejected": "\n\nHuman: hello\n\nAssistant: go away"},
    ],
    "tldr": [{"info": {"post": "I lost my keys."}, "summaries": [{"text": " lost keys"}, {"text": "found keys"}], "choice": 0}],
}  # fmt: skip


def check(pairs: list[OfflinePair]) -> None:
    """Every id of every row is that of its text behind the row's own prompt and prompt id."""
    assert pairs
    for pair in pairs:
        assert pair.chosen_id == completion_id(pair.prompt_id, pair.prompt, pair.chosen)
        assert pair.rejected_id == completion_id(pair.prompt_id, pair.prompt, pair.rejected)
        for each in pair.answers:
            assert each.completion_id == completion_id(pair.prompt_id, pair.prompt, assistant(each.text))


@pytest.mark.parametrize("form", ROWS)
def test_the_ids_of_every_form_are_those_of_the_score_store(form: str, tmp_path: Path) -> None:
    loaded = load(tmp_path, ROWS[form], form="auto")
    check(loaded.train)
    assert all(bool(pair.answers) == (form == "ultrafeedback") for pair in loaded.train)


def test_a_repeated_prompt_gets_ids_under_its_own_name(tmp_path: Path) -> None:
    rated = ROWS["ultrafeedback"] * 3
    pairs = load(tmp_path, rated).train
    check(pairs)
    assert [pair.prompt_id.partition("#")[2] for pair in pairs] == ["", "2", "3"]
    assert len({pair.chosen_id for pair in pairs}) == 3
    # The name alone changes: texts, scores and answers are those of the row.
    same = {"prompt", "chosen", "rejected", "score_chosen", "score_rejected", "swapped"}
    assert pairs[0].model_dump(include=same) == pairs[2].model_dump(include=same)
    assert [(each.text, each.score) for each in pairs[2].answers] == [("two", 8.0), ("three", 5.0), ("one", 3.0)]
    assert pairs[2].source.endswith(":3")


def test_label_noise_turns_ids_round_with_the_texts(tmp_path: Path) -> None:
    pairs = load(tmp_path, [{**PLAIN, "prompt": f"count {number}", "prompt_id": "same"} for number in range(10)]).train
    noisy = flipped(pairs, 0.4, seed=3)
    check(noisy)
    assert sum(pair.swapped for pair in noisy) == 4


@pytest.mark.parametrize("settings", [{"answers": 4, "flip_rate": 0.5}, {"prompts": "demonstrations"}])
def test_the_tiny_worlds_rows_carry_ids(settings: dict[str, object]) -> None:
    data = DataSettings(dataset="tiny_world", train_rows=20, test_rows=10, sft_rows=30, **settings)
    loaded = load_offline_data(data, seed=1)
    check(loaded.train)
    check(loaded.test)


def test_rows_hand_on_messages_id_and_writer() -> None:
    columns = {"sample": 0, "finish_reason": "stop", "seed": 1, "prompt_tokens": 2, "completion_tokens": 3}
    row = Completion.of("p", user("q"), "a", **columns)
    assert row.answer == Answer(assistant("a"), completion_id("p", user("q"), assistant("a")), "on_policy")
    pair = OfflinePair.of("p", user("q"), assistant("w"), assistant("l"), answers=[("best", 2.0)])
    assert (pair.chosen_answer.text, pair.rejected_answer.text, pair.answers[0].answer.text) == ("w", "l", "best")
    assert {each.origin for each in (pair.chosen_answer, pair.rejected_answer, pair.answers[0].answer)} == {"offline"}
    assert pair.rejected_answer.completion_id == completion_id("p", user("q"), assistant("l"))


def test_a_preference_pair_carries_the_ids_of_what_it_joins() -> None:
    written = PreferencePair.of("p", user("q"), assistant("w"), assistant("l"), assistant("y"))
    ids = [completion_id("p", user("q"), assistant(text)) for text in "wly"]
    assert [written.chosen_id, written.rejected_id, written.explore_id] == ids
    assert (written.explore, written.chosen_origin, written.margin, written.swapped) == (assistant("y"), "offline", None, False)
    assert written.exploring(None) == PreferencePair.of("p", user("q"), assistant("w"), assistant("l"))
    row = OfflinePair.of("p", user("q"), assistant("w"), assistant("l"))
    joined = PreferencePair.joining(
        row, row.chosen_answer, Answer(assistant("y"), "its id", "on_policy"), margin=1.5, swapped=True
    )
    assert (joined.rejected_id, joined.rejected_origin, joined.margin, joined.swapped) == ("its id", "on_policy", 1.5, True)


def test_a_row_without_its_id_is_refused() -> None:
    with pytest.raises(ValidationError, match="chosen_id"):
        OfflinePair.model_validate({"prompt_id": "p", "prompt": user("q"), "chosen": assistant("w"), "rejected": assistant("l")})
