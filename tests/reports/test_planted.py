"""Whether the check of the verdicts can fail: differences that are planted by hand, none, and verdicts that are wrong."""

from __future__ import annotations

import json
import runpy
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from handbook_ext.core.errors import UserError
from handbook_ext.objectives.metrics import Interval, Scores
from handbook_ext.recipes.table_files import TableRow
from handbook_ext.reports import claims, planted
from handbook_ext.reports.evaluations import Evaluator
from handbook_ext.reports.planted import EQUAL, PLANTED, QUESTIONS, WAYS, Design, drawn, missed, resampled, summary_of, welch
from handbook_ext.reports.planted_runs import check_apart, command_of, prompt_rewards, read_arm
from handbook_ext.reports.tables import Measured
from tests.recipe_folder import ROOT
from tests.reports.written_run import make_run, write_manifest

SMALL = Design(tables=30, seeds=4, prompts=30, resamples=100)


def arm(mean: float, draw: int, *, seeds: int = 16, spread: float = 0.05, prompts: int = 30) -> Measured:
    """An arm whose seeds' policies lie around `mean` above their start, each `spread` away from it; prompts vary by 0.2."""
    rng = np.random.default_rng(draw)
    scores: dict[str, list[Scores]] = {"first": [], "last": []}
    for seed in range(seeds):
        names = tuple(f"{draw}.{seed}.{number}" for number in range(prompts))
        for policy, more in (("first", 0.0), ("last", mean + rng.normal(0, spread))):
            scores[policy].append(Scores(names, rng.normal(more, 0.2, prompts), np.full(prompts, 5.0)))
    evaluators = [Evaluator(100 * draw + seed, "oracle", "") for seed in range(seeds)]
    row = TableRow(name=f"arm {draw}", recipe="r")
    return Measured(row, "iter1", {"sampled": scores["last"]}, {"sampled": scores["first"]}, {}, evaluators, [])


def shares(better: Measured, worse: Measured, design: Design = SMALL) -> dict[tuple[str, str], dict[str, Any]]:
    """The rows of the summary, by way and question."""
    rows = summary_of(resampled(better, worse, "sampled", design))
    assert [(row["way"], row["question"]) for row in rows] == [(way, question) for way in WAYS for question in QUESTIONS]
    return {(row["way"], row["question"]): row for row in rows}


def test_a_large_difference_is_told_in_its_direction_and_equal_runs_are_left_alone() -> None:
    found = shares(arm(0.5, 1), arm(0.1, 2))
    for way in WAYS:
        assert found[way, PLANTED]["share"] >= 0.95 and found[way, PLANTED]["worse"] == 0
    assert all(found[way, question]["share"] <= 0.07 for way in ("claim", "test") for question in EQUAL)
    assert missed([*found.values()]) == []
    # The other way round all of it is told as worse, which meets no requirement.
    turned = shares(arm(0.1, 2), arm(0.5, 1), replace(SMALL, tables=5))
    assert (turned["claim", PLANTED]["better"], turned["claim", PLANTED]["worse"]) == (0, 5)
    assert "the planted difference is told in 0 of 5 (0.0 % [0.0, 52.2]); at least 90% must be" in missed([*turned.values()])


def test_a_difference_that_tables_are_too_small_for_is_a_requirement_missed() -> None:
    found = shares(arm(0.12, 1), arm(0.1, 2))
    assert found["claim", PLANTED]["share"] < 0.5
    assert [line[:22] for line in missed([*found.values()])] == ["the planted difference"]


def test_a_verdict_that_forgets_how_few_the_seeds_are_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bootstrap alone, by which few seeds of much spread differ every other time."""
    monkeypatch.setattr(Interval, "side", lambda won, at: int(won.low > at) - int(won.high < at))
    monkeypatch.setattr(claims, "p_value", lambda *_: 0.0)
    found = shares(arm(0.5, 1, spread=0.3), arm(0.1, 2, spread=0.3))
    assert all(found["claim", question]["share"] > 0.15 for question in EQUAL)
    told = [line for line in missed([*found.values()]) if "told apart" in line]
    assert [line.split(" are told apart")[0] for line in told] == ["runs of the better arm", "runs of the worse arm"]


def test_a_start_of_ones_own_cancels_where_gains_are_claimed() -> None:
    """Starts that differ by far more than the policies hide a difference from rewards, and not from gains."""
    lifted = []
    for one in (arm(0.5, 1), arm(0.1, 2)):
        for place in range(16):
            for scores in (one.scores["sampled"], one.initial_scores["sampled"]):
                each = scores[place]
                scores[place] = Scores(each.prompt_ids, each.rewards + 3 * (place % 4), each.tokens)
        lifted.append(one)
    found = shares(lifted[0], lifted[1])
    assert found["claim", PLANTED]["share"] < 0.3
    assert min(found[way, PLANTED]["share"] for way in ("claim of gains", "welch")) > 0.9


def test_a_drawn_row_has_each_seeds_own_prompts_beside_their_start_and_pairs_by_place() -> None:
    one = arm(0.0, 1, seeds=4)
    rng = np.random.default_rng(0)
    row, other = (drawn(one, np.array(seeds), "sampled", 20, rng) for seeds in ([3, 1], [0, 2]))
    for place, seed in enumerate((3, 1)):
        ours, first = row.scores["sampled"][place], row.initial_scores["sampled"][place]
        whole = one.scores["sampled"][seed].rewards, one.initial_scores["sampled"][seed].rewards
        at = [whole[0].tolist().index(reward) for reward in ours.rewards]
        assert len(set(at)) == 20 and at != sorted(at)
        assert whole[1][at].tolist() == first.rewards.tolist()
        assert ours.prompt_ids == other.scores["sampled"][place].prompt_ids
    assert row.scores["sampled"][0].prompt_ids != row.scores["sampled"][1].prompt_ids
    assert row.evaluators == other.evaluators


def test_no_seed_is_on_both_sides_of_a_table_or_twice_on_one(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def noted(ours: Measured, theirs: Measured, *_: object) -> dict[str, int]:
        sides = [{one.rewards.sum().round(9) for one in each.scores["sampled"]} for each in (ours, theirs)]
        assert [len(side) for side in sides] == [4, 4] and not sides[0] & sides[1]
        seen.append((ours.row.name, theirs.row.name))
        return dict.fromkeys(WAYS, 0)

    monkeypatch.setattr(planted, "_told", noted)
    resampled(arm(0.0, 1, seeds=8), arm(0.0, 2, seeds=9), "sampled", Design(tables=20, seeds=4, prompts=30))
    assert Counter(seen) == {("arm 1", "arm 2"): 20, ("arm 1", "arm 1"): 20, ("arm 2", "arm 2"): 20}
    with pytest.raises(ValueError, match=r"arm 2 has 7 seeds with 30 prompts or more, too few"):
        resampled(arm(0.0, 1), arm(0.0, 2, seeds=7), "sampled", SMALL)


def test_win_rates_without_any_spread_are_told_by_their_sign() -> None:
    far, none = arm(9.0, 1, seeds=3), arm(9.0, 2, seeds=3)
    assert welch(far, none, "sampled", 0.95) == 0
    lost = arm(-9.0, 3, seeds=3)
    assert (welch(far, lost, "sampled", 0.95), welch(lost, far, "sampled", 0.95)) == (1, -1)


def runs(folder: Path, recipe: str, seeds: list[int], gain: float = 0.1) -> list[Path]:
    """Finished runs, written by hand."""
    found = [make_run(folder / f"{recipe}-seed{seed}", 2, recipe=recipe, seed=seed, gain=gain) for seed in seeds]
    for each in found:
        write_manifest(each / "iter1" / "eval.manifest.json", "evaluate")
    return found


def test_an_arm_is_the_seeds_of_one_recipe_under_one_setting(tmp_path: Path) -> None:
    folders = runs(tmp_path, "a", [1, 3])
    found = read_arm("better", folders)
    assert ([row["seed"] for row in found.rows], found.decoding) == ([1, 3], "sampled")
    assert found.rows[0] | {"rewards": None, "settings": None} == {
        "arm": "better", "recipe": "a", "seed": 1, "run": "a-seed1", "settings": None, "key": "",
        "made": {"code commit": "c" * 12, "hardware.cores": "2"}, "initial_policy": "sft", "policy": "iter1", "prompts": 40,
        "rewards": None,
    }  # fmt: skip
    kept = prompt_rewards(found)
    assert len(kept) == 8
    for row in found.rows:
        for policy, mean in row["rewards"]["greedy"].items():
            assert kept[f"better.seed{row['seed']}.greedy.{policy}"].mean() == mean
    # An evaluation on the way, which other goals make, changes nothing; a setting of the policy does.
    digest = found.rows[1]["settings"]
    between = folders[1] / "iter0" / "eval.manifest.json"
    write_manifest(between, "evaluate")
    (folders[1] / "iter0" / "eval.json").touch()
    between.write_text(json.dumps(json.loads(between.read_text()) | {"settings": {"evaluate": {"top_p": 1.0}}}))
    assert read_arm("better", folders).rows[1]["settings"] == digest
    path = folders[1] / "iter1" / "policy" / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"settings": {"train": {"beta": 0.5}}}))
    with pytest.raises(UserError, match="better: a-seed3 has other settings than a-seed1; make the arm's runs with one recipe"):
        read_arm("better", folders)
    with pytest.raises(UserError, match="worse: seeds 1 1: one is there twice"):
        read_arm("worse", [folders[0], folders[0]])


def test_arms_that_share_a_seed_or_have_two_judges_are_refused(tmp_path: Path) -> None:
    better, same = (read_arm("better", runs(tmp_path, name, [1, 3])) for name in "ab")
    with pytest.raises(UserError, match="both arms have seed 1; give each seeds of its own"):
        check_apart(better, same)
    other = [make_run(tmp_path / "c-seed2", 2, recipe="c", seed=2, ranker="reward_model")]
    write_manifest(other[0] / "iter1" / "eval.manifest.json", "evaluate")
    with pytest.raises(UserError, match="judged by oracle and reward_model; by one only"):
        check_apart(better, read_arm("worse", other))


def test_the_goal_that_made_the_runs_is_told(tmp_path: Path) -> None:
    better, worse = (read_arm(name, runs(tmp_path, recipe, seeds)) for name, recipe, seeds in (("b", "a", [1]), ("w", "c", [2])))
    assert command_of(better, worse) == 'make planted OF="a c" SEEDS=1'
    better.overrides.append("sft.num_train_epochs=1")
    better.rows[0]["recipe"] = "a+sft.num_train_epochs-1"
    assert command_of(better, worse) == 'make planted OF="a c" SEEDS=1 SET="sft.num_train_epochs=1"'


def test_the_script_writes_rows_rewards_and_a_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main = runpy.run_path(str(ROOT / "scripts" / "measure_planted.py"))["main"]
    arms = [[str(each) for each in runs(tmp_path, name, seeds, gain)]
            for name, seeds, gain in (("a", [1, 3, 5, 7], 0.4), ("b", [2, 4, 6, 8], 0.0))]  # fmt: skip
    main(["--better", *arms[0], "--worse", *arms[1], "--tables", "3", "--out", str(tmp_path / "out")])
    found = json.loads((tmp_path / "out" / "planted.json").read_text())
    assert (found["design"]["seeds"], found["design"]["prompts"], found["required"]["held"]) == (2, 40, False)
    assert [(row["arm"], row["seed"]) for row in found["rows"]] == [
        *(("better", seed) for seed in (1, 3, 5, 7)), *(("worse", seed) for seed in (2, 4, 6, 8))
    ]  # fmt: skip
    assert found["summary"][0]["told"] == 3 and found["machine"]["cores"] and found["versions"]["torch"]
    with np.load(tmp_path / "out" / "rewards.npz", allow_pickle=False) as kept:
        assert kept["worse.seed8.sampled.sft"].shape == (40,) and len(kept) == 32
    page = (tmp_path / "out" / "planted.md").read_text()
    assert "| claim of a table | 3 of 3 (100.0 % [29.2, 100.0]) | 0 |" in page and "nothing is required" in page
    assert page in capsys.readouterr().out
    with pytest.raises(UserError, match="an arm has fewer than four seeds"):
        main(["--better", *arms[0][:3], "--worse", *arms[1], "--out", str(tmp_path / "none")])
    with pytest.raises(UserError, match="--tables is 0; at least 1 is needed"):
        main(["--better", *arms[0], "--worse", *arms[1], "--tables", "0"])


def test_a_requirement_that_is_missed_ends_with_status_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    script = runpy.run_path(str(ROOT / "scripts" / "measure_planted.py"))
    monkeypatch.setitem(script["main"].__globals__, "SEEDS", 2)
    monkeypatch.setitem(script["main"].__globals__, "PROMPTS", 40)
    arms = [[str(each) for each in runs(tmp_path, name, seeds)] for name, seeds in (("a", [1, 3, 5, 7]), ("b", [2, 4, 6, 8]))]
    with pytest.raises(SystemExit) as ended:
        script["main"](["--better", *arms[0], "--worse", *arms[1], "--tables", "3", "--out", str(tmp_path / "out")])
    assert ended.value.code == 1
    assert capsys.readouterr().err.splitlines()[-1].startswith("error: the planted difference is told in ")
    found = json.loads((tmp_path / "out" / "planted.json").read_text())
    assert found["required"]["held"] and found["required"]["missed"]
