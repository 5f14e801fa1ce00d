"""The parts of the comparison with the official code, without that code; and a small comparison where it is given."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from handbook_ext.core.errors import UserError
from handbook_ext.policies.templates import ZEPHYR_TEMPLATE
from tests.referee import differences
from tests.referee.expected import Layout, expected_ids
from tests.referee.material import TOKENIZERS, RawPair, grade, make_tokenizer, read_rows, stand_in
from tests.referee.official import FixedRanker, load_official
from tests.referee.ours import chosen_texts, offline_pairs, ranked, selected_pairs
from tests.referee.records import Ids, Step
from tests.referee.report import Report

LAYOUT = Layout(bos=1, eos=2, header=[7, 8], tail=[9, 2])
GIVEN = [os.environ.get(f"REFEREE_{name}") for name in ("SELM", "TRL", "PAIRS")]


def row(question: str, chosen: str, rejected: str) -> dict[str, object]:
    turn = {"role": "user", "content": question}
    sides = {name: [turn, {"role": "assistant", "content": text}] for name, text in (("chosen", chosen), ("rejected", rejected))}
    return {"prompt": question, **sides}


ROWS = [row(f"question {i}", f"a good answer {i}", f"a bad one {i}") for i in range(9)]


def write(path: Path, rows: list[dict[str, object]]) -> Path:
    path.write_text("".join(json.dumps(each) + "\n" for each in rows), encoding="utf-8")
    return path


def test_samples_stand_in_for_those_of_a_policy(tmp_path: Path) -> None:
    rows = read_rows(write(tmp_path / "rows.jsonl", [*ROWS[:8], ROWS[8] | {"sample": "given"}]), 9)
    samples = [each.sample for each in rows]
    assert samples[0] == "a good answer 0"
    assert samples[1] == "a bad one 1"
    assert samples[3] == "  a bad one 4\n\n"
    assert samples[4] == "a good answer 5"
    assert samples[8] == "given"
    assert stand_in(ROWS, 8) == "a good answer 8"
    assert len(read_rows(tmp_path / "rows.jsonl", 3)) == 3


def test_rows_that_the_official_code_misreads_are_refused(tmp_path: Path) -> None:
    bad = row("q", "a", "b")
    bad["chosen"] = [{"role": "system", "content": "s"}, *bad["chosen"]]  # type: ignore[misc]
    with pytest.raises(UserError, match=r"rows.jsonl:2: chosen and rejected must be"):
        read_rows(write(tmp_path / "rows.jsonl", [ROWS[0], bad]), 2)
    with pytest.raises(UserError, match="does not exist"):
        read_rows(tmp_path / "none.jsonl", 2)


def test_both_rankers_give_the_same_ranks() -> None:
    rows = [RawPair(number, each, stand_in(ROWS, number)) for number, each in enumerate(ROWS)]
    offline, dropped = offline_pairs(rows)
    rankings = ranked(offline, rows)
    texts = [[candidate.text for candidate in ranking.candidates] for ranking in rankings]
    theirs = FixedRanker().rank([each.prompt for each in rows], texts)
    assert theirs == [[candidate.rank for candidate in ranking.candidates] for ranking in rankings]
    assert not dropped
    assert texts[3] == ["a bad one 4", "a good answer 3", "a bad one 3"]
    best = {each.number: max(texts[each.number], key=lambda text, each=each: grade(each.prompt, text)) for each in rows}
    assert {number: found[0] for number, found in chosen_texts(rankings).items()} == best
    assert selected_pairs(offline, rankings).keys() <= set(range(9))


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_expected_ids_are_the_official_layout(kind: str) -> None:
    texts = [f"{each['prompt']} a good answer a bad one\n" for each in ROWS] * 3
    tokenizer = make_tokenizer(kind, texts, ZEPHYR_TEMPLATE)
    layout = Layout.of(tokenizer)
    limits = {"max_length": 400, "max_prompt_length": 12}
    whole = expected_ids(tokenizer, "question 1", ["a good answer", "a bad one", "question 2"], **limits)
    assert tokenizer("a")["input_ids"][0] == layout.bos == whole.prompt[0]
    assert tokenizer.decode(whole.prompt[1:]).replace("> ", ">").strip() == "<|user|>\nquestion 1</s>"
    for ids in whole[1:4]:
        assert ids[: len(layout.header)] == layout.header
        assert ids[-len(layout.tail) - 1 :] == [layout.eos, *layout.tail]
        assert layout.tail[-1] == layout.eos
    assert tokenizer.decode(layout.header).strip() == "<|assistant|>"
    # Cut to 12 tokens and still too long: all three answers are cut to what max_length leaves, the explored one by their rule.
    size = max(len(whole.chosen), len(whole.rejected))
    tight = expected_ids(
        tokenizer, "question 1", ["a good answer", "a bad one", "a good answer " * 9], max_length=size, max_prompt_length=12
    )
    assert tight.prompt == whole.prompt[-12:]
    assert {len(ids) for ids in (tight.chosen, tight.explored)} == {size - 12}
    # Fitting with the cut prompt: no answer is cut, however long the explored one is.
    loose = expected_ids(
        tokenizer, "question 1", ["a good answer", "a bad one", "a good answer " * 9], max_length=size + 12, max_prompt_length=12
    )
    assert loose.chosen == whole.chosen
    assert len(loose.explored) > size + 12


THEIRS = Ids([1, 20, 21], [7, 8, 30, 31, 2, 9, 2], [7, 8, 40, 2, 9, 2], [7, 8, 50, 2, 9, 2])
OURS = Ids([1, 20, 21, 7, 8], [30, 31, 2], [40, 2], [50, 2])


@pytest.mark.parametrize(
    ("ours", "theirs", "found"),
    [
        (THEIRS, THEIRS, []),
        (OURS, THEIRS, [differences.HEADER, differences.SECOND_END]),
        (OURS, THEIRS._replace(chosen=[7, 8, 30]), ["chosen: we keep more"]),
        (OURS, THEIRS._replace(chosen=[7, 8, 30, 31, 2, 9]), []),
        (OURS._replace(explored=[50]), THEIRS._replace(explored=[7, 8, 50, 51, 2, 9, 2]), ["explored: they keep more"]),
        (OURS, THEIRS._replace(rejected=[7, 8, 41, 2]), ["rejected: NOT EXPLAINED"]),
        (OURS, THEIRS._replace(prompt=[1, 1, 20, 21]), [differences.TWO_BOS]),
        (OURS, THEIRS._replace(rejected=[1, *THEIRS.rejected]), [differences.BOS_INSIDE]),
        (OURS, THEIRS._replace(prompt=[21]), [differences.BOS_LOST, differences.THEIR_CUT]),
        (OURS._replace(prompt=[21, 7, 8]), THEIRS, [differences.BOS_KEPT, differences.OUR_CUT]),
        (OURS._replace(prompt=[1, 20, 7, 8]), THEIRS._replace(prompt=[21]), [differences.BOS_LOST, differences.BOTH_CUT]),
        (OURS._replace(prompt=[1, 33, 7, 8]), THEIRS, ["prompt: NOT EXPLAINED"]),
        (OURS, THEIRS._replace(prompt=[1, 20]), ["prompt: NOT EXPLAINED"]),
        (OURS, THEIRS._replace(explored=[7, 8, *range(60, 80)]), [differences.OVERLONG, "explored: NOT EXPLAINED"]),
    ],
)
def test_every_difference_has_its_reason(ours: Ids, theirs: Ids, found: list[str]) -> None:
    expected = found if ours is theirs or differences.HEADER in found else [differences.HEADER, differences.SECOND_END, *found]
    got = differences.reasons(ours, theirs, LAYOUT, 20, [20, 21])
    assert len(got) == len(expected)
    assert all(any(one.startswith(start) for one in got) for start in expected)


def test_differences_of_numbers_are_relative_where_asked() -> None:
    assert differences.largest_difference([1.0, -200.0], [1.0, -201.0], relative=False) == 1
    assert differences.largest_difference([1.0, -200.0], [1.0, -201.0], relative=True) == pytest.approx(1 / 201)
    steps = [Step([[-1.0], [-2.0]], [1.0, 3.0]), Step([[-3.0], [-4.0]], [6.0])]
    assert differences.step_losses(steps, 2) == [4.0]
    assert differences.gradient_norms([{"grad_norm": 2.0}, {"train_runtime": 1.0}, {"grad_norm": 3.0}]) == [2.0, 3.0]
    assert differences.log_probs(steps) == [-1.0, -2.0, -3.0, -4.0]
    assert differences.unequal_parts(OURS, OURS._replace(explored=[])) == ["explored"]


def test_the_report_fails_for_what_is_unequal_too_far_apart_or_nothing() -> None:
    good = Report()
    good.equal("ids", [], 3)
    good.at_most("loss", 1e-5, 1e-4)
    good.counted("differences", Counter(few=1, many=2), 3)
    assert good.holds
    lines = good.text().splitlines()
    assert lines[0].split() == ["ids", "3", "of", "3"]
    assert [line.split()[-1] for line in lines[3:5]] == ["many", "few"]
    assert lines[-1] == "the comparison holds"
    bad = Report()
    bad.equal("ids", [5, 4, 5], 3)
    bad.equal("nothing", [], 0)
    bad.at_most("loss", float("nan"), 1e-4)
    assert not bad.holds
    assert "1 of 3; not rows 4, 5" in bad.text()
    assert bad.text().endswith("FAILS: ids; nothing; loss")


def test_a_folder_without_the_official_code_is_told_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^--selm: .*selm_trainer.py does not exist; [^\n]+$"):
        load_official(tmp_path, tmp_path)


@pytest.mark.skipif(not all(GIVEN), reason="REFEREE_SELM, REFEREE_TRL and REFEREE_PAIRS name no official code and data")
def test_the_official_code_agrees() -> None:
    options = [f"--{name}={path}" for name, path in zip(("selm", "trl", "pairs"), GIVEN, strict=True)]
    command = [sys.executable, "-m", "tests.referee", *options, "--rows=40", "--steps=4"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False, cwd=Path(__file__).parents[2])
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.endswith("the comparison holds\n")
