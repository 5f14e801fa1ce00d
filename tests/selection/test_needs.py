"""The table of rules: what each one reads, which decides the stages that come before selection."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from handbook_ext.core.errors import UserError
from handbook_ext.objectives.losses import LOSSES
from handbook_ext.recipes.settings import SelectSettings, TrainSettings
from handbook_ext.selection.rules import KEEP_BY, LABELS, RULES, Material, Needs, needs_of, select_pairs
from tests.selection.rows import offline


def needs(rule: str, **settings: Any) -> set[str]:
    """The names of what a rule reads."""
    found = needs_of(SelectSettings(rule=rule, **settings))
    return {name for name, needed in asdict(found).items() if needed}


OFFLINE, SAMPLES = {"offline_log_probs", "offline_margins"}, {"samples", "sample_log_probs", "sample_margins"}


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("dataset", set()),
        ("best_and_worst", {"samples", "rankings"}),
        ("against_chosen", {"samples", "rankings", "offline_ranked"}),
        ("curriculum", {"rated_answers"}),
        ("gold_over_sample", {"samples"}),
    ],
)
def test_what_a_rule_reads_besides_the_offline_pairs(rule: str, expected: set[str]) -> None:
    assert needs(rule) == expected
    assert needs(rule, keep=0, bootstrap=1, keep_by="score_gap") == expected  # SeRA's settings mean nothing to it.


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"keep": 0.7, "bootstrap": 0.3, "keep_by": "margin"}, OFFLINE | SAMPLES),
        ({"keep": 0.7, "bootstrap": 0, "keep_by": "margin"}, OFFLINE),
        ({"keep": 0, "bootstrap": 1, "keep_by": "margin"}, SAMPLES),
        ({"keep": 0.7, "bootstrap": 0, "keep_by": "log_prob"}, {"offline_log_probs"}),
        ({"keep": 0.7, "bootstrap": 0, "keep_by": "chosen_log_prob"}, {"offline_log_probs"}),
        ({"keep": 0.7, "bootstrap": 0.3, "keep_by": "log_prob"}, {"offline_log_probs"} | SAMPLES),
        ({"keep": 0, "bootstrap": 0.3, "keep_by": "log_prob"}, SAMPLES),
        ({"keep": 0.7, "bootstrap": 0, "keep_by": "score_gap"}, {"data_scores"}),
        ({"keep": 0, "bootstrap": 1, "keep_by": "score_gap"}, SAMPLES),
        # Offline answers are scored as well: a prompt that is too long for the policy is left out of both.
        ({"keep": 0.7, "bootstrap": 0.3, "keep_by": "score_gap"}, {"data_scores", "offline_log_probs"} | SAMPLES),
        ({"keep": 0.7, "bootstrap": 0.3, "keep_by": "random"}, {"offline_log_probs"} | SAMPLES),
        ({"keep": 0.7, "bootstrap": 0, "keep_by": "random"}, set()),
        ({"keep": 0.7, "bootstrap": 0, "keep_by": "chosen_length"}, set()),
        ({"keep": 0, "bootstrap": 0, "keep_by": "margin"}, set()),
        # A ranker that labels own pairs judges samples first; a coin needs nothing, nor does a label of no pair.
        ({"keep": 0, "bootstrap": 0.3, "bootstrap_labels": "ranker"}, SAMPLES | {"rankings"}),
        ({"keep": 0, "bootstrap": 0.3, "bootstrap_labels": "coin"}, SAMPLES),
        ({"keep": 0.7, "bootstrap": 0, "bootstrap_labels": "ranker"}, OFFLINE),
    ],
)
def test_what_sera_reads_depends_on_its_shares_and_on_keep_by(settings: dict[str, Any], expected: set[str]) -> None:
    assert needs("sera", **settings) == expected


@pytest.mark.parametrize("name", ["offline_log_probs", "sample_log_probs", "offline_margins", "sample_margins"])
def test_log_probs_of_any_kind_put_scoring_before_selection(name: str) -> None:
    found = replace(Needs(), **{name: True})
    assert (found.log_probs, found.margins) == (True, name.endswith("margins"))
    assert not Needs(samples=True, rankings=True, data_scores=True, rated_answers=True).log_probs


@pytest.mark.parametrize("table", [RULES, KEEP_BY, LABELS, LOSSES])
def test_the_documentation_of_recipes_has_every_row(table: dict[str, Any]) -> None:
    text = Path(__file__).parents[2].joinpath("recipes/README.md").read_text(encoding="utf-8")
    assert [name for name in table if f"`{name}`" not in text] == []


def test_an_option_of_a_loss_is_a_setting_with_the_same_default() -> None:
    settings = TrainSettings(learning_rate=1e-3, global_batch_size=8, per_device_train_batch_size=8, max_length=64, beta=0.1)
    stated = {name: value for loss in LOSSES.values() for name, value in loss.options.items()}
    assert stated and {name: getattr(settings, name) for name in stated} == stated


@pytest.mark.parametrize("table", [RULES, KEEP_BY])
def test_every_row_has_one_line_for_docs_and_messages(table: dict[str, Any]) -> None:
    assert all(row.summary and "\n" not in row.summary for row in table.values())


def test_a_name_that_the_tables_do_not_have_is_refused_with_those_they_have() -> None:
    # As a notebook may give it: a recipe's names are checked before.
    unknown = SelectSettings().model_copy(update={"rule": "best_of_both"})
    with pytest.raises(UserError, match=r"select.rule: 'best_of_both' is not part of this version; it has: dataset, best_and"):
        needs_of(unknown)
    unknown = SelectSettings().model_copy(update={"keep_by": "beauty"})
    with pytest.raises(UserError, match=r"select.keep_by: 'beauty' is not part of this version; it has: margin, score_gap"):
        select_pairs(Material([offline()]), unknown)
    unknown = SelectSettings().model_copy(update={"bootstrap_labels": "dice"})
    with pytest.raises(UserError, match=r"select.bootstrap_labels: 'dice' is not part of this version; it has: margin, ranker,"):
        needs_of(unknown)
