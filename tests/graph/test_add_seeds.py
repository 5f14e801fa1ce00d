"""SEEDS=auto: what is planned for it, what it looks at, when it stops, and what it calls make with."""

from __future__ import annotations

import json
import os
import runpy
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from handbook_ext.core.errors import UserError
from handbook_ext.graph.goals import plan_goals
from handbook_ext.recipes.table_files import written_table
from handbook_ext.recipes.until import FIRST_SEEDS, Until, next_count, parse_until
from handbook_ext.reports.seed_widths import widths
from tests.recipe_folder import ROOT, enter_folder

AUTO = {"SEEDS": "auto"}
TABLE = "title: t\nsource: s\nrows: [{name: A, recipe: tiny-selm}]\n"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with recipes and a table of its own, the current one."""
    enter_folder(tmp_path, monkeypatch)
    Path("recipes/tables").mkdir()
    Path("recipes/tables/mine.yaml").write_text(f"{TABLE}until: {{difference: 0.03, seeds: 9}}\n")
    return Path.cwd()


def test_a_goal_under_auto_calls_make_and_plans_no_run(folder: Path) -> None:
    plan = plan_goals(["table-mine", "tiny-selm-seeds"], {**AUTO, "BESIDE": "tiny-dpo"}, ["SEEDS"])
    assert not plan.runs and plan.lines[-1] == ".NOTPARALLEL:"
    commands = [line for line in plan.lines if "scripts/" in line]
    assert all("$(MAKE)" not in line for line in commands)  # It would run under -n.
    assert " --report runs/table-mine/report --difference 0.03 --most 9 $(said) -- table-mine" in commands[0]
    assert " --report runs/tiny-selm-seeds/report --difference 0.04 --most 20 $(said) -- tiny-selm-seeds" in commands[1]
    [command] = [each for each in plan_goals(["table-mine"], {**AUTO, "UNTIL": "seeds=12"}).lines if "scripts/" in each]
    assert "--difference 0.03 --most 12" in command
    # A run that is asked for beside them is planned as ever.
    assert set(plan_goals(["tiny-selm-seeds", "tiny-dpo"], AUTO).runs) == {"tiny-dpo"}


@pytest.mark.parametrize(("goals", "variables", "words"), [
    (["tiny-slm-seeds"], AUTO, "no recipe is called 'tiny-slm'"),
    (["table-yours"], AUTO, "no table is called 'yours'"),
    (["table-mine"], {**AUTO, "CLUSTER": "slurm"}, "CLUSTER=slurm submits .*, and table-mine is none"),
    (["tiny-selm-seeds"], {**AUTO, "BESIDE": "tiny-selm"}, "BESIDE: tiny-selm is a run of tiny-selm-seeds itself"),
    (["table-mine"], {"SEEDS": "automatic"}, "SEEDS: 'automatic' is not a number from 1 to 99, or auto"),
    (["table-mine"], {"UNTIL": "seeds=9"}, "UNTIL says where SEEDS=auto stops, and SEEDS is 3"),
    (["table-mine"], {**AUTO, "UNTIL": "seeds=4"}, "UNTIL: seeds=4: .*; difference is a share above 0 up to 0.5, seeds are 5"),
    (["table-mine"], {**AUTO, "UNTIL": "seed=9"}, r"UNTIL: 'seed=9' sets none of difference, seeds \(did you mean 'seeds'"),
])  # fmt: skip
def test_a_mistake_is_told_in_one_line_before_anything_starts(
    folder: Path, goals: list[str], variables: dict[str, str], words: str
) -> None:
    with pytest.raises(UserError, match=words) as caught:
        plan_goals(goals, variables)
    assert "\n" not in str(caught.value)


def test_until_is_read_from_its_words_and_else_from_the_table() -> None:
    assert parse_until(" difference=0.02  seeds=40", Until()) == Until(difference=0.02, seeds=40)
    assert parse_until("", Until(seeds=7)) == Until(difference=0.04, seeds=7)
    assert {written_table(name, ROOT / "recipes").until.seeds for name in ("sera1", "selm1")} == {20}


def interval(reach: float, drawn: float = 0.0, value: float = 0.5) -> dict[str, float]:
    """An interval as a summary.json has it."""
    return {"value": value, "low": value - drawn, "high": value + drawn, "seeds": reach}


def test_of_a_table_the_claims_are_looked_at_and_else_its_rows() -> None:
    rows = [{"name": "A", "decodings": {"greedy": {"win_rate": interval(0.9)}, "sampled": {"win_rate": interval(0.1, 0.2)}}}]
    claims = [
        {"words": "A beats B.", "win_rate": interval(0.05, 0.02)},
        {"words": "A keeps fewer.", "difference": interval(0.01, 0.03)},
        {"words": "A beats C.", "win_rate": None},
    ]
    assert widths({"rows": rows, "claims": claims}) == [(0.05, "A beats B."), (pytest.approx(0.03), "A keeps fewer.")]
    assert widths({"rows": rows, "claims": []}) == [(pytest.approx(0.2), "A")]
    assert widths({"rows": [], "claims": []}) == []


def test_of_a_report_the_last_policies_are_looked_at_by_the_main_decoding() -> None:
    policy = {"policy": "iter3", "sampled": {"vs_start": {"win_rate": interval(0.06)}}, "greedy": {"vs_start": None}}
    beside = [{"recipe": "b", "decodings": {"sampled": {"win_rate": interval(0.07)}}}, {"recipe": "c", "decodings": {}}]
    summary = {"primary": "sampled", "recipes": [{"recipe": "a", "policies": [{"policy": "sft"}, policy]}], "beside": beside}
    assert widths(summary) == [(0.06, "a iter3 against the start"), (0.07, "a against b")]


FAKE = """#!{python}
import json, os, sys
with open("calls.jsonl", "a") as calls:
    print(json.dumps([sys.argv[1:], {{name: os.environ.get(name) for name in ("RUNS", "THREADS", "MAKEFLAGS")}}]), file=calls)
seeds = int(dict(word.split("=", 1) for word in sys.argv[2:])["SEEDS"])
found = {{"value": 0.5, "low": 0.5, "high": 0.5, "seeds": 0.2 / seeds}}
json.dump({{"rows": [], "claims": [{{"words": "A beats B.", "win_rate": found}}]}}, open("summary.json", "w"))
sys.exit(3 * (seeds > {fails}))
"""


def added(monkeypatch: pytest.MonkeyPatch, *words: str, fails: int = 99) -> list[Any]:
    """What make was called with, by a script that narrows the interval to 20 points by the number of seeds."""
    Path("make").write_text(FAKE.format(python=sys.executable, fails=fails))
    Path("make").chmod(0o755)
    monkeypatch.setenv("MAKEFLAGS", "n -- SEEDS=auto")
    main = runpy.run_path(str(ROOT / "scripts/add_seeds.py"))["main"]
    try:
        main(["--make", "./make", "--report", ".", *words, "--", "table-mine"])
    finally:
        calls = [json.loads(line) for line in Path("calls.jsonl").read_text().splitlines()]
    return calls


def test_seeds_are_added_until_every_interval_is_narrow(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    variables = ["--variable=RUNS=elsewhere", "--variable=SEEDS=auto", "--variable=THREADS=2", "--given=SEEDS", "--given=THREADS"]
    calls = added(monkeypatch, "--difference", "0.03", "--most", "20", *variables)
    assert [words for words, _ in calls] == [["table-mine", f"SEEDS={seeds}", "THREADS=2"] for seeds in (5, 6, 7)]
    # What the command line had stands there again; the rest is in the environment, and nothing of the make that calls.
    assert calls[0][1] == {"RUNS": "elsewhere", "THREADS": os.environ.get("THREADS"), "MAKEFLAGS": None}
    said = capsys.readouterr().err.splitlines()
    assert said[0] == (
        "SEEDS=auto: the widest of 1 intervals reaches 4.0 points to either side (A beats B.), 3 are asked for: "
        "going on with 6 seeds"
    )
    assert said[-1].startswith("SEEDS=auto: 7 seeds are enough: the widest of 1 intervals reaches 2.9 points")


def test_the_seeds_are_spent_where_they_do_not_narrow_it(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls = added(monkeypatch, "--difference", "0.001", "--most", "7")
    assert [words[1] for words, _ in calls] == ["SEEDS=5", "SEEDS=6", "SEEDS=7"]
    assert "SEEDS=auto: 7 seeds are spent, and the widest" in capsys.readouterr().err


def test_a_make_that_fails_ends_it_with_the_same_status(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SystemExit) as ended:
        added(monkeypatch, "--difference", "0.001", "--most", "20", fails=5)
    assert ended.value.code == 3
    assert len(Path("calls.jsonl").read_text().splitlines()) == 2


def test_stopping_on_width_finds_differences_where_there_are_none_hardly_more_often() -> None:
    """As the script says: 5 to 8 of 100 with seeds that scatter by 6 points, 17 were it to stop at the first verdict."""
    looks = [FIRST_SEEDS]
    while looks[-1] < 20:
        looks.append(next_count(looks[-1], 20))
    assert looks == [5, 6, 7, 8, 10, 12, 15, 18, 20]
    seeds = np.random.default_rng(1).normal(0.0, 0.06, (20000, 20))
    found, sooner, open_still, ends = (np.zeros(len(seeds), dtype=bool) for _ in range(4))
    final = np.zeros(len(seeds))
    open_still[:] = True
    for count in looks:
        means, reach = seeds[:, :count].mean(axis=1), stats.t.ppf(0.975, count - 1) * stats.sem(seeds[:, :count], axis=1)
        told = np.abs(means) > reach
        sooner |= told
        ends = open_still & ((reach <= 0.04) | (count == 20))
        found[ends], final[ends] = told[ends], means[ends]
        open_still &= ~ends
    assert 0.05 < found.mean() < 0.08
    assert sooner.mean() > 0.15
    assert abs(final.mean()) < 0.0005  # Nor is the mean any larger.
