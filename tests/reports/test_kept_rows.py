"""Rows of a table that are kept without their runs: what is kept, what stands for a run, what is refused, and the same table."""

from __future__ import annotations

import base64
import json
import lzma
import math
import re
import runpy
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from handbook_ext.core.errors import UserError
from handbook_ext.core.jsonl import write_rows
from handbook_ext.core.records import PreferencePair, assistant, user
from handbook_ext.core.stage import Stage
from handbook_ext.graph.goals import plan_goals
from handbook_ext.graph.makefile import write_run
from handbook_ext.graph.plan import Plan
from handbook_ext.graph.run_rules import StageRule, run_rules
from handbook_ext.recipes.measured_rows import packed, read_measured, unpacked, write_measured
from handbook_ext.recipes.run import Run, resolve
from handbook_ext.reports.made_words import APART, made_lines
from tests.recipe_folder import ROOT, enter_folder

RECIPE = "base: ../tiny/base.yaml\niterations: {iter2: null, iter3: null}\ndata: {portions: 2, train_rows: 100, flip_rate: 0.2}\n"
TABLE = """title: t
source: s
rows:
  - {name: SFT, recipe: mine-selm, policy: start}
  - {name: SELM, recipe: mine-selm}
  - {name: DPO, recipe: mine-dpo}
claims:
  - {better: SELM, worse: DPO, words: One beats the other.}
  - {better: SELM, worse: DPO, by: flipped labels, words: One drops more.}
similarity: [iter0, iter1]
differences: [SELM, DPO]
"""
FOLDER = Path("recipes/mine/measured")


def make(run: Run, rule: StageRule, gain: float) -> None:
    """Makes an artifact as its stage would: evaluations and pairs have made numbers, all else is a few letters."""
    stage = Stage.open(Path("runs", run.name, rule.folder), type(rule.settings))
    assert not stage.finished()
    seed, rng = run.settings.seed, np.random.default_rng([run.settings.seed, len(rule.folder), int(100 * gain)])
    if rule.artifact.endswith("eval.json"):
        shift = 0.0 if rule.folder == "sft" else gain
        decodings = {
            name: {"temperature": at, "rows": [
                {"prompt_id": f"p{seed}-{i}", "reward": shift + rng.normal(), "tokens": 5 + i % 3} for i in range(12)
            ]}
            for name, at in (("greedy", 0.0), ("sampled", 0.7))
        }  # fmt: skip
        rows = [
            {"prompt_id": f"p{seed}-{i}", "side": side, "log_ratio": rng.normal()}
            for side in ("chosen", "sample")
            for i in (2, 1)
        ]
        implicit = None if rule.folder == "sft" else {"correlation_reward": rng.random(), "kl": 3.5, "rows": rows}
        content = {"seed": seed, "ranker": "oracle", "judge": "", "decodings": decodings, "implicit": implicit}
        stage.out.write_text(json.dumps(content))
    elif rule.artifact.endswith("pairs.jsonl"):
        pairs = [PreferencePair.of(f"q{i}", user("?"), assistant("good"), assistant("bad")) for i in rng.permutation(30)[:20]]
        about = [{"chosen_origin": "on_policy" if i > 16 else "offline", "swapped": i % 4 == 0} for i in range(20)]
        write_rows(stage.out, [pair.model_copy(update=each) for pair, each in zip(pairs, about, strict=True)])
    elif stage.artifact.suffix:
        stage.out.write_text("1")
    else:
        stage.out.mkdir()
        for name in ("train.jsonl", "test.jsonl", "sft.jsonl", "model.safetensors", "config.json"):
            (stage.out / name).write_text(f"{gain}")
    stage.publish({"in": 0, "out": 0})


def make_run(name: str, gain: float) -> None:
    run = resolve(name)
    write_run(run, Path("runs"))
    for rule in run_rules(run)[:-1]:  # No report.
        make(run, rule, gain)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a table of two recipes, and the first seed of their runs."""
    folder = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        enter_folder(folder, patch)
        Path("recipes/tables").mkdir()
        Path("recipes/tables/mine.yaml").write_text(TABLE)
        for place, name in enumerate(("selm", "dpo")):
            Path(f"recipes/mine/{name}.yaml").write_text(f"{RECIPE}train: {{alpha: {0.01 * place}}}\n")
            make_run(f"mine-{name}", 0.5 - 0.4 * place)
    return folder


@pytest.fixture
def _runs(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes a copy of that folder the current one; what pictures show is in their captions."""
    shutil.copytree(made, tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")

    def drawn(found: dict[str, Any]) -> tuple[dict[str, bytes], dict[str, str]]:
        return {}, {name: caption for name, (_, caption) in found.items()}

    monkeypatch.setattr("handbook_ext.reports.table_figures.drawn", drawn)


def call(script: str, *words: str, seeds: Sequence[int] = (1,)) -> None:
    runpy.run_path(str(ROOT / "scripts" / script))["main"](["mine", "--seeds", *map(str, seeds), *words])


def page() -> str:
    call("write_table.py")
    return Path("runs/table-mine/report/table.md").read_text()


def summary() -> dict[str, Any]:
    return dict(json.loads(Path("runs/table-mine/report/summary.json").read_text()))


def planned(**variables: str) -> Plan:
    return plan_goals(["table-mine"], {"SEEDS": "1", **variables}, list(variables))


def keep_and_delete() -> None:
    call("keep_rows.py")
    shutil.rmtree("runs")


def edit(path: Path, before: str, after: str) -> None:
    """Changes a kept file by hand, as a text."""
    text = lzma.decompress(path.read_bytes()).decode()
    assert before in text
    path.write_bytes(lzma.compress(text.replace(before, after, 1).encode()))


@pytest.mark.usefixtures("_runs")
def test_a_table_of_kept_rows_is_the_table_of_their_runs() -> None:
    whole, numbers = page(), summary()
    assert "chosen: mean" in whole and "sample: mean" in whole and "| iter0 and iter1 |" in whole
    assert "all 3 rows under a seed" in whole and "Kept rows" not in whole
    keep_and_delete()
    [line] = {*page().splitlines()} - {*whole.splitlines()}
    assert line == "Kept rows, whose runs are not here: 3 of 3, a row under a seed each."
    kept = summary()
    assert [each.pop("kept") for each in kept["made"]] == [True] * 3
    assert [each.pop("kept") for each in numbers["made"]] == [False] * 3
    assert kept == numbers
    manifest = json.loads(Path("runs/table-mine/report/manifest.json").read_text())
    assert {*manifest["external"]} == {str(path) for path in FOLDER.iterdir()}


@pytest.mark.usefixtures("_runs")
def test_a_kept_row_needs_no_run_and_a_row_without_one_its_own() -> None:
    assert {run for run, _ in planned().wanted["table-mine"]} == {"mine-selm", "mine-dpo"}
    keep_and_delete()
    assert planned().wanted == {"table-mine": {}} and not planned().runs
    [line] = planned().notes
    assert re.fullmatch("table-mine: kept rows of 20[0-9-]{8} stand for 3 of its 3 rows under a seed", line)
    assert {run for run, _ in planned(SEEDS="2").wanted["table-mine"]} == {"mine-selm-seed2", "mine-dpo-seed2"}
    (FOLDER / "mine-dpo.iter1.json.xz").unlink()
    assert [*planned().wanted["table-mine"]] == [("mine-dpo", "sft/eval.json"), ("mine-dpo", "iter1/eval.json")]


@pytest.mark.usefixtures("_runs")
def test_a_recipe_that_was_changed_since_has_its_run_made_and_is_told_what_changed() -> None:
    keep_and_delete()
    path = Path("recipes/mine/dpo.yaml")
    path.write_text(path.read_text().replace("train_rows: 100", "train_rows: 200"))
    plan = planned()
    assert {run for run, _ in plan.wanted["table-mine"]} == {"mine-dpo"}
    words = "row 'DPO': measured under other settings: data/rows: data.train_rows 200, was 100; 1 of its runs made anew"
    assert plan.notes[0] == words and plan.notes[1].endswith("stand for 2 of its 3 rows under a seed")


@pytest.mark.usefixtures("_runs")
def test_other_names_of_recipe_and_title_are_the_same_settings() -> None:
    keep_and_delete()
    path = Path("recipes/mine/dpo.yaml")
    path.write_text(path.read_text() + "report: {title: Another}\nhealth: {max_kl: 1000}\n")
    assert not planned().wanted["table-mine"]


@pytest.mark.usefixtures("_runs")
def test_an_edited_number_is_refused_in_one_line() -> None:
    keep_and_delete()
    path = FOLDER / "mine-dpo.iter1.json.xz"
    whole = path.read_bytes()
    edit(path, '"rewards":[', '"rewards":[9')
    with pytest.raises(UserError, match=r"mine-dpo\.iter1\.json\.xz: was changed after it was kept .*restore it"):
        planned()
    with pytest.raises(UserError, match="was changed after it was kept"):
        page()
    for broken in (whole[:-30], b"", b"PK", lzma.compress(b"[]"), lzma.compress(b"{}"), lzma.compress(b"{")):
        path.write_bytes(broken)
        with pytest.raises(UserError, match="is no row that was kept"):
            planned()


@pytest.mark.usefixtures("_runs")
def test_what_is_finished_is_kept_and_what_is_missing_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree("runs/mine-dpo/iter1")
    call("keep_rows.py", seeds=(1, 2))
    text = capsys.readouterr().out
    assert {path.name for path in FOLDER.iterdir()} == {"mine-selm.sft.json.xz", "mine-selm.iter1.json.xz"}
    assert "missing: mine-dpo iter1: " in text and "missing: mine-selm-seed2 iter1: " in text
    assert text.endswith("table mine: 2 rows kept now, 0 before, 4 missing\n")
    before = (FOLDER / "mine-selm.iter1.json.xz").stat().st_mtime_ns
    for delete in (False, True):
        if delete:
            shutil.rmtree("runs")
        call("keep_rows.py", seeds=(1, 2))
        assert capsys.readouterr().out.endswith("table mine: 0 rows kept now, 2 before, 4 missing\n")
    assert (FOLDER / "mine-selm.iter1.json.xz").stat().st_mtime_ns == before


@pytest.mark.usefixtures("_runs")
def test_a_run_that_is_here_wins_over_what_was_kept_of_it() -> None:
    whole = page()
    call("keep_rows.py")
    path = FOLDER / "mine-selm.iter1.json.xz"
    row = read_measured(path)
    assert row is not None
    other = row.policies["iter1"].model_copy(update={"implicit": {"kl": 99.0}})
    write_measured(path, row.model_copy(update={"policies": row.policies | {"iter1": other}}))
    assert page() == whole
    assert {run for run, _ in planned().wanted["table-mine"]} == {"mine-selm", "mine-dpo"}
    shutil.rmtree("runs/mine-selm/iter1")
    page()
    assert [each.get("kl", {}).get("value") for each in summary()["rows"]] == [None, 99.0, 3.5]


@pytest.mark.usefixtures("_runs")
def test_a_table_that_reads_more_than_was_kept_needs_the_run_and_keeping_again_adds_it() -> None:
    path, bare = Path("recipes/tables/mine.yaml"), TABLE[: TABLE.index("claims")]
    path.write_text(bare)
    call("keep_rows.py")
    row = read_measured(FOLDER / "mine-selm.iter1.json.xz")
    assert row is not None and row.policies["iter1"].log_ratios is None
    assert [(name, each.offline, len(each.swapped)) for name, each in row.pairs.items()] == [("iter1", None, 17)]
    flips = "claims: [{better: SELM, worse: DPO, by: flipped labels, words: One drops more.}]\n"
    for part, reason in (
        (flips, "the pairs of iter1, which this table reads"),
        ("similarity: [iter0]\n", "the pairs of iter0, which this table reads"),
        ("differences: [SELM, DPO]\n", "its implicit rewards, which this table draws"),
    ):
        path.write_text(bare + part)
        shutil.move("runs", "elsewhere")
        assert any(f"row 'SELM': kept without {reason}" in line for line in planned().notes)
        assert planned().wanted["table-mine"]
        shutil.rmtree("runs", ignore_errors=True)
        shutil.move("elsewhere", "runs")
        call("keep_rows.py")
    row = read_measured(FOLDER / "mine-selm.iter1.json.xz")
    assert row is not None and row.policies["iter1"].log_ratios
    assert [name for name, each in row.pairs.items() if each.offline] == ["iter0", "iter1"]


@pytest.mark.usefixtures("_runs")
def test_an_artifact_that_was_changed_by_hand_is_not_kept() -> None:
    path = Path("runs/mine-dpo/iter1/eval.json")
    path.write_text(path.read_text().replace('"reward": ', '"reward": 1', 1))
    with pytest.raises(UserError, match=r"iter1/eval\.json was changed after stage 'evaluate' made it"):
        call("keep_rows.py")
    assert {path.name for path in FOLDER.iterdir()} == {"mine-selm.sft.json.xz", "mine-selm.iter1.json.xz"}


def test_the_goal_keeps_and_makes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    plan = plan_goals(["keep-table-sera1"], {"SEEDS": "2"}, ["SEEDS"])
    assert not plan.runs and not plan.wanted
    assert [line.strip() for line in plan.lines if "scripts/" in line] == [
        "@$(PYTHON) scripts/keep_rows.py sera1 --seeds 1 2 --runs runs"
    ]
    with pytest.raises(UserError, match="answers to alpaca, vicuna, evol, ultrafeedback, of which nothing is kept"):
        plan_goals(["keep-table-sera1"], {"SEEDS": "2", "MODEL": "pythia"}, ["SEEDS"])
    with pytest.raises(UserError, match="no table is called 'sera0'"):
        plan_goals(["keep-table-sera0"], {}, [])


@pytest.mark.parametrize(("values", "size"), [([0.5, -3.25, math.nan], 4), ([0.1, 2.0], 8), ([1e300, 1.0], 8), ([], 4)])
def test_numbers_are_packed_without_loss(values: list[float], size: int) -> None:
    text = packed(values)
    assert len(base64.b64decode(text)) == size * len(values)
    assert unpacked(text, len(values)) == pytest.approx(values, rel=0, abs=0, nan_ok=True)


def test_the_note_names_machines_days_and_which_rows_each_has_made() -> None:
    def of(row: str, seed: int, machine: str, day: int, kept: bool = False) -> dict[str, Any]:
        return {"row": row, "seed": seed, "machines": [machine], "date": f"2026-01-0{day}", "kept": kept}

    assert made_lines([]) == []
    assert made_lines([of("A", 1, "m", 2), of("A", 2, "m", 1), of("B", 1, "m", 2)]) == [
        "Made on m: all 3 rows under a seed; by day: 2026-01-01 (1), 2026-01-02 (2)."
    ]
    found = made_lines([of("A", 1, "m", 1), of("A", 2, "n", 1), of("B", 1, "m", 1, True), of("B", 2, "m", 1, True)])
    assert found == [
        "Made on m: 3 of 4 rows under a seed; by day: 2026-01-01 (3): A (seed 1); B.",
        "Made on n: 1 of 4 rows under a seed; by day: 2026-01-01 (1): A (seed 2).",
        APART,
        "Kept rows, whose runs are not here: 2 of 4, a row under a seed each.",
    ]


def test_every_row_that_is_delivered_is_as_it_was_kept() -> None:
    for path in ROOT.glob("recipes/*/measured/*"):
        row = read_measured(path)
        assert row is not None and path.name == f"{row.run}.{row.policy}.json.xz"
        assert path.stat().st_size < 60_000
