"""What the tiny world's true reward says of samples and pairs: worked out by hand, and read from a run's files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from handbook_ext.core.errors import UserError
from handbook_ext.core.jsonl import write_rows
from handbook_ext.core.records import Completion, PreferencePair, assistant, user
from handbook_ext.data.tiny_world import GUESTS, TOPICS, best_answer, best_closing, request_prompt, true_reward
from handbook_ext.reports import run_figures
from handbook_ext.reports.pages import render_report
from handbook_ext.reports.run_report import read_run, summarise
from handbook_ext.reports.world_health import Found, correctness, exploration, world_health
from tests.manifests import BARE
from tests.reports.written_run import make_run

# Requests 0, 48 and 6048: fruits and breads for the first guest, fruits for the second.
FIRST, OTHER_TOPIC, OTHER_GUEST = (request_prompt(number) for number in (0, 48, 6048))


def sample(asked: str, text: str) -> Completion:
    columns = {"sample": 0, "seed": 0, "prompt_tokens": 1, "completion_tokens": 1, "finish_reason": "stop"}
    return Completion.of(asked, user(asked), text, **columns)


def closed(asked: str) -> str:
    """The best closing of a request and no item: without one it is worth nothing."""
    return " ".join(best_answer(asked).split()[-3:])


def pair(asked: str, chosen: str, rejected: str, origins: str = "offline offline") -> PreferencePair:
    sides = dict(zip(("chosen_origin", "rejected_origin"), origins.split(), strict=True))
    return PreferencePair.of(asked, user(asked), assistant(chosen), assistant(rejected)).model_copy(update=sides)


def test_samples_reach_the_best_closing_or_not() -> None:
    """Of five samples two close best, both of one prompt of two; one closing of 24 is found. Rewards are 1, 0, 0, 0, -0.02."""
    found: Found = set()
    rows = [sample(FIRST, best_answer(FIRST)), sample(FIRST, closed(FIRST)), sample(FIRST, "")]
    rows += [sample(OTHER_TOPIC, ""), sample(OTHER_TOPIC, "well")]
    told = exploration(rows, found)
    assert len(GUESTS) * len(TOPICS) == 24
    assert told == {
        "best_closings": 0.4, "prompts_best_closed": 0.5, "closings_found": pytest.approx(1 / 24),
        "sampled_reward": pytest.approx((1 - 0.02) / 5), "best_sample_reward": 0.5, "best_possible_reward": 1.0,
    }  # fmt: skip
    assert len(found) == 1


def test_closings_count_once_for_each_guest_and_topic() -> None:
    """Other requests of the same guest and topic find nothing new."""
    found: Found = set()
    for asked, count in ((FIRST, 1), (request_prompt(1), 1), (OTHER_TOPIC, 2), (OTHER_GUEST, 3), (FIRST, 3)):
        assert exploration([sample(asked, closed(asked))], found)["closings_found"] == pytest.approx(count / 24)
    assert exploration([sample(FIRST, "nothing")], set())["closings_found"] == 0


def test_half_a_closing_is_not_the_best_one() -> None:
    _, way, place = closed(FIRST).split()
    assert best_closing(FIRST, f"well served {way} {place} indeed")
    for text in (
        f"served {way} indoors",
        f"served fresh {place}",
        f"served {place} {way}",
        f"{way} {place}",
        f"served {way}",
        "",
    ):
        assert not best_closing(FIRST, text)
    # The first closing counts, as in the reward.
    assert not best_closing(FIRST, f"served fresh indoors served {way} {place}")
    with pytest.raises(ValueError, match="is no request of the tiny world"):
        best_closing("Which?", f"served {way} {place}")


def test_a_prompt_that_is_no_request_is_told_in_a_line() -> None:
    with pytest.raises(UserError, match=r"Which\?: 'Which\?' is no request of the tiny world; .* make them again"):
        exploration([sample("Which?", "this")], set())


def test_pairs_are_right_wrong_or_tied_by_who_wrote_them() -> None:
    best = best_answer(FIRST)
    assert true_reward(FIRST, best) > true_reward(FIRST, "") == true_reward(FIRST, "served warm aboard")
    own, mixed = "on_policy on_policy", ("on_policy offline", "offline on_policy")
    pairs = [pair(FIRST, best, "", own), pair(FIRST, "", best, own), pair(FIRST, "", "served warm aboard", own)]
    pairs += [pair(FIRST, best, ""), pair(FIRST, best, "", mixed[0]), pair(FIRST, "", best, mixed[1])]
    third = pytest.approx(1 / 3)
    assert correctness(pairs) == {
        "own_right": third, "own_tied": third, "mixed_right": 0.5, "mixed_tied": 0.0, "offline_right": 1.0, "offline_tied": 0.0,
    }  # fmt: skip
    assert correctness(pairs[3:4]).keys() == {"offline_right", "offline_tied"}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run of the tiny world: no samples in iter0, one of a new closing in iter1 and in iter2 each."""
    folder = make_run(tmp_path / "run", iterations=3)
    for name, asked in (("iter0", None), ("iter1", FIRST), ("iter2", OTHER_TOPIC)):
        write_rows(folder / name / "pairs.jsonl", [pair(FIRST, best_answer(FIRST), "")])
        if asked is not None:
            write_rows(folder / name / "completions.jsonl", [sample(asked, closed(asked))])
        inputs = {} if asked is None else {"completions.jsonl": "0" * 64}
        (folder / name / "pairs.manifest.json").write_text(json.dumps(BARE | {"counts": {"in": 1}, "inputs": inputs}))
    data_of(folder, "tiny_world")
    return folder


def data_of(run: Path, dataset: str | None) -> None:
    (run / "data").mkdir(exist_ok=True)
    (run / "data" / "data.yaml").write_text(json.dumps({"stage": "data", "data": {"dataset": dataset}}))


def test_a_run_counts_the_closings_of_all_iterations_so_far(run: Path) -> None:
    told = [row.get("closings_found") for row in read_run(run).health]
    assert told == [None, pytest.approx(1 / 24), pytest.approx(2 / 24)]
    # Those before a reported iteration count, those behind it do not.
    for names, expected in ((["iter2"], [2 / 24]), (["iter1"], [1 / 24]), (["iter0"], [None])):
        assert [row.get("closings_found") for row in read_run(run, names).health] == [expected[0] and pytest.approx(expected[0])]
    assert [row["offline_right"] for row in read_run(run).health] == [1.0] * 3


def test_the_page_has_the_columns_that_are_measured_and_explains_them_below(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_figures, "draw_figures", lambda groups, summary: ({}, {}))  # Pictures take a second.
    summary = summarise([[read_run(run)]], title="run", resamples=100, confidence=0.95)
    shown = {"answers": {}, "training_pairs": [], "paper": {}, "sets": []}
    files = render_report([[read_run(run)]], summary | shown)
    text, page = files["report.md"].decode(), files["report.html"].decode()
    section = text.partition("Exploration, and pairs that are right")[2].partition("##")[0]
    heading, _, *rows, notes = section.strip().splitlines()
    assert "| closings found | sampled reward |" in heading and "own right" not in heading and "surprisal" not in heading
    assert [row.split(" | ")[1] for row in rows if row] == ["iter0", "iter1", "iter2"]
    assert notes.startswith("distinct completions: share of") and notes.endswith("share of these whose two have the same.")
    # Below the table, and no row of it.
    assert page.count(notes[1:60]) == 1
    assert f'<p class="foot">{notes}</p>'.replace("'", "&#39;") in page
    summary["recipes"][0]["health"] = [{"seed": 1, "iteration": "iter0", "pairs": 2.0}]
    assert b"Exploration" not in render_report([[read_run(run)]], summary | shown)["report.md"]


def test_only_the_tiny_world_has_a_truth(run: Path) -> None:
    for dataset in (None, "some/pairs"):
        data_of(run, dataset)
        assert world_health(run, ["iter0", "iter1"]) == {}
        assert not [name for row in read_run(run).health for name in row if name in ("offline_right", "sampled_reward")]
    (run / "data" / "data.yaml").unlink()
    assert world_health(run, ["iter1"]) == {}


def test_samples_that_the_pairs_were_not_made_from_find_nothing(run: Path) -> None:
    """As where another recipe of this name has left them."""
    (run / "iter1" / "pairs.manifest.json").write_text(json.dumps(BARE | {"counts": {"in": 1}}))
    assert [row.get("closings_found") for row in read_run(run).health] == [None, None, pytest.approx(1 / 24)]
    (run / "iter1" / "pairs.manifest.json").unlink()
    assert world_health(run, ["iter0", "iter1", "iter2"]).keys() == {"iter0", "iter2"}
