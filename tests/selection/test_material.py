"""What rules are given: the portion of an iteration, samples by prompt, and log-probs out of the stores."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from handbook_ext.core.errors import UserError
from handbook_ext.core.records import OfflinePair
from handbook_ext.selection.keep_by import KEEP_BY
from handbook_ext.selection.log_prob_store import LogProb, ScoreStore, read_stores, reference_sums, store_row
from handbook_ext.selection.material import Material, Needs, by_prompt, portion, require
from tests.selection.rows import offline, samples


def test_portions_are_equal_consecutive_and_disjoint() -> None:
    """Seven rows in three portions: two each, and the last row is left unused."""
    assert [numbers(portion(raw(7), index, 3)) for index in range(3)] == [[0, 1], [2, 3], [4, 5]]
    assert numbers(portion(raw(2), 0, 1)) == [0, 1]
    assert numbers(portion(raw(2), 1, 2)) == [1]
    with pytest.raises(UserError, match=r"^data.portions: 2 rows cannot make 3 portions; lower it or give more rows$"):
        portion(raw(2), 0, 3)


def test_a_dropped_row_makes_its_portion_smaller_and_moves_no_other_row() -> None:
    """SELM's code slices the raw split: its second portion begins at the same row whatever a first one has lost."""
    assert [numbers(portion(raw(7, 0, 4), index, 3)) for index in range(3)] == [[1], [2, 3], [5]]
    assert numbers(portion(raw(7, 6), 2, 3)) == [4, 5]
    with pytest.raises(UserError, match=r"^data.portions: all 2 rows of portion 2 of 3 were dropped; lower it, or see"):
        portion(raw(7, 2, 3), 1, 3)


def test_a_portion_has_so_many_rows_at_most() -> None:
    assert [numbers(portion(raw(9, 3), index, 2, 3)) for index in range(2)] == [[0, 1, 2], [4, 5]]
    assert numbers(portion(raw(9), 1, 2, 9)) == [4, 5, 6, 7]  # No more than there are.
    assert numbers(portion(raw(9), 0, 1, 2)) == [0, 1]


def test_rows_of_an_earlier_version_make_one_portion_alone() -> None:
    assert numbers(portion([offline(0)], 0, 1)) == [0]
    with pytest.raises(UserError, match=r"^data.portions: the rows do not say where .*; delete data/rows and run make$"):
        portion([offline(0), offline(0)], 0, 2)


def raw(count: int, *dropped: int) -> list[OfflinePair]:
    """What is kept of so many raw rows."""
    return [offline(raw_row=number, raw_rows=count) for number in range(count) if number not in dropped]


def numbers(rows: list[OfflinePair]) -> list[int]:
    """The places of rows in the raw data."""
    return [row.raw_row for row in rows]


def test_samples_are_gathered_by_prompt_in_their_order() -> None:
    rows = [*samples(1, "a", "b"), *samples(0, "c"), *samples(1, "d")]
    found = by_prompt(rows)
    assert {name: [row.text for row in each] for name, each in found.items()} == {"p1": ["a", "b", "d"], "p0": ["c"]}
    with pytest.raises(KeyError):
        found["p2"]


def test_a_rule_needs_nothing_but_what_it_names() -> None:
    assert set(asdict(Needs()).values()) == {False}
    assert (Needs().log_probs, Needs().margins) == (False, False)


def test_a_row_without_what_a_rule_asks_of_the_data_is_named_by_its_place() -> None:
    scored = offline(0, score_chosen=0.0, score_rejected=-1.0)
    require(scored, "data_scores")
    require(offline(0, answers=[("a", 1.0)]), "rated_answers")
    assert KEEP_BY["score_gap"].value(scored, Material([scored])) == 1.0
    for row, where in ((offline(0, score_chosen=1.0), "p0"), (offline(0, score_rejected=1.0, source="f:3"), "f:3")):
        with pytest.raises(UserError, match=rf"^{where}: the selection needs score_chosen and score_rejected"):
            require(row, "data_scores")
        with pytest.raises(UserError, match=rf"^{where}: the selection needs several rated answers per prompt"):
            require(row, "rated_answers")


def test_the_seeded_draw_of_a_pair_is_fixed() -> None:
    """It belongs to the results: another draw would keep other pairs of the same run."""
    draws = [KEEP_BY["random"].value(offline(number), Material([], seed=0, iteration="iter2")) for number in (0, 1)]
    assert draws == [0.8788114143027546, 0.5068689010400835]
    assert KEEP_BY["random"].value(offline(0), Material([], seed=1, iteration="iter2")) != draws[0]
    assert KEEP_BY["random"].value(offline(0), Material([], seed=0, iteration="iter3")) != draws[0]


def write_store(folder: Path, *rows: dict[str, Any], name: str = "a.jsonl") -> Path:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_a_row_of_the_store_has_sum_and_mean_over_tokens() -> None:
    row = store_row("policy", "completion", -6.0, 4)
    assert row == {"policy": "policy", "completion": "completion", "sum": -6.0, "mean": -1.5, "tokens": 4}


def test_stores_are_read_together(tmp_path: Path) -> None:
    one = write_store(tmp_path / "one", store_row("p", "a", -6.0, 4), store_row("q", "a", -7.0, 4))
    write_store(one, store_row("p", "b", -1.0, 1), name="b.jsonl")
    (one / "manifest.json").write_text("{}")
    two = write_store(tmp_path / "two", store_row("p", "c", -2.0, 2))
    store = read_stores([one, two])
    assert store.values == {
        "p": {"a": LogProb(-6.0, 4), "b": LogProb(-1.0, 1), "c": LogProb(-2.0, 2)}, "q": {"a": LogProb(-7.0, 4)}
    }  # fmt: skip
    assert (store.entries, store.under("r"), store.of("p", "c")) == (4, {}, LogProb(-2.0, 2))
    assert ScoreStore().entries == 0
    with pytest.raises(UserError, match=r"^the score store lacks completion c under policy q; run make, which scores it$"):
        store.of("q", "c")
    with pytest.raises(UserError, match=r"lacks completion a under policy 0123456789ab; run"):
        store.of("0123456789abcdef", "a")


def test_a_completion_that_a_policy_scored_twice_is_refused_with_its_line(tmp_path: Path) -> None:
    one = write_store(tmp_path / "one", store_row("0123456789abcdef", "a", -6.0, 4))
    two = write_store(tmp_path / "two", store_row("x", "a", -6.0, 4), store_row("0123456789abcdef", "a", -6.0, 4))
    with pytest.raises(UserError) as caught:
        read_stores([one, two])
    assert str(caught.value) == (
        f"{two}/a.jsonl:2: completion a is scored twice by policy 0123456789ab; delete {two} and run make"
    )


def test_training_reads_the_sums_of_the_policy_that_it_starts_from(tmp_path: Path) -> None:
    folder = write_store(
        tmp_path / "one", store_row("p", "a", -6.0, 4), store_row("q", "a", -7.0, 4), store_row("p", "b", -1.0, 1)
    )
    assert reference_sums(folder, "p") == {"a": -6.0, "b": -1.0}
    with pytest.raises(UserError, match=r"one: holds nothing under policy 0123456789ab, from which training starts; run make$"):
        reference_sums(folder, "0123456789abcdef")
