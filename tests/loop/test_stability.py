"""`make stability`: what it refuses, and runs under two machines' roundings, made on two days, in one table."""

from __future__ import annotations

import json
import os
import runpy
from pathlib import Path

import pytest

from handbook_ext.core.errors import UserError
from handbook_ext.core.machine import IMITATED, imitable
from handbook_ext.graph.goals import plan_goals
from tests.workspace import ROOT, Workspace

MAIN = runpy.run_path(str(ROOT / "scripts/measure_stability.py"))["main"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--machines=avx2 avx22"], r"MACHINES: avx22 is none \(did you mean 'avx2'\?\); there are: avx512, "),
        (["--of=tiny-selm tiny-dpo"], r"OF: 'tiny-selm tiny-dpo' is not one run; name one"),
        (["--of=tiny-selm-seed3"], r"OF: tiny-selm-seed3 has a seed of its own; name it without, and give FIRST=3 SEEDS=1"),
        (["--of=zephyr-selm"], r"OF: zephyr-selm is launched by \w+, and only a CPU's roundings are imitated"),
        (["--set=data.train_row=400"], r"train_rows"),
        (["--seeds=0"], r"--seeds is 0"),
    ],
)
def test_what_cannot_be_measured_is_told_before_a_run_starts(
    words: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    with pytest.raises(UserError, match=said):
        MAIN([*words, "--runs", str(tmp_path)])
    assert not [*tmp_path.iterdir()]


def test_a_machine_that_this_processor_cannot_imitate_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MAIN.__globals__, "imitable", lambda: ["default"])
    with pytest.raises(UserError, match="this processor cannot imitate avx512; it can: default"):
        MAIN(["--machines=avx512"])


def test_make_hands_on_its_words_and_asks_for_five_seeds(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path / "clone")
    [plain] = workspace.commands("stability")
    assert "--runs runs/stability --seeds '5' --jobs '2' --threads '1'" in plain and "--of" not in plain
    done = workspace.make("-n", "stability", "SEEDS=2", "FIRST=7", "MACHINES=avx2 default", "OF=tiny-dpo", "SET=train.beta=0.5")
    assert "--seeds '2'" in done.stdout and done.stdout.rstrip().endswith(
        "--of='tiny-dpo' --machines='avx2 default' --first '7' --set='train.beta=0.5'"
    )
    with pytest.raises(UserError, match="MACHINES is read by stability, and no goal here is"):
        plan_goals(["tiny-selm"], {"MACHINES": "avx2"}, ["MACHINES"])


@pytest.mark.slow
def test_runs_of_two_machines_differ_in_their_bits_and_stand_in_one_table(tmp_path: Path) -> None:
    machines = imitable()[-2:]
    if len(machines) < 2:
        pytest.skip("this processor imitates one machine alone")
    workspace = Workspace(tmp_path / "clone")
    folder = workspace.folder / "runs" / "stability"
    words = ("OF=mine-micro", "SEEDS=1", "SET=train.beta=0.3")
    for machine in machines:
        done = workspace.make("stability", *words, f"MACHINES={machine}")
        assert done.returncode == 0, done.stderr
        assert f"machine {machine}, 1 of 1" in done.stderr
    rows = json.loads((folder / "stability.json").read_text())["rows"]
    assert {row["machine"]: (row["seed"], row["mkl_cbwr"]) for row in rows} == {
        name: (101, IMITATED[name].get("MKL_CBWR")) for name in machines
    }
    assert rows[0]["digest"] == rows[1]["digest"] and [*rows[0]["policies"]] == ["sft", "iter0", "iter1"]
    weights = [
        next(folder.glob(f"{machine}/mine-micro+train.beta-0.3-seed101/iter1/policy/model.safetensors")) for machine in machines
    ]
    assert weights[0].read_bytes() != weights[1].read_bytes()
    before = [os.stat(path).st_ino for path in weights]
    assert workspace.make("stability", *words, f"MACHINES={' '.join(machines)}").returncode == 0
    assert [os.stat(path).st_ino for path in weights] == before, "what is finished is kept"
    assert json.loads((folder / "stability.json").read_text())["rows"] == rows
