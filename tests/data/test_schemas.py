"""Files in exactly the schemas of the public preference data, oddities and all: what comes out, what is dropped or told."""

from pathlib import Path

import datasets
import pytest

from handbook_ext.core.errors import UserError
from tests.dataset_rows import FOUR, hh, load, pair, tldr, uf


def test_ultrafeedback_is_its_best_answer_against_a_seeded_worse_one(tmp_path: Path) -> None:
    rows = [uf(f"ask {number}", *FOUR) for number in range(40)]
    pairs = load(tmp_path, rows).train
    assert [(each.text, each.score) for each in pairs[0].answers] == [
        ("best", 9.0),
        ("fine", 7.0),
        ("also fine", 7.0),
        ("poor", 2.0),
    ]
    assert pairs[0].prompt == [{"role": "user", "content": "ask 0"}]
    assert {each.chosen[0]["content"] for each in pairs} == {"best"}
    drawn = [each.rejected[0]["content"] for each in pairs]
    assert set(drawn) == {"fine", "also fine", "poor"}
    assert {(each.rejected[0]["content"], each.score_rejected) for each in pairs} == {("fine", 7), ("also fine", 7), ("poor", 2)}
    assert [each.rejected[0]["content"] for each in reversed(load(tmp_path, rows[::-1]).train)] == drawn
    assert [each.rejected[0]["content"] for each in load(tmp_path, rows, seed=2).train] != drawn


def test_ultrafeedback_oddities_are_counted_by_reason(tmp_path: Path) -> None:
    three = uf("three", ("a", 1.0), ("b", None), ("c", 3.0), ("", 5.0))
    del three["completions"][1]["overall_score"]
    rows = [
        three, uf("tied top", ("a", 5.0), ("b", 5.0), ("c", 1.0)), uf("equal", ("a", 4.0), ("b", 4.0)),
        uf("one", ("a", 4.0), ("b", None), ("c", float("nan"))), uf("none"), uf("", *FOUR),
        uf("empty", ("a", 4.0), (" ", 3.0), (None, 1.0)), uf("same", ("a", 4.0), ("a", 3.0)),
    ]  # fmt: skip
    loaded = load(tmp_path, rows, empty_completions="drop")
    assert [[each.text for each in pair.answers] for pair in loaded.train] == [["c", "a"], ["a", "b", "c"]]
    assert loaded.train[1].chosen[0]["content"] == "a" and loaded.train[1].rejected[0]["content"] == "c"
    assert loaded.dropped == {
        "equal scores": 1, "fewer than two rated answers": 2, "empty prompt": 1, "empty answers leave fewer than two": 1,
        "chosen equals rejected": 1,
    }  # fmt: skip
    assert loaded.left_out["answers unrated or empty"] == 2


def test_ties_and_empty_answers_follow_the_recipe(tmp_path: Path) -> None:
    equal, empty = uf("equal", ("a", 4.0), ("b", 4.0)), uf("empty", ("a", 4.0), ("b", 3.0), ("", 2.0))
    kept = load(tmp_path, [equal], ties="keep").train[0]
    assert (kept.chosen[0]["content"], kept.rejected[0]["content"], kept.score_rejected) == ("a", "b", 4.0)
    with pytest.raises(UserError, match=r"train.jsonl:2: all 2 rated answers have the same score 4.0; .*data.ties"):
        load(tmp_path, [uf("x", *FOUR), equal], ties="error")
    with pytest.raises(UserError, match=r"train.jsonl:1: the rated completion is empty; .*data.empty_completions: drop"):
        load(tmp_path, [empty])
    assert len(load(tmp_path, [empty], empty_completions="drop").train[0].answers) == 2
    tied = pair(1, score_chosen=5.0)
    assert load(tmp_path, [tied, pair(2), pair(3, score_chosen=None, score_rejected=None)]).dropped == {"equal scores": 1}
    assert len(load(tmp_path, [tied], ties="keep").train) == 1
    with pytest.raises(UserError, match=r"train.jsonl:1: chosen and rejected have the same score 5.0"):
        load(tmp_path, [tied], ties="error")


def test_ultrafeedback_reads_parquet_and_flips_leave_the_answers_alone(tmp_path: Path) -> None:
    rows = [uf(f"ask {number}", *FOUR) for number in range(10)]
    datasets.Dataset.from_list(rows).to_parquet(str(tmp_path / "rows.parquet"))
    clean, noisy = load(tmp_path, rows), load(tmp_path, [], train=str(tmp_path / "rows.parquet"), flip_rate=0.5)
    assert sum(each.swapped for each in noisy.train) == 5
    for before, after in zip(clean.train, noisy.train, strict=True):
        assert after.answers == before.answers
        assert after.chosen == (before.rejected if after.swapped else before.chosen)
        assert (after.score_chosen < after.score_rejected) == after.swapped


def test_transcripts_become_multi_turn_pairs(tmp_path: Path) -> None:
    before = "H: hi A: hello H: play Human: and\nAssistant: now?"
    rows = [
        hh(f"{before} A: no", f"{before} A: yes"),
        hh("H: a H: b A: x A: y", "H: a H: b A: z"),
    ]
    first, second = load(tmp_path, rows).train
    assert [(turn["role"], turn["content"]) for turn in first.prompt] == [
        ("user", "hi"), ("assistant", "hello"), ("user", "play Human: and\nAssistant: now?")
    ]  # fmt: skip
    assert (first.chosen, first.rejected) == ([{"role": "assistant", "content": "no"}], [{"role": "assistant", "content": "yes"}])
    assert first.score_chosen is None and first.answers == []
    assert second.prompt == [{"role": "user", "content": "a\n\nb"}] and second.chosen[0]["content"] == "x\n\ny"


def test_transcript_oddities_are_counted_by_reason(tmp_path: Path) -> None:
    rows = [
        hh("H: a A: b", "H: a A: c"), hh("H: a A: b", "H: a A: b"), hh("H: a A: b H: c A: d", "H: a A: x H: c A: y"),
        hh("H: a A: b", "H: a A: b H: c A: d"), hh("H: a A: b H: c", "H: a A: d H: c"), hh("H: a A: b", "H: a A:"),
        hh("H: a A: H: c A: d", "H: a A: H: c A: e"), hh("A: b", "A: c"),
    ]  # fmt: skip
    loaded = load(tmp_path, rows, empty_completions="drop")
    assert len(loaded.train) == 1
    assert loaded.dropped == {
        "chosen equals rejected": 1, "transcripts differ before the last answer": 2, "a transcript ends with a Human turn": 1,
        "empty rejected": 1, "empty turn": 1, "empty prompt": 1,
    }  # fmt: skip
    with pytest.raises(UserError, match=r"train.jsonl:2: the rejected completion is empty"):
        load(tmp_path, [rows[0], rows[5]])


def test_comparisons_of_summaries(tmp_path: Path) -> None:
    article = {"id": "c4", "title": "", "subreddit": None, "site": "cnn", "article": "The mayor left.", "post": None,
               "first": "a", "second": "b"}  # fmt: skip
    rows = [
        tldr("I lost my keys.", " lost keys", " found keys"), tldr("I lost my keys.", "x", "y", choice=1),
        tldr(**article), tldr("p", "same", " same"), tldr(None, "a", "b"), tldr("p", "a", "\n"),
    ]  # fmt: skip
    loaded = load(tmp_path, rows, empty_completions="drop")
    assert [pair.chosen[0]["content"] for pair in loaded.train] == ["lost keys", "y", "a"]
    assert [pair.rejected[0]["content"] for pair in loaded.train] == ["found keys", "x", "b"]
    first, again, news = loaded.train
    assert first.prompt[0]["content"] == "SUBREDDIT: r/tifu\n\nTITLE: Lost keys\n\nPOST: I lost my keys.\n\nTL;DR:"
    assert news.prompt[0]["content"] == "ARTICLE: The mayor left.\n\nTL;DR:"
    assert again.prompt_id == f"{first.prompt_id}#2" and again.prompt == first.prompt
    assert loaded.dropped == {"chosen equals rejected": 1, "neither post nor article": 1, "empty rejected": 1}


WRONG = {
    "score": (uf("a", ("b", "high"), ("c", 1.0)), "'overall_score' is 'high', but a score is a number or null"),
    "true as score": (uf("a", ("b", True), ("c", 1.0)), "'overall_score' is 'True'"),
    "no responses": (uf("a", *FOUR) | {"completions": [{"text": "b"}, 3]}, "a list of rows with 'response'"),
    "choice": (tldr("p", "a", "b", choice=2), "'choice' is 2, but must be 0 or 1"),
    "one summary": (tldr("p", "a", "b") | {"summaries": [{"text": "a"}]}, "'summaries' two rows with 'text'"),
    "no transcript": (hh("H: a A: b", "so: c"), "'rejected' does not begin with a turn"),
    "pair score": (pair(1, score_chosen=[8]), "'score_chosen' is '[8]'"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_row_against_its_schema_is_named(name: str, tmp_path: Path) -> None:
    row, words = WRONG[name]
    rated, transcript = uf("x", *FOUR), hh("H: a A: b", "H: a A: c")
    others = {"score": rated, "true as score": rated, "no responses": rated, "no transcript": transcript, "pair score": pair(2)}
    sound = others.get(name, tldr("x", "a", "b"))
    with pytest.raises(UserError) as error:
        load(tmp_path, [sound, row])
    assert "train.jsonl:2: " in str(error.value) and words in str(error.value)


@pytest.mark.parametrize(
    ("form", "column"), [("ultrafeedback", "instruction"), ("tldr", "info"), ("pairs", "chosen"), ("hh_rlhf", "chosen")]
)
def test_a_stated_form_wins_over_the_columns(form: str, column: str, tmp_path: Path) -> None:
    row = uf("a", *FOUR) if form != "ultrafeedback" else tldr("p", "a", "b")
    with pytest.raises(UserError, match=rf"train.jsonl:1: the row has no '{column}' \(it has: "):
        load(tmp_path, [row], form=form)
    plain = pair(1) | {"prompt": "other", "chosen": "x", "rejected": "y"}
    assert load(tmp_path, [plain], form="pairs").train[0].prompt[0]["content"] == "other"
