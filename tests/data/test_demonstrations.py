"""Demonstrations of their own data set or file, what the loop makes of them, and the manifest of the data stage."""

import json
import runpy
from pathlib import Path
from typing import Any

import datasets
import pytest
import yaml

from handbook_ext.core.errors import UserError
from handbook_ext.data.offline import load_offline_data
from handbook_ext.recipes.settings import DataSettings
from tests.dataset_rows import FOUR, chat, load, pair, uf, write
from tests.workspace import ROOT


def test_demonstrations_come_from_a_conversation(tmp_path: Path) -> None:
    rows = [
        chat("a", "b", "c", "d", system="be kind"), chat("a", "b", "and?", prompt_id=""), chat("a", "b", ""),
        chat("a"), chat("a", ""), chat("a", "", "c", "d"),
        {"messages": [{"role": "assistant", "content": "b"}]}, {"messages": []},
    ]  # fmt: skip
    loaded = load(tmp_path, [pair(1)], sft=rows, empty_completions="drop")
    made = [([turn["content"] for turn in row.prompt], row.completion[0]["content"]) for row in loaded.demonstrations]
    assert made == [(["be kind", "a", "b", "c"], "d"), (["a"], "b"), (["a"], "b")]
    assert loaded.demonstrations[0].prompt_id == "f0e3" and len(loaded.demonstrations[1].prompt_id) == 16
    assert loaded.dropped == {"demonstration: no answer": 2, "demonstration: empty completion": 1, "demonstration: empty turn": 1,
                              "demonstration: empty prompt": 1}  # fmt: skip
    assert (loaded.left_out["turns after the last answer"], loaded.read, loaded.kept) == (2, 10, 5)
    for row, words in ((chat("a", ""), "the completion is empty"), ({"text": "a"}, "no 'messages'")):
        with pytest.raises(UserError, match=rf"sft.jsonl:2: .*{words}"):
            load(tmp_path, [pair(1)], sft=[chat("a", "b"), row])


def test_a_hub_data_set_of_demonstrations_is_asked_for_its_own_split(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(datasets, "load_dataset", lambda *name, **more: asked.append((name, more)) or [chat("a", "b")] * 9)
    loaded = load(tmp_path, [pair(1)], sft_dataset="HuggingFaceH4/ultrachat_200k", sft_rows=4, revision="abc")
    assert asked == [(("HuggingFaceH4/ultrachat_200k", None), {"split": "train_sft", "revision": None})]
    assert [row.source for row in loaded.demonstrations][-1] == "HuggingFaceH4/ultrachat_200k train_sft row 4"


def test_the_loop_may_use_the_prompts_of_the_demonstrations(tmp_path: Path) -> None:
    loaded = load(
        tmp_path, [pair(1)], sft=[chat("a", "b"), chat("c", "d"), chat("e", "f")], prompts="demonstrations", train_rows=2
    )
    assert [(row.prompt_id, row.prompt[0]["content"], row.chosen[0]["content"]) for row in loaded.train] == [
        ("f0e3", "a", "b"), ("f0e3#2", "c", "d")
    ]  # fmt: skip
    assert all(row.chosen == row.rejected and row.score_chosen is row.score_rejected is None for row in loaded.train)
    assert loaded.test[0].prompt_id == "id99" and loaded.test[0].rejected[0]["content"] == "bad"
    assert (len(loaded.demonstrations), loaded.read) == (3, 4)
    assert [(row.raw_row, row.raw_rows) for row in loaded.train] == [(0, 2), (1, 2)]
    gap = load(
        tmp_path, [pair(1)], sft=[chat("a", ""), chat("c", "d"), chat("e", "f")], prompts="demonstrations", train_rows=2,
        empty_completions="drop",
    )  # fmt: skip
    assert [(row.chosen[0]["content"], row.raw_row, row.raw_rows) for row in gap.train] == [("d", 1, 2)]
    own = load(tmp_path, [pair(1), pair(2)], prompts="demonstrations", sft_rows=1)
    assert [row.rejected[0]["content"] for row in own.train] == ["good"]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"judge_rows": 3}, "data.judge_rows"), ({"answers": 4}, "data.answers"),
        ({"sft_dataset": None, "sft": "x"}, "data.sft: 'x'"),
        ({"prompts": "demonstrations", "flip_rate": 0.2}, "data.flip_rate"),
        ({"dataset": "tiny_world", "train": "train_prefs", "form": "tldr"}, "data.form"),
        ({"dataset": "tiny_world", "train": "train_prefs", "sft": "x.jsonl"}, "data.sft"),
    ],
)  # fmt: skip
def test_settings_that_the_data_cannot_heed_are_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        load_offline_data(DataSettings(**({"train": "a.jsonl", "test": "b.jsonl"} | settings)), 1)


def test_the_manifest_names_the_files_and_why_rows_went(tmp_path: Path) -> None:
    rows = [uf("ask", *FOUR), uf("equal", ("a", 4.0), ("b", 4.0))]
    files = {"train": write(tmp_path / "train.jsonl", rows), "test": write(tmp_path / "test.jsonl", [pair()])}
    files["sft"] = write(tmp_path / "sft.jsonl", [chat("a", "b"), chat("a")])
    (tmp_path / "run/data").mkdir(parents=True)
    settings = {"stage": "data", "recipe": "mine", "seed": 1, "needs": [], "data": files}
    (tmp_path / "run/data/data.yaml").write_text(yaml.safe_dump(settings))
    runpy.run_path(str(ROOT / "scripts/prepare_data.py"))["main"]([str(tmp_path / "run")])
    manifest = json.loads((tmp_path / "run/data/rows/manifest.json").read_text())
    assert manifest["counts"] == {"in": 5, "out": 3, "dropped": {"equal scores": 1, "demonstration: no answer": 1}}
    assert manifest["rows"] == {"sft": 1, "train": 1, "test": 1}
    assert set(manifest["external"]) == set(files.values())
