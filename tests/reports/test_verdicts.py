"""The verdict about a value of ours: the rule by cases, its noise from the papers' own numbers, and a table's sentence."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from handbook_ext.evaluation.set_evaluation import Decoding, Grader
from handbook_ext.reports.measurements import Filling, Lack, Measurement, normal_interval, normal_quantile
from handbook_ext.reports.paper_claims import claim_rule, claims_in_ours, summary_of
from handbook_ext.reports.paper_headings import Column
from handbook_ext.reports.paper_tables import paper_table_names, read_paper_table
from handbook_ext.reports.paper_verdicts import (
    LC,
    MT_BENCH,
    against_paper,
    judged,
    margin_of,
    paper_error,
    pipeline_spread,
    rule_in_words,
    run_to_run_error,
    scale_of,
)
from handbook_ext.reports.verdicts import Noise, Verdict, beats, verdict_of

Z = normal_quantile(0.95)
SELM1 = read_paper_table("selm1")
GPT4 = Grader(model="gpt-4-1106-preview", kind="alpaca_eval")
ROWS = ("SELM Iter 3 (Zephyr)", "DPO Iter 3 (Zephyr)")
CELL = ("Zephyr-7B", ROWS[0], LC)


def of(value: float, error: float = 0.9, **more: object) -> Measurement:
    """A value with a normal interval, by the paper's judge unless something else is said."""
    low, high = normal_interval(value, error)
    return replace(Measurement(value, low, high, over_prompts=error, n=805, prompts=805, of=805, judge=GPT4), **more)


@pytest.mark.parametrize(("difference", "errors", "margin", "word"), [
    # No noise at all: equal or within the margin, its ends included, or beyond.
    (0.0, (0, 0, 0), 0.0, "reproduced"), (5.0, (0, 0, 0), 5.0, "reproduced"), (-5.0, (0, 0, 0), 5.0, "reproduced"),
    (5.1, (0, 0, 0), 5.0, "not reproduced"), (-5.1, (0, 0, 0), 5.0, "not reproduced"),
    # An interval of 1 to either side: within 5 up to 4, beyond noise from 1 on.
    (0.0, (1 / Z, 0, 0), 5.0, "reproduced"), (3.9, (1 / Z, 0, 0), 5.0, "reproduced"), (4.1, (1 / Z, 0, 0), 5.0, "not reproduced"),
    # A wide interval that holds 0 shows nothing, however near the value lies; one that does not, a difference.
    (0.0, (6 / Z, 0, 0), 5.0, "within noise"), (5.9, (6 / Z, 0, 0), 5.0, "within noise"),
    (6.1, (6 / Z, 0, 0), 5.0, "not reproduced"), (-6.1, (6 / Z, 0, 0), 5.0, "not reproduced"),
    # Each of the three errors counts alike, and their squares add up: 3, 4 and 12 are 13.
    (0.0, (0, 6 / Z, 0), 5.0, "within noise"), (0.0, (0, 0, 6 / Z), 5.0, "within noise"),
    (12.9, (3 / Z, 4 / Z, 12 / Z), 5.0, "within noise"), (13.1, (3 / Z, 4 / Z, 12 / Z), 5.0, "not reproduced"),
    (1.9, (3 / Z, 4 / Z, 12 / Z), 15.0, "reproduced"), (2.1, (3 / Z, 4 / Z, 12 / Z), 15.0, "within noise"),
])  # fmt: skip
def test_the_rule(difference: float, errors: tuple[float, float, float], margin: float, word: str) -> None:
    found = verdict_of(difference, Noise(*errors), margin)
    assert found.word == word
    half = Z * math.hypot(*errors)
    assert (found.low, found.high) == pytest.approx((difference - half, difference + half))


@given(*(st.floats(low, high, allow_subnormal=False) for low, high in ((-50, 50), (0, 20), (0, 20))))
def test_every_difference_has_one_verdict_whichever_side_it_lies(difference: float, error: float, margin: float) -> None:
    both = [verdict_of(sign * difference, Noise(error), margin).word for sign in (1, -1)]
    assert both[0] == both[1]
    half = Z * error
    inside, holds_zero = abs(difference) + half <= margin, abs(difference) <= half
    # Where rounding decides, either is right.
    if abs(abs(difference) + half - margin) > 1e-9 and abs(abs(difference) - half) > 1e-9:
        assert both[0] == ("reproduced" if inside else "within noise" if holds_zero else "not reproduced")


def test_another_confidence_is_another_interval_and_negative_numbers_are_none() -> None:
    assert verdict_of(1.0, Noise(1.0), 3.0, 0.95).word == "reproduced"
    assert verdict_of(1.0, Noise(1.0), 3.0, 0.99).word == "within noise"
    for noise, margin in ((Noise(-1.0), 1.0), (Noise(1.0, -1.0), 1.0), (Noise(1.0, 1.0, -1.0), 1.0), (Noise(1.0), -1.0)):
        with pytest.raises(ValueError, match="must not be negative"):
            verdict_of(0.0, noise, margin)


@pytest.mark.parametrize(("difference", "word"), [(2.1, "yes"), (-2.1, "no"), (1.9, "cannot tell"), (0.0, "cannot tell")])
def test_a_claim_needs_an_interval_without_zero(difference: float, word: str) -> None:
    assert beats(difference, 2 / Z) == word


def test_the_spread_of_judge_and_pipeline_is_that_of_the_cards_and_the_table() -> None:
    """By hand: -0.96, -0.24, 1.56, -0.25 of Zephyr, and 1.39, 0.93, 2.12, -1.20 of Llama-3."""
    gaps = [-0.96, -0.24, 1.56, -0.25, 1.39, 0.93, 2.12, -1.20]
    root, least, greatest, count = pipeline_spread(LC)
    assert (least, greatest, count) == pytest.approx((0.24, 2.12, 8))
    assert root == pytest.approx(math.sqrt(sum(gap**2 for gap in gaps) / 8)) == pytest.approx(1.235, abs=1e-3)
    assert pipeline_spread(MT_BENCH)[0] == pytest.approx(0.1004, abs=1e-4)


def column(name: str, table: str = "selm1") -> Column:
    return next(each for each in read_paper_table(table).heading.columns if each.name == name)


def test_the_papers_error_is_the_published_one_or_ours_on_the_whole_set() -> None:
    assert paper_error(column(LC), of(24.0, 3.0)) == 0.85
    assert paper_error(column("AlpacaEval 2 WR"), of(24.0, 1.5)) == 1.5
    # A quarter of the prompts has twice the error; several seeds do not know the prompts better.
    part = of(24.0, 3.0, prompts=201, of=804)
    assert paper_error(column("AlpacaEval 2 WR"), part) == pytest.approx(1.5)
    assert paper_error(column(LC, "selm-deltas"), of(16.0)) == pytest.approx(0.85 * math.sqrt(2))


def test_scales_and_margins_follow_from_the_measure() -> None:
    assert [scale_of(column(name)) for name in (LC, MT_BENCH, "AlpacaEval 2 length")] == [100.0, 9.0, None]
    assert [margin_of(column(name), 1694) for name in (LC, MT_BENCH, "AlpacaEval 2 length")] == pytest.approx([5.0, 0.45, 84.7])
    assert scale_of(column("EQ-Bench, 0-shot", "selm2")) == 100.0
    assert (scale_of(column("Vicuna single", "sera1")), scale_of(column("Vicuna vs SFT", "sera1"))) == (9.0, 100.0)
    assert run_to_run_error(column(MT_BENCH)) == run_to_run_error(column("Vicuna single", "sera1")) < run_to_run_error(column(LC))
    assert run_to_run_error(column("AlpacaEval 2 length")) == run_to_run_error(column("average", "selm2")) == 0.0


@pytest.mark.parametrize(("ours", "model", "word", "why"), [
    (of(24.3, 0.1), None, "reproduced", ""),
    (of(24.3, 3.0), None, "within noise", ""),
    (of(33.0), None, "not reproduced", ""),
    (of(24.3, 0.1, judge=Grader(model="openai/gpt-4-1106-preview", kind="x")), None, "reproduced", ""),
    (of(24.3, 0.1, judge=Grader(model="qwen2.5-72b", kind="x")), None, "not comparable", "another judge: qwen2.5-72b"),
    (of(24.3, 0.1, judge=Grader(model="gpt-4-1106-preview-local", kind="x")), None, "not comparable", "another judge"),
    (of(24.3, 0.1), "tiny", "not comparable", "another model: tiny"),
    (of(24.3, 0.1, way="none"), None, "not comparable", "no interval"),
])  # fmt: skip
def test_a_cell_can_be_compared_or_says_why_not(ours: Measurement, model: str | None, word: str, why: str) -> None:
    found = against_paper(SELM1, CELL, ours, model)
    assert (found.word, found.why.startswith(why)) == (word, True)
    assert found.difference == pytest.approx(ours.value - 24.25)


def test_nothing_of_another_model_is_ever_reproduced() -> None:
    """Not even the paper's own numbers, measured without any noise."""
    for name in paper_table_names():
        table = read_paper_table(name)
        exact = {
            key: Measurement(cell.number, cell.number, cell.number, judge=GPT4, seeds=3)
            for key, cell in table.grid.items()
            if table.stand(*key) is not None and cell.number is not None
        }
        words = {each.word for each in judged(table, Filling(exact, model="tiny")).cells.values()}
        assert words <= {"not comparable"}, name
        if exact and name != "sera6":
            words = {
                each.word for each in judged(table, Filling({k: replace(v, judge=None) for k, v in exact.items()})).cells.values()
            }
            assert words <= {"reproduced", "within noise"}, name


def test_evaluation_and_training_are_told_apart_by_the_released_checkpoint() -> None:
    """Ours is 4 below the paper; the released checkpoint too, so it is the evaluation, and training is sound."""
    ours, released = of(20.0, 0.2), of(20.1, 0.2)
    found = judged(SELM1, Filling({CELL: ours}, released={CELL: released}))
    assert found.cells[CELL].word == found.evaluation[CELL].word == "not reproduced"
    assert (found.training[CELL].word, found.training[CELL].difference) == ("reproduced", pytest.approx(-0.1))
    # Under another judge the paper's number means nothing, but the two of ours can still be compared.
    local = Grader(model="local", kind="x")
    found = judged(SELM1, Filling({CELL: replace(ours, judge=local)}, released={CELL: replace(released, judge=local)}))
    assert [each[CELL].word for each in (found.cells, found.evaluation, found.training)] == ["not comparable"] * 2 + [
        "reproduced"
    ]
    # Two judges of ours are no pair.
    found = judged(SELM1, Filling({CELL: ours}, released={CELL: replace(released, judge=local)}))
    assert found.training[CELL].word == "not comparable"
    # Nor are two decodings.
    greedy, sampled = (Decoding(temperature=each, top_p=1.0, max_new_tokens=9) for each in (0.0, 0.7))
    found = judged(SELM1, Filling({CELL: replace(ours, decoding=greedy)}, released={CELL: replace(released, decoding=sampled)}))
    assert found.training[CELL].word == "not comparable"


def test_one_seed_borrows_the_run_to_run_variance_or_has_no_verdict() -> None:
    """Where two releases of the authors give one, it is in the interval and said; else no number of prompts is a verdict."""
    filling = Filling({CELL: of(24.25, 0.01)})
    found = against_paper(SELM1, CELL, filling.ours[CELL])
    assert found.high == pytest.approx(Z * math.hypot(0.01, 0.85, run_to_run_error(column(LC))))
    assert any(line.startswith("One seed (1 cell): the interval is over prompts alone") for line in rule_in_words(SELM1, filling))
    several = Filling({CELL: of(24.25, 0.01, seeds=3)})
    assert not any(line.startswith("One seed") for line in rule_in_words(SELM1, several))
    # So it is beside the released checkpoint.
    one, three = (
        judged(SELM1, Filling({CELL: of(20.0, 0.2, seeds=seeds)}, released={CELL: of(20.1, 0.2)})).training[CELL]
        for seeds in (1, 3)
    )
    assert one.high - one.low == pytest.approx(math.hypot(three.high - three.low, 2 * Z * run_to_run_error(column(LC))))
    table = read_paper_table("selm2")
    key = next(each for each in table.grid if each[2] == "average" and table.stand(*each) is not None)
    exact = replace(of(float(table.grid[key].number or 0), 0.001), judge=None)
    assert against_paper(table, key, exact).why.startswith("one seed")
    assert against_paper(table, key, replace(exact, seeds=3)).word == "reproduced"
    # The authors' own checkpoint was trained once, by them: there is no seed of ours in it.
    assert against_paper(table, key, replace(exact, checkpoint="org/name")).word == "reproduced"
    released = replace(exact, checkpoint="org/name")
    assert judged(table, Filling({key: exact}, released={key: released})).training[key].word == "not comparable"


def test_a_table_is_summed_up_in_one_sentence() -> None:
    keys = [("Zephyr-7B", row, LC) for row in ROWS]
    ours = {keys[0]: of(24.3, 0.2, seeds=3), keys[1]: of(21.9, 0.2, seeds=3)}
    lacks = {("Zephyr-7B", ROWS[0], MT_BENCH): Lack("no judge")}
    filling = Filling(ours, lacks)
    found = summary_of(SELM1, filling, judged(SELM1, filling))
    assert found == (
        "2 of 3 cells were run: 2 reproduced; SELM beats iterative DPO at iteration 3 (Zephyr): +2.06 in the paper, "
        "+2.40 [+1.85, +2.95] in ours (yes; a difference of 0.79 would have been told in 80 of 100 such tables); "
        "SELM beats iterative DPO at iteration 3 (Llama-3): +1.50 in the paper, "
        "not run in ours."
    )
    single = Filling({keys[0]: of(24.3, 0.2), keys[1]: of(21.9, 0.2, seeds=3)})
    [words] = claims_in_ours(SELM1, single, SELM1.heading.claims[:1])
    half = Z * math.hypot(0.2, 0.2, run_to_run_error(column(LC)))
    assert f"[{2.4 - half:+.2f}, {2.4 + half:+.2f}] in ours (cannot tell; one seed, run-to-run variance borrowed; a diff" in words
    weak = Filling({keys[0]: of(24.3, seeds=2), keys[1]: of(24.0, seeds=2)})
    assert "(cannot tell; a difference of " in claims_in_ours(SELM1, weak, SELM1.heading.claims[:1])[0]
    assert summary_of(SELM1, Filling(), judged(SELM1, Filling())) == "No cell of ours: the rows are quoted alone."
    assert judged(SELM1, Filling(lacks=lacks)).cells == {("Zephyr-7B", ROWS[0], MT_BENCH): Verdict("not run", why="no judge")}


def test_claims_of_a_printed_table_are_corrected_for_how_many_of_them_have_values_of_ours() -> None:
    """Errors of 1 and 1: 3.1 points are beyond 1.96 times their root (2.77), and within what the first of two asks for (3.17)."""
    of_zephyr, of_llama = SELM1.heading.claims[:2]
    ours = {}
    for claim, gap in ((of_zephyr, 3.1), (of_llama, 0.5)):
        ours |= {(claim.group, row, LC): of(20 + each, 1.0, seeds=3) for row, each in ((claim.better, gap), (claim.worse, 0))}
    first, second = claims_in_ours(SELM1, Filling(ours), (of_zephyr, of_llama))
    assert "in ours (cannot tell, yes if it were alone; a difference of 4.36 would have been told" in first
    assert "in ours (cannot tell; " in second
    assert "corrected for the 2 claims with values of ours" in claim_rule(SELM1, Filling(ours))[0]
    alone = Filling({key: each for key, each in ours.items() if key[0] == of_zephyr.group})
    assert "in ours (yes; a difference of 3.96 would" in claims_in_ours(SELM1, alone, [of_zephyr])[0]
    assert "corrected" not in claim_rule(SELM1, alone)[0]
    assert claim_rule(SELM1, Filling()) == []


@pytest.mark.parametrize("name", paper_table_names())
def test_the_claims_of_a_table_hold_in_the_paper(name: str) -> None:
    table = read_paper_table(name)
    for claim in table.heading.claims:
        assert table.number(claim.group, claim.better, claim.column) > table.number(claim.group, claim.worse, claim.column)
