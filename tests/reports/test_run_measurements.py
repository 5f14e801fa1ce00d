"""Agreement of judges, hours and unreadable replies, from the files of made runs; and SeRA's tables 5 and 6 filled with them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
from scipy.stats import binomtest

from handbook_ext.core.errors import UserError
from handbook_ext.core.jsonl import write_rows
from handbook_ext.core.records import Candidate, Completion, PreferencePair, Ranking, assistant, user
from handbook_ext.reports.measurements import wilson_interval
from handbook_ext.reports.paper_measurements import read_filling
from handbook_ext.reports.paper_pages import render_paper_table
from handbook_ext.reports.paper_tables import read_paper_table
from handbook_ext.reports.run_measurements import (
    agreement,
    annotation_hours,
    chosen_pairs,
    jaccard_of_pairs,
    ranked_pairs,
    unreadable,
)
from tests.reports.test_paper_pages import markdown_rows
from tests.workspace import ROOT

TABLE = read_paper_table("sera6")
SAMPLES = ("w", "x", "y", "z")


def sample(prompt: str, text: str, place: int = 0) -> Completion:
    """A sample of a prompt."""
    columns = {"sample": place, "finish_reason": "stop", "seed": 1, "prompt_tokens": 1, "completion_tokens": 1}
    return Completion.of(prompt, user(prompt), text, **columns)


def write_samples(folder: Path, prompts: str, texts: Sequence[str] = SAMPLES) -> None:
    """Writes four samples for each prompt."""
    folder.mkdir(parents=True, exist_ok=True)
    write_rows(folder / "completions.jsonl", [sample(each, text, place) for each in prompts for place, text in enumerate(texts)])


def write_rankings(
    folder: Path, scores: Mapping[str, Sequence[float | None]], seconds: float = 7200.0, **manifest: object
) -> Path:
    """Writes rankings of the four samples by these scores, None where the judge could not be read, with their manifest."""
    write_samples(folder, "".join(scores))
    rankings = []
    for prompt, given in scores.items():
        rows = [sample(prompt, text, place) for place, text in enumerate(SAMPLES)]
        known = sorted((score for score in given if score is not None), reverse=True)
        candidates = [
            Candidate(
                origin="on_policy", sample=row.sample, text=row.text, completion_id=row.completion_id, score=score or 0.0,
                rank=len(known) if score is None else 1 + known.index(score), failed=score is None,
            )
            for row, score in zip(rows, given, strict=True)
        ]  # fmt: skip
        rankings.append(Ranking(prompt_id=prompt, prompt=user(prompt), candidates=candidates, ties=0))
    write_rows(folder / "rankings.jsonl", rankings)
    (folder / "rankings.manifest.json").write_text(json.dumps({"seconds": seconds, "counts": {"out": len(scores)}, **manifest}))
    return folder


def write_pairs(folder: Path, pairs: Mapping[str, tuple[str, str]], prompts: str, seconds: float = 360.0) -> Path:
    """Writes SeRA's pairs of own samples, an offline one beside, with samples of all prompts and the manifest of their scores."""
    write_samples(folder, prompts)
    rows = [
        PreferencePair.of(prompt, user(prompt), *map(assistant, pair)).model_copy(
            update={"chosen_origin": "on_policy", "rejected_origin": "on_policy"}
        )
        for prompt, pair in pairs.items()
    ]
    write_rows(folder / "pairs.jsonl", [*rows, PreferencePair.of("offline", user("p"), assistant("good"), assistant("bad"))])
    (folder / "logprobs").mkdir(exist_ok=True)
    (folder / "logprobs/manifest.json").write_text(json.dumps({"seconds": seconds, "counts": {"out": 4}}))
    return folder


@pytest.mark.parametrize(("ours", "theirs", "value"), [
    ({"a": ("1", "2"), "b": ("1", "2")}, {"a": ("1", "2"), "b": ("1", "2")}, 1.0),
    ({"a": ("1", "2"), "b": ("1", "2")}, {"a": ("1", "2"), "b": ("2", "1")}, 1 / 3),  # Turned round is another pair.
    ({"a": ("1", "2"), "b": ("1", "2")}, {"a": ("1", "3"), "b": ("2", "1")}, 0.0),
    # Prompts that only one of them has count for nothing: 3 of 4 alike are 3 of 5 pairs.
    ({x: ("1", "2") for x in "abcde"}, {x: ("1", "2") for x in "abc"} | {"d": ("1", "3"), "z": ("1", "2")}, 3 / 5),
])  # fmt: skip
def test_the_jaccard_similarity_of_two_judges(
    ours: dict[str, tuple[str, str]], theirs: dict[str, tuple[str, str]], value: float
) -> None:
    assert jaccard_of_pairs(ours, theirs)[0] == pytest.approx(value) == pytest.approx(jaccard_of_pairs(theirs, ours)[0])
    common = ours.keys() & theirs.keys()
    sets = [{(name, *each[name]) for name in common} for each in (ours, theirs)]
    assert value == pytest.approx(len(sets[0] & sets[1]) / len(sets[0] | sets[1]))


@pytest.mark.parametrize(("hits", "count"), [(0, 3), (3, 3), (1, 7), (40, 80), (1, 1)])
def test_an_interval_of_a_share_is_scipys_by_wilson(hits: int, count: int) -> None:
    expected = binomtest(hits, count).proportion_ci(0.95, method="wilson")
    assert wilson_interval(hits, count) == pytest.approx((expected.low, expected.high))


def test_judges_without_a_common_prompt_have_none() -> None:
    with pytest.raises(ValueError, match="no prompt in common"):
        jaccard_of_pairs({"a": ("1", "2")}, {"b": ("1", "2")})


def test_a_judge_takes_best_and_worst_and_an_iteration_its_own_pairs(tmp_path: Path) -> None:
    ids = {text: sample("a", text).completion_id for text in SAMPLES}
    judged = write_rankings(tmp_path / "judged", {"a": [3, 1, 2, 5], "b": [1, 1, 1, 1], "c": [None, 2, None, None]})
    # Where all tie, or one alone was read, nothing was told apart.
    assert ranked_pairs(judged) == {"a": (ids["z"], ids["x"])}
    sera = write_pairs(tmp_path / "sera", {"a": ("w", "z")}, "ab")
    assert chosen_pairs(sera) == {"a": (ids["w"], ids["z"])}


def test_agreement_is_of_the_same_samples_with_an_interval_over_prompts(tmp_path: Path) -> None:
    claude = write_rankings(tmp_path / "claude/iter2", {x: [4, 3, 2, 1] for x in "abcd"})
    sera = write_pairs(tmp_path / "sera/iter2", {"a": ("w", "z"), "b": ("w", "z"), "c": ("x", "z")}, "abcd")
    found = agreement(sera, claude)
    # Two of three pairs alike, on the prompts that SeRA kept: 2 of 4 different ones.
    assert (found.value, found.n, found.way) == (pytest.approx(50.0), 3, "wilson")
    assert 0 <= found.low < found.value < found.high <= 100
    itself = write_rankings(tmp_path / "self/iter2", {x: [1, 2, 3, 4] for x in "abcd"})
    assert agreement(itself, claude).value == 0.0
    write_samples(itself, "abcd", ("w", "x", "y", "other"))
    with pytest.raises(UserError, match=r"judged other samples \(12 of 20 in common\): their policies differ"):
        agreement(itself, claude)
    with pytest.raises(UserError, match="needs the recipe of another judge"):
        agreement(itself, None)


def test_hours_are_those_of_the_stage_that_marks(tmp_path: Path) -> None:
    assert annotation_hours(write_rankings(tmp_path / "judged", {"a": [1, 2, 3, 4]})).value == 2.0
    assert annotation_hours(write_pairs(tmp_path / "sera", {}, "a")).value == 0.1
    with pytest.raises(UserError, match="were taken over from runs/x, so its seconds say nothing"):
        annotation_hours(write_rankings(tmp_path / "judged", {"a": [1, 2, 3, 4]}, shared_from="runs/x"))
    with pytest.raises(FileNotFoundError):
        annotation_hours(tmp_path / "nothing")


def test_unreadable_replies_are_a_share_of_the_candidates(tmp_path: Path) -> None:
    found = unreadable(write_rankings(tmp_path / "judged", {"a": [None, 2, 3, None], "b": [1, 2, 3, 4]}))
    assert (found.value, found.n) == (25.0, 2)


def test_tables_5_and_6_are_filled_from_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    write_rankings(tmp_path / "mistral-judged-by-claude/iter2", {x: [4, 3, 2, 1] for x in "abcd"})
    write_pairs(tmp_path / "mistral-sera/iter2", {"a": ("w", "z"), "b": ("w", "z"), "c": ("w", "z")}, "abcd")
    write_rankings(tmp_path / "mistral-judged-by-self/iter2", {x: [4, 3, 1, 2] for x in "abcd"})
    write_rankings(tmp_path / "mistral-srlm/iter1", {"a": [None, 2, 3, None]})
    filling = read_filling(TABLE, tmp_path)
    rows = {cells[0]: cells[1:] for cells in markdown_rows(render_paper_table(TABLE, "md", filling))}
    assert rows["RM (implicit reward)"][0] == "74 (100 [28, 100], +26, not comparable)"  # One seed.
    assert rows["RM (implicit reward)"][2] == "4.3 (0.1, -4.2, not comparable)"
    assert rows["SRLM"][0] == "62 (0 [0, 32], -62, not comparable)"
    assert rows["SRLM"][2] == "54.6 (2.0, -52.6, not comparable)"
    table = read_paper_table("sera5")
    page = render_paper_table(table, "md", read_filling(table, tmp_path))
    assert "| Mistral-7B | inconsistent (50 [50, 50]) |" in page
    assert "| TinyLlama-1.1B | unusable (not run) |" in page


def test_what_a_run_lacks_for_table_6_says_which_run_to_make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    write_pairs(tmp_path / "mistral-sera/iter2", {"a": ("w", "z")}, "a")
    lacks = read_filling(TABLE, tmp_path).lacks
    [agree] = [
        each.reason for key, each in lacks.items() if key[1:] == ("RM (implicit reward)", "Jaccard similarity with Claude 3")
    ]
    assert agree.endswith("is not there: make mistral-judged-by-claude-iter2")


def test_a_heat_map_is_filled_from_a_matrix_of_policies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    table = read_paper_table("selm-figure2-zephyr")
    keys = [("Zephyr-7B", *pair) for pair in (("SELM3", "DPO3"), ("DPO3", "SELM3"), ("SELM3", "SELM3"), ("SELM3", "SELM2"))]
    told = read_filling(table, tmp_path)
    assert told.lacks[keys[0]].reason.endswith('make matrix OF="zephyr-selm zephyr-dpo" SETS=alpaca')
    # What a policy wins over itself is no finding.
    assert keys[2] not in told.stands and len(told.stands) == 42
    matrix = {
        "names": ["zephyr-dpo iter3", "zephyr-selm iter3"], "measure": "lc_win_rate", "values": [[50.0, 46.0], [54.0, 50.0]],
        "standard_errors": [[0.0, 0.5], [0.5, 0.0]], "missing": [[0, 5], [5, 0]], "not_run": None, "set": "alpaca",
        "judge": "gpt-4-1106-preview", "n": 805,
    }  # fmt: skip
    path = tmp_path / "matrix/alpaca/zephyr-selm+zephyr-dpo/matrix.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(matrix))
    found = read_filling(table, tmp_path)
    assert [found.ours[key].value for key in keys[:2]] == [54.0, 46.0]
    assert (found.ours[keys[0]].n, found.ours[keys[0]].missing, found.ours[keys[0]].error) == (800, 5, pytest.approx(0.5))
    assert set(found.ours) == set(keys[:2])
    # The paper's heat map is length-controlled; a plain win rate is another thing.
    path.write_text(json.dumps(matrix | {"measure": "win_rate"}))
    assert not read_filling(table, tmp_path).ours
    path.write_text(json.dumps(matrix | {"values": []}))
    with pytest.raises(UserError, match="is no usable matrix"):
        read_filling(table, tmp_path)
