"""Every tiny recipe, cut down to a few rows: two iterations train, and the second goes on after being killed."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import yaml

from handbook_ext.core.records import Messages
from handbook_ext.judging.ranker import Verdict
from tests.workspace import MICRO, ROOT, Workspace

# One of each kind of selection and objective; the others differ from these in a value.
QUICK = {"sera", "curry-dpo", "spin", "oaif", "srlm", "sera-simpo", "orpo"}
STEMS = sorted(path.stem for path in (ROOT / "recipes" / "tiny").glob("*.yaml") if path.stem != "base")
NAMES = [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in STEMS]


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    return Workspace(tmp_path_factory.mktemp("each"))


def cut_down(name: str) -> str:
    """The recipe's child with the sizes of MICRO, two iterations at most, whichever those are."""
    sizes = yaml.safe_load(MICRO)
    data = {"train_rows": 16, "test_rows": 4, "sft_rows": 24}
    child = {
        "base": f"../tiny/{name}.yaml", "data": data, "sft": sizes["sft"],
        "generate": {"max_new_tokens": 8, "batch_size": 64},
        "train": {"global_batch_size": 8, "per_device_train_batch_size": 4, "save_steps": 1, "num_train_epochs": 1},
    }  # fmt: skip
    if name in ("selm", "dpo"):
        data |= {"train_rows": 32, "portions": 2}
        child["iterations"] = {"iter2": None, "iter3": None}
    elif "iter2" in "".join(_lineage(name)):
        child["iterations"] = {"iter3": None}
    if name == "srlm":
        data["judge_rows"] = 8
    if name == "oaif":
        child["rank"] = {"fit": {"global_batch_size": 8}}
    return yaml.safe_dump(child)


def _lineage(name: str) -> list[str]:
    """The iterations that a recipe has."""
    from handbook_ext.recipes.run import resolve

    return [each.name for each in resolve(f"tiny-{name}").iterations]


@pytest.mark.parametrize("name", NAMES)
def test_each_tiny_recipe_trains_and_resumes(name: str, workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HANDBOOK_SHARE", "1")  # Recipes with the same SFT policy train it once.
    workspace.write(cut_down(name), name)
    from handbook_ext.recipes.run import resolve

    monkeypatch.chdir(workspace.folder)
    last = resolve(f"mine-{name}").iterations[-1].name
    goal = f"mine-{name}-{last}"
    *before, training = workspace.commands(goal)
    assert training.split()[-2:] == ["scripts/train_policy.py", f"runs/mine-{name}/{last}"]
    for command in before:
        status, said = workspace.execute(command)
        assert status == 0, f"{command}: {said}"
        if name == "srlm" and command.endswith("rank_completions.py runs/mine-srlm/iter1"):
            assert_no_judgement_no_pairs(workspace, name, command)
            # So small a policy gives no points; from here on, each answer gets some by its length.
            monkeypatch.setattr("handbook_ext.judging.self_judge.SelfJudge.score", points_by_length)
            for path in (workspace.folder / "runs/mine-srlm/iter1").glob("rankings.*"):
                path.unlink()
            assert workspace.execute(command)[0] == 0
    monkeypatch.delenv("HANDBOOK_SHARE")  # But each trains for itself what is killed here.
    folder = Path(f"runs/mine-{name}/{last}")
    partial = folder / ".policy.partial" / "checkpoints"
    status, said = workspace.execute(training, kill_when=lambda: any(partial.glob("checkpoint-*/complete")))
    assert status == -9, said
    assert not (folder / "policy").exists()
    status, said = workspace.execute(training)
    assert status == 0, said
    manifest = json.loads((folder / "policy" / "manifest.json").read_text())
    assert manifest["steps"] >= 2
    assert workspace.commands(goal) == []


def points_by_length(self: object, items: Sequence[tuple[Messages, str]]) -> list[Verdict]:
    """Readable judgements, in place of the policy's."""
    return [Verdict(float(len(text) % 6)) for _, text in items]


def assert_no_judgement_no_pairs(workspace: Workspace, name: str, ranking: str) -> None:
    """An untrained policy gives no points: every failure is counted, and the selection says that nothing is left."""
    folder = ranking.rsplit(maxsplit=1)[-1]
    manifest = json.loads((workspace.folder / folder / "rankings.manifest.json").read_text())
    assert manifest["failed"] == manifest["counts"]["in"] * 4 > 0
    status, said = workspace.execute(f".venv/bin/python scripts/select_pairs.py {folder}")
    assert status == 2
    assert "no preference pair is left" in said and "'chosen equals rejected': 16" in said
