"""Which policies a matrix compares, in which order, and what cannot be compared."""

from __future__ import annotations

import json
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from handbook_ext.core.errors import UserError
from tests.manifests import BARE
from tests.recipe_folder import ROOT

SCRIPT = runpy.run_path(str(ROOT / "scripts" / "compare_answers.py"))


def write_answers(run: Path, policy: str, sha256: str = "s", judge: Any = None) -> None:
    """The files of a policy's answers that are looked at before anybody is asked."""
    for folder, name, sha in ((run / policy / "alpaca", "answers", policy), (run / "prompts" / "alpaca", "prompts", sha256)):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}.jsonl").touch()
        manifest = BARE | {"sha256": sha}
        (folder / f"{name}.manifest.json").write_text(json.dumps(manifest))
    settings = {
        "stage": "grade", "recipe": run.name, "overrides": [], "seed": 1, "inputs": {}, "policy": policy, "set": "alpaca",
        "checkpoint": None, "decoding": {}, "measures": ["alpaca_eval"], "outputs": [], "baseline": "start",
        "length_control": None, "judge": judge, "judge_runs": 1,
    }  # fmt: skip
    (run / policy / "alpaca" / "grade.yaml").write_text(yaml.safe_dump(settings))


def test_the_start_is_first_then_released_ones_then_iterations_by_number(tmp_path: Path) -> None:
    for policy in ("iter10", "released-iter1", "iter2", "start", "iter3"):
        write_answers(tmp_path / "run", policy)
    (tmp_path / "run" / "iter3" / "alpaca" / "answers.manifest.json").unlink()
    answers_of: Callable[[Path, str], list[Path]] = SCRIPT["answers_of"]
    names = [path.parts[-3] for path in answers_of(tmp_path / "run", "alpaca")]
    assert names == ["start", "released-iter1", "iter2", "iter10"]


@pytest.mark.parametrize(
    ("policies", "message"),
    [
        ([("one", "iter1", "s")], "1 policy has answered alpaca, and two are compared; make one-eval SETS=alpaca"),
        ([("one", "iter1", "s"), ("other", "iter1", "t")], "differ; compare runs that were evaluated on the same prompts"),
        ([("one", "iter1", "s"), ("other", "iter1", "s")], "no judge compares the policies"),
    ],
)
def test_what_cannot_be_compared_is_one_line(tmp_path: Path, policies: list[tuple[str, str, str]], message: str) -> None:
    for run, policy, sha256 in policies:
        write_answers(tmp_path / run, policy, sha256)
    runs = dict.fromkeys(str(tmp_path / run) for run, _, _ in policies)
    with pytest.raises(UserError, match=message):
        SCRIPT["main"]([*runs, "--set", "alpaca"])
