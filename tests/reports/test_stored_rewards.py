"""Implicit rewards from the stores: terms by hand, references, lengths, and what was never scored."""

from __future__ import annotations

from pathlib import Path

import pytest

from handbook_ext.core.jsonl import write_rows
from handbook_ext.reports.stored_rewards import rewards_by_term, stored_log_probs
from handbook_ext.selection.log_prob_store import LogProb, store_row

NAMES = {"h0": "sft", "h1": "iter1", "h2": "iter2"}
STORED = {
    "h0": {"a": LogProb(-9.0, 4), "b": LogProb(-9.0, 4)},
    "h1": {"a": LogProb(-8.0, 4), "b": LogProb(-8.0, 4)},
    "h2": {"a": LogProb(-4.0, 4)},
}
ENSEMBLE = [
    {"weight": 0.7, "policy": "iter2", "reference": "iter1"},
    {"weight": 0.3, "policy": "iter1", "reference": "sft"},
]


def test_the_ensemble_weighs_the_margins_of_two_policies() -> None:
    """0.7 (-4 + 8) + 0.3 (-8 + 9) nats; b was not scored by the latest policy."""
    found = rewards_by_term({"terms": ENSEMBLE}, ["a", "b", "c"], STORED, NAMES)
    assert found["a"]["value"] == pytest.approx(0.7 * 4.0 + 0.3 * 1.0)
    assert [part["value"] for part in found["a"]["parts"]] == [4.0, 1.0]
    assert (found["b"]["value"], len(found["b"]["parts"])) == (None, 1)
    assert "c" not in found


def test_a_reward_may_be_per_token_or_without_a_reference() -> None:
    form = {"reference": True, "length_normalized": True}
    assert rewards_by_term({"terms": ENSEMBLE, "reward_form": form}, ["a"], STORED, NAMES)["a"]["value"] == pytest.approx(3.1 / 4)
    alone = {"terms": [{"weight": 1.0, "policy": "iter2", "reference": None}], "reward_form": {"reference": False}}
    found = rewards_by_term(alone, ["a"], STORED, NAMES)["a"]
    assert (found["value"], found["parts"][0]["reference_log_prob"]) == (-4.0, None)
    assert rewards_by_term({"terms": []}, ["a"], STORED, NAMES) == rewards_by_term({}, ["a"], STORED, NAMES) == {}


def test_only_the_wanted_completions_are_read(tmp_path: Path) -> None:
    write_rows(tmp_path / "shard-000000.jsonl", [store_row("h0", name, -1.5, 3) for name in ("a", "b")])
    write_rows(tmp_path / "shard-000001.jsonl", [store_row("h1", "a", -2.0, 3)])
    assert stored_log_probs([tmp_path], ["a"]) == {"h0": {"a": LogProb(-1.5, 3)}, "h1": {"a": LogProb(-2.0, 3)}}
