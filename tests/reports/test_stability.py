"""A table of stability holds rows of the same settings alone, and says of each run what its report says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from handbook_ext.core.errors import UserError
from handbook_ext.core.machine import IMITATED
from handbook_ext.objectives.metrics import Interval
from handbook_ext.reports.stability import merged, render_rows, summarise_rows
from handbook_ext.reports.stability_rows import Measured, StabilityRow, row_of, rows_in
from tests.reports.written_run import make_run

AVX2 = IMITATED["avx2"]


def measured(reward: float, gain: float | None = None, won: float | None = None) -> Measured:
    """A policy's numbers, each known to 0.05."""
    around = [None if value is None else Interval(value, value - 0.05, value + 0.05) for value in (reward, gain, won)]
    assert around[0] is not None
    return Measured(reward=around[0], gain=around[1], won=around[2], fell=gain is not None and gain + 0.05 < 0)


def row(machine: str, seed: int, *, gain: float = 0.2, won: float = 0.9, **about: Any) -> StabilityRow:
    """A run of two policies, of which the second has gained so much, sampled, and as much as the first, greedily."""
    first = {"greedy": measured(0.4), "sampled": measured(0.3)}
    last = {"greedy": measured(0.4, 0.0, 0.5), "sampled": measured(0.3 + gain, gain, won)}
    about = {"digest": "aaa", "date": "2026-01-01", "commits": ["c0ffee"], "seconds": 60.0} | about
    return StabilityRow(
        run="tiny-selm", machine=machine, seed=seed, cpu="x", capability="AVX2", mkl_cbwr=None, torch="2", prompts=40,
        confidence=0.95, reward="true reward", primary="sampled", policies={"sft": first, "iter0": last}, falls=[], **about,
    )  # fmt: skip


def test_rows_of_other_settings_are_left_out_and_told_and_those_of_other_days_kept() -> None:
    old = [row("avx2", 101, digest="bbb"), row("avx2", 102), row("avx512", 101)]
    rows, notes = merged(old, [row("avx512", 101, date="2026-02-02"), row("avx512", 102, date="2026-02-02")])
    assert [(each.machine, each.seed, each.date) for each in rows] == [
        ("avx2", 102, "2026-01-01"), ("avx512", 101, "2026-01-01"), ("avx512", 102, "2026-02-02"),
    ]  # fmt: skip
    assert len(notes) == 1 and notes[0].startswith("1 rows of other settings are left out: tiny-selm (bbb)")
    rows, notes = merged(rows, [row("avx512", 102, gain=0.1, date="2026-03-03")])
    assert rows[-1].date == "2026-03-03" and "avx512 seed 102" in notes[0]


@pytest.mark.parametrize("digests", [("aaa", "bbb"), ()])
def test_no_table_is_made_of_rows_of_several_settings_or_none(digests: tuple[str, ...]) -> None:
    rows = [row("avx2", 101 + place, digest=digest) for place, digest in enumerate(digests)]
    for make in (summarise_rows, render_rows, lambda each: merged([], each)):
        with pytest.raises(UserError, match="same settings"):
            make(rows)


def test_falls_gains_and_ranges_are_counted_over_all_runs() -> None:
    rows = [row("avx2", 101), row("avx2", 102, gain=0.4), row("avx512", 101, gain=-0.2, won=0.3, seconds=180.0)]
    found = summarise_rows(rows)
    assert (found["runs"], found["fell"], found["few_falls"], found["won"]) == (3, 1, False, 2)
    assert found["lowest"] == {"machine": "avx512", "seed": 101, "value": 0.3}
    assert found["ranges"]["iter0"]["sampled"]["reward"] == pytest.approx([0.1, 0.7])
    assert found["ranges"]["iter0"]["sampled"]["won"] == [0.3, 0.9]
    assert found["ranges"]["sft"]["greedy"] == {"reward": [0.4, 0.4], "won": None, "fell": 0}
    assert found["minutes"] == {"least": 1.0, "median": 1.0, "most": 3.0}
    assert (found["missing"], found["equal"]) == (["avx512 seed 102"], [])
    assert summarise_rows([row("avx2", 101 + seed, gain=-0.2 if not seed else 0.2) for seed in range(20)])["few_falls"]


def test_a_noise_of_one_run_is_no_fall_and_machines_of_equal_numbers_are_told() -> None:
    found = summarise_rows([row("avx2", 101, gain=-0.04), row("default", 101, gain=-0.04), row("avx512", 101)])
    assert (found["fell"], found["equal"]) == (0, [["avx2", "default"]])


def test_the_page_says_what_was_measured_and_which_seeds_chose_nothing() -> None:
    files = render_rows([row("avx2", 101), row("avx512", 101, gain=-0.2, won=0.3)])
    page = files[".md"]
    assert "1 of 2 runs has an iteration that fell by more than noise (1 sampled). The aim, at most 1 in 20, is missed." in page
    assert "iter0 beats sft in at least 75 % of prompts in 1 of 2 runs, sampled; the least is 30.0 % (avx512, seed 101)" in page
    assert "| avx512 | 101 | 0.300 | 0.100 * | 30.0 [25.0, 35.0] |" in page
    assert "Seed 101: chosen beforehand" in page
    assert "may have been picked" in render_rows([row("avx2", 1)])[".md"]
    assert len(json.loads(files[".json"])["rows"]) == 2 and files[".json"].count("\n") == 5


def test_rows_outlive_their_file_and_a_damaged_one_is_told(tmp_path: Path) -> None:
    path, rows = tmp_path / "stability.json", [row("avx2", 101), row("default", 102)]
    assert rows_in(path) == []
    path.write_text(render_rows(rows)[".json"])
    assert rows_in(path) == rows
    path.write_text('{"rows": [{}]}')
    with pytest.raises(UserError, match="holds no rows of stability"):
        rows_in(path)


def made(folder: Path, *, seed: int = 101, gain: float = 0.1, other: str = "AVX2", **settings: Any) -> Path:
    """A run made under AVX2 but for the last training, and under settings."""
    make_run(folder, 2, seed=seed, gain=gain)
    for path in folder.glob("*/*/manifest.json"):
        manifest = json.loads(path.read_text())
        kernels = {"cpu": "x", "capability": other if path.parts[-3] == "iter1" else "AVX2"}
        about = {"hardware": kernels, "settings": {"seed": seed, "recipe": folder.name, "beta": 0.1} | settings}
        path.write_text(json.dumps(manifest | about))
    return folder


def test_a_run_becomes_a_row_with_the_falls_of_its_report(tmp_path: Path) -> None:
    risen, fallen = (row_of(made(tmp_path / f"{gain}", gain=gain), "avx2", AVX2) for gain in (0.1, -0.1))
    assert (risen.fell, risen.falls) == ([], [])
    assert fallen.fell == ["iter0", "iter1"] and [each.split()[0] for each in fallen.falls] == ["iter0", "iter1"]
    assert (risen.seed, risen.capability, risen.commits, risen.seconds, risen.last) == (101, "AVX2", ["c" * 12], 7.5, "iter1")
    assert risen.policies["iter1"]["sampled"].reward.value == pytest.approx(0.5, abs=0.05)
    assert risen.policies["sft"]["greedy"].won is None


def test_the_digest_is_of_the_settings_whatever_the_seed(tmp_path: Path) -> None:
    runs = made(tmp_path / "a"), made(tmp_path / "b", seed=102), made(tmp_path / "c", beta=0.2)
    one, seed, beta = (row_of(run, "avx2", AVX2).digest for run in runs)
    assert one == seed != beta


@pytest.mark.parametrize(("machine", "other"), [("avx2", "AVX512"), ("avx512", "AVX2"), ("mkl-compatible", "AVX2")])
def test_a_run_of_other_kernels_than_its_machines_is_refused(machine: str, other: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"was made with (capability|mkl_cbwr) .* delete the folder"):
        row_of(made(tmp_path / "run", other=other), machine, IMITATED[machine])
