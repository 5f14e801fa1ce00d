"""The claims of a table: one test each, corrected for their number, and what their seeds could have told."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from scipy import stats

from handbook_ext.objectives.metrics import Scores
from handbook_ext.recipes.table_files import Claim, Table, TableRow
from handbook_ext.reports.claims import judge_claims
from handbook_ext.reports.evaluations import Evaluator, Json
from handbook_ext.reports.pages import render_table
from handbook_ext.reports.table_summary import RowRuns, TableNumbers
from handbook_ext.reports.tables import Measured

PROMPTS = 100
ALONE = (0.60, 0.68, 0.57, 0.62)
"""Win rates by seed whose p is 0.015: enough for one claim, too little for the first of four."""
CERTAIN, EVEN = (0.79, 0.80, 0.81, 0.80), (0.5, 0.6, 0.4, 0.52)


def row(name: str, wins: Sequence[float]) -> Measured:
    """A row that wins this share of its prompts in each seed against the row `middle`, whose rewards are 0."""
    scores = [
        Scores(
            tuple(f"{seed} {number}" for number in range(PROMPTS)),
            np.where(np.arange(PROMPTS) < round(share * PROMPTS), 1.0, -1.0) if name != "middle" else np.zeros(PROMPTS),
            np.ones(PROMPTS),
        )
        for seed, share in enumerate(wins)
    ]
    evaluators = [Evaluator(seed, "oracle", "") for seed in range(len(wins))]
    return Measured(TableRow(name=name, recipe="r"), "iter1", {"sampled": scores}, {"sampled": scores}, {}, evaluators, [])


def judged(*wins: Sequence[float], turned: bool = False) -> list[Json]:
    """The claims that rows with these win rates beat the middle one, or that it beats them."""
    rows = {f"row {place}": row(f"row {place}", each) for place, each in enumerate(wins)}
    names = [("middle", name) if turned else (name, "middle") for name in rows]
    claims = [Claim(better=better, worse=worse, words=f"{better} beats {worse}.") for better, worse in names]
    middle = row("middle", [0] * len(wins[0]))
    return judge_claims(claims, rows | {"middle": middle}, "sampled", resamples=200, confidence=0.95)


def test_a_claim_that_only_its_own_interval_supports_cannot_be_told() -> None:
    p = stats.ttest_1samp(ALONE, 0.5).pvalue
    [alone] = judged(ALONE)
    assert (alone["verdict"], alone["tests"]) == ("agrees", 1)
    assert alone["p"] == alone["p_holm"] == pytest.approx(p)
    first, *others = judged(ALONE, EVEN, EVEN, EVEN)
    assert (first["verdict"], first["tests"], first["p_holm"]) == ("cannot tell (would hold alone)", 4, pytest.approx(4 * p))
    assert {each["verdict"] for each in others} == {"cannot tell"}
    assert judged(ALONE, EVEN, EVEN, EVEN, turned=True)[0]["verdict"] == "cannot tell (the opposite would hold alone)"


def test_a_claim_that_is_certain_spends_no_more_than_its_own_step() -> None:
    """Holm: the smallest of four p-values is held against a quarter of the level, what is left against a third."""
    sure, weak, *_ = judged(CERTAIN, ALONE, EVEN, EVEN)
    assert (sure["verdict"], weak["verdict"]) == ("agrees", "agrees")
    assert weak["p_holm"] == pytest.approx(3 * weak["p"])


def test_the_detectable_difference_is_at_the_corrected_level() -> None:
    [alone], [of_four, *_] = judged(EVEN), judged(EVEN, EVEN, EVEN, EVEN)
    assert 1.3 < of_four["detectable"] / alone["detectable"] < 2.0
    assert (
        alone["told"] == f"a difference of {100 * alone['detectable']:.1f} points would have been told in 80 of 100 such tables"
    )
    assert judged((0.1, 0.9, 0.4, 0.6))[0]["told"].startswith("seeds differ so much that no difference")


def test_a_claim_of_one_seed_is_not_tested_and_corrects_no_other() -> None:
    [one] = judged(ALONE[:1])
    assert one["verdict"] == "one seed, no verdict"
    assert not {"p", "p_holm", "tests", "detectable"} & {*one}


def test_a_table_without_a_difference_seldom_finds_one() -> None:
    """Four claims over three seeds that scatter by 8 points: some verdict in at most 5 of 100 tables, uncorrected in more."""
    rng = np.random.default_rng(3)
    tables = [judged(*np.clip(rng.normal(0.5, 0.08, (4, 3)), 0, 1)) for _ in range(60)]
    found = [{each["verdict"].partition(" (")[0] for each in table} for table in tables]
    assert np.mean([bool({"agrees", "disagrees"} & each) for each in found]) <= 0.07
    assert np.mean([any("alone" in each["verdict"] for each in table) for table in tables]) >= 0.08


def test_the_page_has_the_smallest_difference_beside_each_verdict_and_how_many_claims_were_corrected(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("handbook_ext.reports.table_figures.draw_figures", lambda numbers: ({}, {}))

    def page(*wins: Sequence[float]) -> str:
        claims = judged(*wins)
        table = Table(title="t", source="s", rows=[TableRow(name="row 0", recipe="r")], model="tiny")
        numbers = TableNumbers(table, {"row 0": RowRuns("sft", "iter1", [])}, {}, [SHOWN], claims, ["sampled"], {}, {},
                               {"resamples": 200, "confidence": 0.95})  # fmt: skip
        return render_table(numbers, [1, 2])["table.md"].decode()

    text = page(ALONE, EVEN, EVEN, EVEN)
    assert (
        "- row 0 beats middle. The tiny world **cannot tell (would hold alone)**: row 0 wins 61.8 [" in text
        and "] % against middle, sampled; p 0.015, corrected 0.06; a difference of " in text
        and "corrected for the 4 claims of this table (Holm)" in text
    )
    assert text.count(" points would have been told in 80 of 100 such tables.\n") == 4
    single = page(ALONE[:1])
    assert "would have been told" not in single and "Claims:" not in single
    assert "corrected" not in page(ALONE)


SHOWN = {
    "name": "row 0", "policy": "iter1", "paper": "-", "x": None,
    "decodings": {"sampled": dict.fromkeys(("reward", "tokens", "win_rate"), None)},
}  # fmt: skip
