"""A judge that labels no pair: fitted to the other half of the prompts, its rewards of record, the ranker's beside them."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
import torch

from handbook_ext.judging.reward_model import RewardModel
from tests.small_encoder import save_encoder
from tests.workspace import MICRO, Workspace, changed

DATA = [
    {"prompt": f"{chr(97 + n % 26)} b {n}", "chosen": "c d " + "e " * (n % 3), "rejected": "f g h i " + "j " * (n % 5)}
    for n in range(40)
]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("apart")
    encoder = save_encoder(folder / "encoder")
    recipe = changed(
        MICRO, evaluate="judge: apart, temperatures: [0.0]", data="train: train.jsonl, test: test.jsonl", train="alpha: 0.1"
    ).replace("data: {", "data: {long_prompts: drop, ")
    fit = f"model: {encoder}, test_share: 0.2, global_batch_size: 4, per_device_train_batch_size: 4"
    workspace = Workspace(folder / "work", recipe + f"rank: {{max_length: 48, fit: {{{fit}}}}}\n")
    for name, rows in (("train", DATA[:32]), ("test", DATA[32:])):
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (workspace.folder / "recipes" / "mine" / f"{name}.jsonl").write_text(text)
    workspace.run("mine-micro")
    return workspace.folder / "runs" / "mine-micro"


def read(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text()))


def test_the_two_reward_models_are_fitted_to_different_prompts(run: Path) -> None:
    ranker, judge = (read(run / name / "model/manifest.json") for name in ("ranker", "judge"))
    assert ranker["counts"] == {
        "in": 32, "out": 13, "dropped": {"the other reward model's half": 16, "held out": 3},
    }  # fmt: skip
    assert judge["counts"] == ranker["counts"]
    assert ranker["sha256"] != judge["sha256"]
    for manifest in (ranker, judge):
        assert manifest["held_out"]["pairs"] == 3
        assert manifest["source"].startswith("folder ")
        assert list(manifest["external"]) == ["rank.fit.model"]
        assert list(manifest["inputs"]) == ["../data/rows/train.jsonl"]


def test_the_judge_gives_the_rewards_of_record_and_the_ranker_those_beside(run: Path) -> None:
    evaluation = read(run / "iter1" / "eval.json")
    prompts = {
        row["prompt_id"]: row["prompt"] for row in map(json.loads, (run / "data/rows/test.jsonl").read_text().splitlines())
    }
    rows = evaluation["decodings"]["greedy"]["rows"]
    for name, field, key in (("judge", "reward", "judge"), ("ranker", "labeller_reward", "labeller")):
        model = RewardModel(str(run / name / "model"), device=torch.device("cpu"), batch_size=32, max_length=48)
        wanted = [verdict.score for verdict in model.score([(prompts[row["prompt_id"]], row["text"]) for row in rows])]
        assert [row[field] for row in rows] == pytest.approx(wanted, rel=1e-5, abs=1e-6)
        assert evaluation[key] == f"fitted {read(run / name / 'model/manifest.json')['sha256'][:12]}"
        assert evaluation["decodings"]["greedy"][f"mean_{field}"] == pytest.approx(fmean(wanted), rel=1e-5)
    labelled_by = read(run / "iter1" / "rankings.manifest.json")["inputs"]
    assert "../ranker/model" in labelled_by and "../judge/model" not in labelled_by


def test_the_report_shows_both_columns_and_says_who_labelled(run: Path) -> None:
    text = (run / "report/report.md").read_text()
    header = next(line for line in text.splitlines() if line.startswith("| policy |"))
    assert "reward (by reward_model), greedy | reward by the labelling ranker, greedy | tokens" in header
    rows = [line for line in text.splitlines() if line.startswith("| iter1 |")]
    mean = read(run / "iter1" / "eval.json")["decodings"]["greedy"]["mean_labeller_reward"]
    assert f"{mean:.3f} [" in rows[0]
    assert rows[0].count("|") == header.count("|")
    assert "a judge that labelled no pair" in text
    assert read(run / "iter1" / "eval.json")["labeller"] in text
