"""The story of a training pair: whatever its files say, the rule's decision asked again, and ids that are wrong."""

from __future__ import annotations

import io
import json
import runpy
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from handbook_ext.core.errors import UserError
from handbook_ext.core.records import OfflinePair
from handbook_ext.graph.stages import SelectStage
from handbook_ext.reports.decisions import Selection, place_of
from handbook_ext.reports.explain import explain_pair, full_id, iterations_of
from handbook_ext.reports.explain_pages import print_story
from handbook_ext.reports.stored_rewards import policy_names
from tests.recipe_folder import ROOT
from tests.reports.made_run import ROWS, make_data, make_judged_run, make_sera_run, offline, select


@pytest.fixture
def judged(tmp_path: Path) -> Path:
    return make_judged_run(tmp_path / "runs" / "mine-run")


@pytest.fixture
def sera(tmp_path: Path) -> Path:
    return make_sera_run(tmp_path / "runs" / "mine-run")


def story(run: Path, pair: str) -> dict[str, Any]:
    (found,) = explain_pair(run, pair)["iterations"]
    return found


def test_a_judged_pair_is_told_with_its_candidates_and_its_step(judged: Path) -> None:
    found = story(judged, "p2")
    rows = {each["label"]: each for each in found["candidates"]}
    assert list(rows) == ["sample 0 of sft", "sample 1 of sft", "the data's chosen", "the data's rejected"]
    assert [each["rank"] for each in rows.values()] == [2, 1, 3, 4]
    assert [each["roles"] for each in rows.values()] == [["explored"], ["chosen"], [], ["rejected"]]
    assert (rows["sample 1 of sft"]["seed"], rows["sample 1 of sft"]["tokens"]) == (41, 5)
    assert (rows["the data's chosen"]["data_score"], rows["sample 0 of sft"]["data_score"]) == (4.0, None)
    (kept,) = found["kept"]
    assert kept.startswith(
        "sample 1 of sft (rank 1, score 0.8) over the data's rejected (rank 4, score 0.1, data's score 1), by best"
    )
    assert found["decision"] == []
    assert found["notes"] == ["sampled by sft (policy hash of sft), temperature 0.7, top_p 0.9, 2 samples", "judged by oracle"]
    (trained,) = found["training"]
    assert trained.startswith("line 3 of pairs.jsonl: iter1/policy (policy None) trained on it, in step ")


def test_a_draw_is_dropped_with_the_reason_of_the_rule(judged: Path) -> None:
    found = story(judged, "p3")
    assert (found["decision"], found["kept"], found["training"]) == (["dropped: chosen equals rejected"], [], [])
    assert found["ties"] == 4


def test_a_swapped_label_and_a_failed_verdict_are_said(judged: Path) -> None:
    swapped = story(judged, "p1")
    assert swapped["candidates"][2]["label"] == "the data's chosen (label swapped)"
    # The ranker chose it by its own verdict, over a sample: no label is repeated.
    assert "over sample 1 of sft" in swapped["kept"][0] and "label noise" not in swapped["kept"][0]
    failed = story(judged, "p0")["candidates"][0]
    assert (failed["failed"], failed["score"], failed["rank"]) == (True, None, None)


def test_pairs_that_the_rule_does_not_make_any_more_are_noticed(judged: Path) -> None:
    path = judged / "iter1" / "pairs.jsonl"
    lines = path.read_text().splitlines()
    row = json.loads(lines[1])
    row["chosen_id"], row["rejected_id"] = row["rejected_id"], row["chosen_id"]
    path.write_text("\n".join([lines[0], json.dumps(row), *lines[2:]]) + "\n")
    found = story(judged, row["prompt_id"])
    assert found["decision"][0].startswith("asked again, the rule decides otherwise than pairs.jsonl has it")
    assert "was changed after stage 'select' made it" in found["notes"][0]
    assert story(judged, "p2")["decision"] == []


@pytest.mark.parametrize(
    ("pair", "verdicts"),
    [
        ("p0", ["is place 1 of 4, K = 2 are kept, down to 3: kept", "is place 1 of 3, K~ = 2 are kept, down to 5: kept"]),
        ("p1", ["is place 4 of 4, K = 2 are kept, down to 3: dropped", "is place 2 of 3, K~ = 2 are kept, down to 5: kept"]),
        ("p2", ["is place 2 of 4, K = 2 are kept, down to 3: kept", "is place 3 of 3, K~ = 2 are kept, down to 5: dropped"]),
        ("p3", ["is place 3 of 4, K = 2 are kept, down to 3: dropped", "own pair dropped: all samples are equal"]),
    ],
)
def test_sera_gives_the_place_of_a_margin_among_all(sera: Path, pair: str, verdicts: list[str]) -> None:
    found = story(sera, pair)
    assert all(expected in line for expected, line in zip(verdicts, found["decision"], strict=True)), found["decision"]
    assert len(found["kept"]) == sum(line.endswith(": kept") for line in found["decision"]) == len(found["training"])


def test_labels_of_own_pairs_that_are_not_the_margins_are_said(sera: Path) -> None:
    path = sera / "iter2" / "pairs.manifest.json"
    manifest = json.loads(path.read_text())
    manifest["settings"]["select"]["bootstrap_labels"] = "coin"
    path.write_text(json.dumps(manifest))
    assert story(sera, "p1")["decision"][1].endswith(": kept; which of the two is chosen says the coin")
    assert story(sera, "p2")["decision"][1].endswith(": dropped")


def test_sera_shows_the_terms_of_its_margins(sera: Path) -> None:
    found = story(sera, "p1")
    assert found["decision"][0].startswith("offline pair: margin (implicit reward margin (SeRA)) 1 nats is place")
    terms = {each["label"]: each["value"] for each in found["terms"]}
    assert terms == {
        "sample 0 of iter1": -5.0, "sample 1 of iter1": 0.0, "the data's chosen (label swapped)": 1.0,
        "the data's rejected (label swapped)": 0.0,
    }  # fmt: skip
    assert found["terms"][0]["parts"][0] == {
        "weight": 1.0, "policy": "iter1", "reference": "sft", "log_prob": -14.0, "reference_log_prob": -9.0, "value": -5.0,
    }  # fmt: skip
    assert {(each["policy"], each["tokens"]) for each in found["log_probs"]} == {("sft", 5), ("iter1", 5)}
    assert found["kept"] == [
        "sample 1 of iter1 (implicit reward 0) over sample 0 of iter1 (implicit reward -5), by sera: offline pairs of largest "
        "keep_by, and pairs of the policy's own samples (SeRA); implicit reward margin 5"
    ]


def test_a_changed_store_is_a_changed_decision(sera: Path) -> None:
    """Margins that would now drop what pairs.jsonl has: told, whatever made the pairs."""
    shard = sera / "iter2" / "logprobs" / "shard-000000.jsonl"
    rows = [json.loads(line) for line in shard.read_text().splitlines()]
    for row in rows:
        if (row["policy"], row["completion"]) == ("h1", ROWS[2].chosen_id):
            row["sum"] -= 2.5
    shard.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert story(sera, "p2")["decision"][-1].startswith("asked again, the rule decides otherwise")


def test_labels_of_the_data_and_other_parts_of_it(tmp_path: Path) -> None:
    run = tmp_path / "runs" / "mine-run"
    rows = {"rows": "../data/rows/train.jsonl"}
    make_data(run, [*ROWS, offline(6)])
    for number in (0, 1):
        select(run / f"iter{number}", "dataset", rows, portion=number, of=2, explore=False)
    (run / "iter2").mkdir()
    found = explain_pair(run, "p1")
    (kept,) = found["iterations"][0]["kept"]
    assert kept.startswith(
        "the data's chosen (label swapped) (data's score 3) over the data's rejected (label swapped) (data's score 1)"
    )
    assert kept.endswith("by dataset: the original labels; label noise had swapped this label, so the data preferred the other")
    assert found["iterations"][0]["training"] == ["iter0 has not trained yet"]
    assert found["elsewhere"] == ["iter1: selects from another part of the data (2 of 2)", "iter2: its pairs are not made yet"]
    assert found["swapped"] is True
    assert [each["iteration"] for each in explain_pair(run, "p6")["iterations"]] == ["iter1"]


def test_an_id_may_be_cut_where_no_other_begins_so(tmp_path: Path) -> None:
    run = tmp_path / "runs" / "mine-run"
    make_data(run, [offline(0).renamed(name) for name in ("abcd1", "abcd2", "abxy", "abcd")])
    assert [full_id(run, given) for given in ("abx", "abcd1", "abcd")] == ["abxy", "abcd1", "abcd"]
    rows = run / "data" / "rows" / "train.jsonl"
    for given, words in (
        ("abc", f"'abc' begins 3 prompt ids of {rows}: abcd1, abcd2, abcd; give more"),
        ("ab", "no prompt of .* has the id 'ab'"),
        ("abcd3", r"has the id 'abcd3' \(did you mean 'abcd1?'\?\); ids are the column prompt_id of .*pairs.jsonl"),
        ("held0", "'held0' is a held-out prompt"),
        ("", "no pair is named; give its prompt id, such as PAIR="),
    ):
        with pytest.raises(UserError, match=words):
            full_id(run, given)
    with pytest.raises(UserError, match=r"nowhere/data/rows/train\.jsonl is not there; give the folder of a run"):
        full_id(tmp_path / "nowhere", "abc")


def test_policies_are_called_as_the_run_calls_them(sera: Path) -> None:
    assert policy_names(sera) | {"None": ""} == {"h0": "sft", "h1": "iter1", "None": ""}


def test_the_story_is_plain_where_it_is_piped_and_harmless_on_a_terminal(
    judged: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runpy.run_path(str(ROOT / "scripts" / "explain_pair.py"))["main"]([str(judged), "--pair", "p2"])
    said = capsys.readouterr().out
    assert "\x1b" not in said
    assert "iter1: starts from sft, select.rule best_and_worst" in said
    assert "\n    sample 1 of p2\n" in said and "kept: sample 1 of sft (rank 1" in said
    found = explain_pair(judged, "p2")
    found["iterations"][0]["candidates"][0]["text"] = "[bold]not markup[/bold] \x1b[2J"
    console = Console(file=io.StringIO(), force_terminal=True, width=100)
    print_story(found, console)
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert "\x1b[2J" not in shown and "\\x1b[2J" in shown and "[bold]not markup[/bold]" in shown


def test_rows_of_an_older_version_are_told(judged: Path) -> None:
    path = judged / "iter1" / "pairs.manifest.json"
    manifest = json.loads(path.read_text())
    del manifest["settings"]["select"]["rule"]
    manifest["settings"]["unheard"] = 1
    path.write_text(json.dumps(manifest))
    with pytest.raises(UserError, match="iter1: its pairs were selected under settings that this version does not know"):
        explain_pair(judged, "p2")


def test_rated_answers_are_candidates_too(tmp_path: Path) -> None:
    rated = [("best", 9.0), ("fair", 5.0), ("poor", 2.0), ("worst", 1.0)]
    row: OfflinePair = offline(0, answers=rated)
    run = tmp_path / "runs" / "mine-run"
    make_data(run, [row])
    select(run / "iter1", "curriculum", {"rows": "../data/rows/train.jsonl"}, rejected_rank=2)
    found = story(run, "p0")
    assert [(each["text"], each["data_score"], each["roles"]) for each in found["candidates"][2:]] == [
        ("best", 9.0, ["chosen"]), ("fair", 5.0, []), ("poor", 2.0, ["rejected"]), ("worst", 1.0, []),
    ]  # fmt: skip


def test_iterations_are_told_by_their_number(tmp_path: Path) -> None:
    for name in ("iter10", "iter2", "iter1", "iteration", "released-iter1"):
        (tmp_path / name).mkdir()
    (tmp_path / "iter3").touch()
    assert [path.name for path in iterations_of(tmp_path)] == ["iter1", "iter2", "iter10"]


def test_of_equal_values_the_first_stands_first() -> None:
    values = [2.0, 3.0, 2.0, 1.0, 2.0]
    assert [place_of(values, index) for index in range(len(values))] == [2, 1, 3, 5, 4]


@pytest.mark.parametrize(
    ("form", "unit"), [({"length_normalized": True}, "nats per token"), ({"length_normalized": False}, "nats")]
)
def test_the_unit_of_a_margin_is_that_of_the_reward(tmp_path: Path, form: dict[str, bool], unit: str) -> None:
    settings = SelectStage.model_construct(reward_form={"reference": True, **form})
    assert Selection(tmp_path, settings, {}).unit == unit
