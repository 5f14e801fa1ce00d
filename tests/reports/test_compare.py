"""Runs beside each other: whose rows are shown, what is tested against what, and what the page and the script make of it."""

from __future__ import annotations

import json
import runpy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from handbook_ext.core.errors import UserError
from handbook_ext.objectives.metrics import Scores
from handbook_ext.reports.compare import compared_verdict, pairwise_tests, read_compared, rows_of_policies, summarise_compared
from handbook_ext.reports.pairing import Compared, matched_seeds, on_shared_prompts
from handbook_ext.reports.run_report import FinishedRun, read_run, summarise_recipe
from tests.recipe_folder import ROOT
from tests.reports.written_run import make_run, write_manifest

FEW = {"resamples": 50, "confidence": 0.9}


def runs_of(tmp_path: Path, seeds: int = 2, **gains: float) -> list[Compared]:
    """Seeds of a run of each name, alike, whose reward grows by so much in each of its three iterations."""
    return read_compared([
        make_run(tmp_path / f"{name}-seed{seed}", gain=gain, recipe=name, seed=seed)
        for name, gain in gains.items() for seed in range(1, seeds + 1)
    ])  # fmt: skip


def test_seeds_of_one_run_stand_under_one_name(tmp_path: Path) -> None:
    folders = [make_run(tmp_path / name, seed=seed) for name, seed in (("a", 1), ("a-seed2", 2), ("b", 1))]
    again = make_run(tmp_path / "elsewhere" / "a", seed=1)
    found = read_compared([*folders, again])
    assert [(each.label, [run.seed for run in each.runs]) for each in found] == [("a", [1, 2]), ("b", [1]), (str(again), [1])]
    with pytest.raises(UserError, match="are the seeds of one run; name another"):
        read_compared(folders[:2])
    with pytest.raises(UserError, match="a run is named twice"):
        read_compared([folders[0], folders[2], tmp_path / "b" / ".." / "a"])


def test_all_runs_have_the_same_rows(tmp_path: Path) -> None:
    folders = [make_run(tmp_path / "a", 2), make_run(tmp_path / "b", 11, start="start", recipe="b")]
    compared = read_compared(folders)
    rows = rows_of_policies(compared, [summarise_recipe(each.runs, **FEW) for each in compared])
    assert [(row["policy"], row["run"], row["numbers"] is not None) for row in rows[:6]] == [
        ("start", "a", True), ("start", "b", True), ("iter0", "a", True), ("iter0", "b", True), ("iter1", "a", True),
        ("iter1", "b", True),
    ]  # fmt: skip
    assert [(row["policy"], row["numbers"] is not None) for row in rows[-2:]] == [("iter10", False), ("iter10", True)]
    assert len(rows) == 24


def test_the_last_policies_are_tested_on_the_prompts_of_both(tmp_path: Path) -> None:
    found, why_not = pairwise_tests(runs_of(tmp_path, a=0.2, b=0.0), **FEW)
    assert why_not == [] and [test["decoding"] for test in found] == ["greedy", "sampled"]
    test = found[0]
    assert (test["ours"], test["theirs"], test["prompts"], test["seeds"]) == ("a iter2", "b iter2", [40, 40], 2)
    assert test["win_rate"].side(0.5) == 1 and test["gain"].value == pytest.approx(0.6, abs=0.05)
    assert test["p"] == test["p_holm"] < 1e-6 and test["side"] == 1
    assert test["words"].startswith("a iter2 beats b iter2: wins 100.0 % [100.0, 100.0] of prompts, p = ")


def test_one_seed_each_is_no_verdict(tmp_path: Path) -> None:
    """The p-value is of these two policies; whether the recipe is better, another seed would have to say."""
    found, _ = pairwise_tests(runs_of(tmp_path, seeds=1, a=0.2, b=0.0, c=0.1), **FEW)
    assert found[0]["p"] < 1e-6 and {test["side"] for test in found} == {0}
    assert found[0]["words"].startswith("a iter2 against b iter2, one seed each and so no verdict: wins 100.0 %")
    summary = {"tests": found, "primary": "sampled", "runs": [{}] * 3}
    assert compared_verdict(summary).startswith("One seed each, and so no verdict about any two of the 3 runs, sampled at")


def test_seeds_are_tested_together_and_count_as_little_as_they_are(tmp_path: Path) -> None:
    """Two seeds of each: every prompt is won, and two seeds alone would not carry it but that they agree."""
    names = [(f"{run}{suffix}", run, seed) for run in ("a", "b") for suffix, seed in (("", 1), ("-seed2", 2))]
    folders = [make_run(tmp_path / name, recipe=run, seed=seed, gain=0.3 * (run == "a")) for name, run, seed in names]
    compared = read_compared(folders)
    summary = summarise_compared(compared, **FEW)
    test = summary["tests"][-1]
    assert (test["seeds"], test["prompts"], test["side"]) == (2, [40, 40], 1)
    assert compared_verdict(summary).startswith("a iter2 beats b iter2: wins 100.0 % [100.0, 100.0] of prompts, p = ")
    apart = [compared[0], Compared("b", [compared[1].runs[0], replace(compared[0].runs[1], recipe="b")])]
    found, _ = pairwise_tests(apart, **FEW)
    # The second seed is a draw: over the prompts a clear win, over the seeds nothing.
    assert found[-1]["win_rate"].value == pytest.approx(0.75, abs=0.01) and found[-1]["p"] > 0.1 and found[-1]["side"] == 0


def test_three_runs_are_corrected_for_three_tests(tmp_path: Path) -> None:
    compared = runs_of(tmp_path, a=0.1, b=0.1, c=0.0)
    found, _ = pairwise_tests(compared, **FEW)
    sampled = [test for test in found if test["decoding"] == "sampled"]
    assert [(test["ours"], test["theirs"], test["side"]) for test in sampled] == [
        ("a iter2", "b iter2", 0), ("a iter2", "c iter2", 1), ("b iter2", "c iter2", 1),
    ]  # fmt: skip
    assert all(test["tests"] == 3 and test["p_holm"] >= test["p"] for test in sampled)
    assert sampled[1]["p_holm"] == pytest.approx(3 * sampled[1]["p"])
    assert "after Holm's correction for 3 tests" in sampled[1]["words"]
    assert "cannot be told apart: the first wins 50.0 %" in sampled[0]["words"]


def test_a_difference_that_correction_undoes_is_none() -> None:
    """15 of 20 prompts: p 0.04 alone, 0.12 among three."""
    names = tuple(f"p{number}" for number in range(20))

    def one(label: str, wins: int) -> Compared:
        rewards = np.array([1.0] * wins + [-1.0] * (20 - wins))
        scores = {"sampled": Scores(names, rewards, rewards, 0.7)}
        runs = [
            FinishedRun(Path(f"{label}{seed}"), label, seed, "oracle", "", {"iter1": scores}, {}, [], [], [], [])
            for seed in (1, 2)
        ]
        return Compared(label, runs)

    def tested(*runs: Compared) -> list[int]:
        family = pairwise_tests(runs, resamples=200, confidence=0.95)[0]
        return [test["side"] for test in family]

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("handbook_ext.reports.pairing.prompts_of", lambda folder: {})
        middle = one("m", 0)
        for run in middle.runs:
            run.policies["iter1"]["sampled"] = Scores(names, np.zeros(20), np.zeros(20), 0.7)
        assert tested(one("a", 15), middle) == [1]
        assert tested(one("a", 15), middle, one("b", 15)) == [0, 0, 0]


def test_each_comparison_says_what_its_seeds_could_have_told() -> None:
    """Of three tests each is told at a third of the level: Student's t over two seeds then asks for three times as much."""
    names = tuple(f"p{number}" for number in range(40))

    def one(label: str, *wins: int) -> Compared:
        rewards = [np.where(np.arange(40) < each, 1.0, -1.0) if each else np.zeros(40) for each in wins]
        scores = [{"sampled": Scores(names, each, each, 0.7)} for each in rewards]
        return Compared(label, [
            FinishedRun(Path(f"{label}{seed}"), label, seed, "oracle", "", {"iter1": each}, {}, [], [], [], [])
            for seed, each in enumerate(scores, 1)
        ])  # fmt: skip

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("handbook_ext.reports.pairing.prompts_of", lambda folder: {})
        runs = [one("a", 21, 24), one("b", 0, 0), one("c", 0, 0)]
        [pair], _ = pairwise_tests(runs[:2], resamples=400, confidence=0.95)
        three, _ = pairwise_tests(runs, resamples=400, confidence=0.95)
    # By hand: 52.5 and 60 %, 3.75 points of error, 16.33 of which one test reaches, and 48.96 one of three.
    assert (pair["detectable"], three[0]["detectable"]) == pytest.approx((0.0375 * 16.334, 0.0375 * 48.957), rel=0.001)
    words = "seeds differ so much that no difference, however large, would have been told in 80 of 100 such comparisons"
    assert pair["words"].endswith(f"; {words}")
    assert compared_verdict({"tests": [pair], "primary": "sampled", "runs": [{}] * 2}).endswith(
        f"{words}, sampled at temperature 0.7."
    )
    summary = {"tests": three, "primary": "sampled", "runs": [{}] * 3}
    assert compared_verdict(summary).endswith(f"(3 tests; {words} of each two).")
    small = [test | {"detectable": 0.01 * place} for place, test in enumerate(three)]
    assert "(3 tests; a difference of 2.0 points would have been told in" in compared_verdict(summary | {"tests": small})


def judged_otherwise(run: Path, **changes: Any) -> Path:
    for path in run.glob("*/eval.json"):
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return run


def test_runs_of_other_judges_keep_their_lengths_alone(tmp_path: Path) -> None:
    folders = [make_run(tmp_path / name, recipe=name) for name in ("a", "b")]
    other = judged_otherwise(make_run(tmp_path / "c", recipe="c"), ranker="pairrm", judge="x")
    summary = summarise_compared(read_compared([*folders, other]), **FEW)
    assert [each["shown"] for each in summary["runs"]] == [True, True, False]
    assert {row["run"]: row["shown"] for row in summary["rows"]} == {"a": True, "b": True, "c": False}
    assert len({(test["ours"], test["theirs"]) for test in summary["tests"]}) == 1
    assert len(summary["left_out"]) == 3
    assert summary["left_out"][0].startswith("c is judged by pairrm (x), greedy at 0, sampled at 0.7, but a by oracle, greedy")
    assert "whose rewards do not compare" in summary["left_out"][1]
    assert [one["recipe"] for one in summary["summaries"]] == ["a", "b"]


def test_prompts_are_matched_by_id_and_text(tmp_path: Path) -> None:
    """Of 40 prompts the other run has 39; one has another text under its id, and one of ours has no verdict."""
    ours, theirs = make_run(tmp_path / "a"), make_run(tmp_path / "b", recipe="b")
    for run in (ours, theirs):
        for path in run.glob("*/eval.json"):
            content = json.loads(path.read_text())
            for decoding in content["decodings"].values():
                for row in decoding["rows"]:
                    row["prompt"] = f"ask {row['prompt_id']}"
                if run is theirs:
                    del decoding["rows"][0]
                    decoding["rows"][0]["prompt"] = "another"
                else:
                    decoding["rows"][7]["reward"] = None
            path.write_text(json.dumps(content))
    one, other = read_run(ours), read_run(theirs)
    matched = on_shared_prompts(one, "iter2", other, "iter2")
    assert matched is not None
    wanted = {f"p{number}" for number in range(40)} - {"p0", "p1", "p7"}
    assert {*matched[0]["greedy"].prompt_ids} == wanted and matched[0]["greedy"].prompt_ids == matched[1]["greedy"].prompt_ids
    rewards = dict(zip(one.policies["iter2"]["greedy"].prompt_ids, one.policies["iter2"]["greedy"].rewards, strict=True))
    assert all(
        rewards[name] == reward
        for name, reward in zip(matched[0]["greedy"].prompt_ids, matched[0]["greedy"].rewards, strict=True)
    )


def test_seeds_are_matched_and_single_runs_by_their_prompts(tmp_path: Path) -> None:
    first, second, third = (read_run(make_run(tmp_path / f"r{seed}", seed=seed)) for seed in (1, 2, 3))
    assert len(matched_seeds(Compared("a", [first, second]), Compared("b", [replace(second, recipe="b"), third]))[0]) == 1
    assert len(matched_seeds(Compared("a", [first]), Compared("b", [second]))[0]) == 1
    assert matched_seeds(Compared("a", [first, second]), Compared("b", [third])) == ([], "they share no seed")
    assert matched_seeds(Compared("a", [first]), Compared("b", [replace(first, ranker_id="y")]))[0] == []
    elsewhere = replace(first, policies={name: {} for name in first.policies})
    assert matched_seeds(Compared("a", [first]), Compared("b", [elsewhere])) == ([], "they share no held-out prompt")


def said(*tests: tuple[str, str, int], primary: str = "sampled") -> str:
    from handbook_ext.objectives.metrics import Interval

    shares = {1: Interval(0.7, 0.6, 0.8, 0.1), 0: Interval(0.5, 0.4, 0.6, 0.1), -1: Interval(0.3, 0.2, 0.4, 0.1)}
    rows = [
        {"ours": ours, "theirs": theirs, "side": side, "win_rate": shares[side], "words": f"{ours} and {theirs}",
         "decoding": "sampled", "temperature": 0.7}
        for ours, theirs, side in tests
    ]  # fmt: skip
    return compared_verdict({"tests": rows, "primary": primary, "runs": [{}] * 3})


def test_the_page_begins_with_what_the_tests_say() -> None:
    assert said(("a", "b", 1)) == "a and b, sampled at temperature 0.7."
    assert said(("a", "b", 0), ("a", "c", -1), ("b", "c", 0)) == (
        "c beats a (70.0 % [60.0, 80.0]); a and b, b and c cannot be told apart; sampled at temperature 0.7."
    )
    twice = said(("a", "b", 1), ("a", "c", 1), ("b", "c", -1))
    assert twice.startswith(
        "a beats b (70.0 % [60.0, 80.0]) and c (70.0 % [60.0, 80.0]); c beats b (70.0 % [60.0, 80.0]); sampled"
    )
    many = said(("a", "b", 1), *[("a", each, 0) for each in "cdef"])
    assert many == "a beats b (70.0 % [60.0, 80.0]); the other 4 pairs cannot be told apart; sampled at temperature 0.7."
    assert said(("a", "b", 0), ("a", "c", 0), ("b", "c", 0)) == (
        "No two of the 3 runs can be told apart, sampled at temperature 0.7 (3 tests)."
    )
    assert said().startswith("Nothing was tested")


def test_the_script_writes_a_page_whose_settings_come_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, alpha in (("tiny-selm", 0.02), ("tiny-dpo", 0.0)):
        run = make_run(tmp_path / name, recipe=name)
        for number in range(3):
            path = run / f"iter{number}" / "policy" / "manifest.json"
            manifest = json.loads(path.read_text())
            path.write_text(json.dumps(manifest | {"settings": {"stage": "train", "train": {"alpha": alpha, "note": "a|b"}}}))
    main = runpy.run_path(str(ROOT / "scripts" / "compare_runs.py"))["main"]
    main([str(tmp_path / "tiny-selm"), str(tmp_path / "tiny-dpo")])
    out = tmp_path / "compare" / "tiny-selm-tiny-dpo"
    first = {path.name: path.read_bytes() for path in out.iterdir()}
    assert first.keys() == {
        "compare.md",
        "compare.html",
        "summary.json",
        "manifest.json",
        "reward_and_length.png",
        "reward_and_length-dark.png",
    }
    text, page, summary = first["compare.md"].decode(), first["compare.html"].decode(), json.loads(first["summary.json"])
    assert next(iter(summary)) == "verdict" and summary["settings"] == [{"name": "train.alpha", "values": ["0.02", "0.0"]}]
    assert text.startswith(f"# tiny-selm, tiny-dpo compared\n\n**{summary['verdict']}**\n")
    assert (
        text.index("| train.alpha | 0.02 | 0.0 |")
        < text.index("| start | tiny-selm |")
        < text.index("| tiny-selm iter2 | tiny-dpo")
    )
    assert "Code, packages and machines are the same." in text and "One seed each" in text
    assert (
        summary["verdict"] in page
        and "train.alpha" in page
        and "data:image/png" in page
        and "http" not in page.split("</style>")[1]
    )
    said = capsys.readouterr().out
    assert "train.alpha" in said and f"comparison: {out / 'compare.html'}" in said
    main([str(tmp_path / "tiny-selm"), str(tmp_path / "tiny-dpo")])
    assert {path.name: path.read_bytes() for path in out.iterdir()} == first
    # As make calls it.
    main(["--runs", str(tmp_path), "--of", "tiny-dpo  tiny-selm"])
    assert (tmp_path / "compare" / "tiny-dpo-tiny-selm" / "compare.html").is_file()
    with pytest.raises(UserError, match='name the runs to be compared, such as OF="tiny-selm tiny-dpo"'):
        main(["--runs", str(tmp_path), "--of", ""])
    with pytest.raises(UserError, match="nowhere is no folder of a run"):
        main([str(tmp_path / "tiny-selm"), str(tmp_path / "nowhere")])


def test_a_changed_evaluation_makes_another_page(tmp_path: Path) -> None:
    folders = [make_run(tmp_path / name, recipe=name) for name in ("a", "b")]
    for path in tmp_path.glob("*/*/eval.json"):
        write_manifest(path.with_name("eval.manifest.json"), "evaluate")
    main = runpy.run_path(str(ROOT / "scripts" / "compare_runs.py"))["main"]
    with pytest.raises(UserError, match=r"eval\.json was changed after stage 'evaluate' made it"):
        main([*map(str, folders), "--out", str(tmp_path / "out")])
